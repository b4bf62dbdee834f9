#include "simplex_project.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "parallel.h"

namespace srnas_fast {
namespace {

// These also stand in srnas_fast/primitives/simplex_project.py.
constexpr double ROUNDING = 1e-6, FLOOR = 1e-4, OUTSIDE = -2;

// Mean of the first entries of a falling row that begins with 0, and the root of their sum of squares around
// it, both over their span: the distance from the first to the last one. Scaled anew whenever the span grows,
// so that no square leaves the numbers' range.
struct Prefix {
    double count = 0, span = 0, mean = 0, squares = 0;
    double norm() const { return std::sqrt(squares); }

    void add(double entry) {
        count += 1;
        if (entry == 0) return;
        const double shrink = span / -entry, from_mean = -1 - mean * shrink;
        span = -entry;
        mean = mean * shrink + from_mean / count;
        squares = squares * shrink * shrink + from_mean * (-1 - mean);
    }

    // Of the last entry, where the others are 1 / count + slope * (entry / span - mean).
    double lowest(double slope) const { return 1 / count + (span > 0 ? slope * (-1 - mean) : 0); }
};

// One row's nearest point; see _solve in srnas_fast/primitives/simplex_project.py.
class Row {
public:
    explicit Row(int64_t choices) : weights(choices), below_(choices), sorted_(choices) {}

    std::vector<double> weights;

    template <class T>
    void solve(const T* logits, double radius, bool as_published) {
        const T largest = *std::max_element(logits, logits + below_.size());
        const bool broken = std::any_of(logits, logits + below_.size(), [](T z) { return std::isnan(z); });
        if (broken || !std::isfinite(largest)) {  // nobody may have looked: then it shows in the result
            std::fill(weights.begin(), weights.end(), NAN);
            return;
        }
        double choices = 0;
        for (size_t k = 0; k < below_.size(); ++k) {
            below_[k] = std::max(static_cast<double>(logits[k]) - static_cast<double>(largest), OUTSIDE);
            choices += std::isfinite(logits[k]);
        }
        sorted_ = below_;
        std::sort(sorted_.begin(), sorted_.end(), std::greater<double>());

        double square = std::min(radius, 1.0) * std::min(radius, 1.0);
        if (as_published) {
            find([](const Prefix&) { return 0.0; });
            square += 1 / support_.count - 1 / choices;
        }
        const auto within = [&](const Prefix& face) {
            return std::sqrt(std::max(0.0, square - (1 / face.count - 1 / choices)));
        };
        find(within);
        radius_ = within(support_);

        const size_t first = std::find(below_.begin(), below_.end(), 0.0) - below_.begin();
        const double m = support_.count, slope = this->slope(support_, radius_);
        const double lead = m > 1 ? radius_ / std::sqrt(m * (m - 1)) : 0;
        for (size_t k = 0; k < below_.size(); ++k) {
            double weight;
            if (support_.span > 0) {
                weight = 1 / m + slope * (below_[k] / support_.span - support_.mean);
            } else {  // a tie of the largest, of which the first one leads
                weight = below_[k] < 0 ? 0 : 1 / m + lead * (k == first ? m - 1 : -1);
            }
            weights[k] = static_cast<T>(std::max(weight, 0.0));  // what the caller sees decides who is alive
        }
        if (square >= (1 - 1 / choices) * (1 - ROUNDING)) {
            std::fill(weights.begin(), weights.end(), 0.0);
            weights[first] = 1;
        }
    }

    // The gradient of the last solved row.
    template <class T>
    void backward(const T* dweights, T* dlogits) const {
        if (std::isnan(weights[0])) {
            std::fill(dlogits, dlogits + weights.size(), static_cast<T>(NAN));
            return;
        }
        const double distance = support_.span * support_.norm();
        const bool binds = distance < radius_, directed = binds && support_.span > 0;
        const double gain = binds ? std::max(1.0, radius_ / std::max(distance, FLOOR)) : 1;
        double count = 0, sum = 0;
        for (size_t k = 0; k < weights.size(); ++k) {
            if (weights[k] > 0) count += 1, sum += dweights[k];
        }
        const auto direction = [&](size_t k) {
            return directed ? (below_[k] / support_.span - support_.mean) / support_.norm() : 0;
        };
        double along = 0;
        for (size_t k = 0; k < weights.size(); ++k) {
            if (weights[k] > 0) along += direction(k) * (dweights[k] - sum / count);
        }
        for (size_t k = 0; k < weights.size(); ++k) {
            const double g = dweights[k] - sum / count - direction(k) * along;
            dlogits[k] = weights[k] > 0 ? static_cast<T>(gain * g) : T(0);
        }
    }

private:
    static double slope(const Prefix& face, double radius) {
        return face.span > 0 ? std::max(face.span, radius / face.norm()) : 0;
    }

    // The support: the largest prefix whose lowest weight is positive. Where sparsemax has none, neither has
    // a map with a radius.
    template <class Radius>
    void find(Radius radius) {
        Prefix face;
        for (const double entry : sorted_) {
            face.add(entry);
            if (face.lowest(face.span) <= 0) break;
            if (face.lowest(slope(face, radius(face))) > 0) support_ = face;
        }
    }

    std::vector<double> below_, sorted_;
    Prefix support_;
    double radius_ = 0;  // in the plane of the support's face
};

// work(row, index) for all rows, solved; a thread solves at least so many that it pays to wake it.
template <class T, class Work>
void each_row(const SimplexRows<T>& in, int threads, Work work) {
    const int64_t share = std::max<int64_t>(1, 4096 / in.choices), pieces = (in.rows + share - 1) / share;
    for_pieces(pieces, threads, 0, [&](int64_t piece, int) {
        Row row(in.choices);
        for (int64_t i = piece * share; i < std::min(in.rows, (piece + 1) * share); ++i) {
            row.solve(in.logits + i * in.choices, in.radius[i * in.radius_step], in.as_published);
            work(row, i * in.choices);
        }
    });
}

}  // namespace

template <class T>
void simplex_project(const SimplexRows<T>& in, T* weights, int threads) {
    each_row(in, threads, [&](const Row& row, int64_t at) {
        std::transform(row.weights.begin(), row.weights.end(), weights + at,
                       [](double weight) { return static_cast<T>(weight); });
    });
}

template <class T>
void simplex_project_backward(const SimplexRows<T>& in, const T* dweights, T* dlogits, int threads) {
    each_row(in, threads, [&](const Row& row, int64_t at) { row.backward(dweights + at, dlogits + at); });
}

#define INSTANTIATE(T)                                             \
    template void simplex_project(const SimplexRows<T>&, T*, int); \
    template void simplex_project_backward(const SimplexRows<T>&, const T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
