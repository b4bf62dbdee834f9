// One warp per row. All its threads follow the support as it grows, and share the walks over the entries;
// there is no sorted copy, so that a row may have any number of choices.
#include "simplex_project.h"

namespace srnas_fast_cuda {
namespace {

// These also stand in srnas_fast/primitives/simplex_project.py.
constexpr double ROUNDING = 1e-6, FLOOR = 1e-4, OUTSIDE = -2;

// The same number in all threads of the warp: that of all its values.
template <class T, class Combine>
__device__ T over_warp(T value, Combine combine) {
    for (int bits = 16; bits > 0; bits /= 2) value = combine(value, __shfl_xor_sync(WHOLE_WARP, value, bits));
    return value;
}

// The sum, or the maximum, of of(k) over the choices.
template <class Of>
__device__ double sum_of(int64_t choices, Of of) {
    double sum = 0;
    for (int64_t k = threadIdx.x; k < choices; k += 32) sum += of(k);
    return over_warp(sum, [](double a, double b) { return a + b; });
}

template <class Of>
__device__ double largest_of(int64_t choices, double least, Of of) {
    double largest = least;
    for (int64_t k = threadIdx.x; k < choices; k += 32) largest = fmax(largest, of(k));
    return over_warp(largest, [](double a, double b) { return fmax(a, b); });
}

// Mean of the first entries of a falling row that begins with 0, and the root of their sum of squares around
// it, both over their span: the distance from the first to the last one. Scaled anew whenever the span grows,
// so that no square leaves the numbers' range.
struct Prefix {
    double count = 0, span = 0, mean = 0, squares = 0;
    __device__ double norm() const { return sqrt(squares); }

    __device__ void add(double entry) {
        count += 1;
        if (entry == 0) return;
        const double shrink = span / -entry, from_mean = -1 - mean * shrink;
        span = -entry;
        mean = mean * shrink + from_mean / count;
        squares = squares * shrink * shrink + from_mean * (-1 - mean);
    }

    __device__ double slope(double radius) const { return span > 0 ? fmax(span, radius / norm()) : 0; }

    // Of the last entry, where the others are 1 / count + slope * (entry / span - mean).
    __device__ double lowest(double slope) const { return 1 / count + (span > 0 ? slope * (-1 - mean) : 0); }
};

// One row's nearest point; see _solve in srnas_fast/primitives/simplex_project.py.
template <class T>
class Row {
public:
    __device__ Row(const SimplexRows<T>& in, int64_t row)
        : logits_(in.logits + row * in.choices), choices_(in.choices) {
        largest_ = logits_[0];
        largest_ = largest_of(choices_, largest_, [&](int64_t k) { return double(logits_[k]); });
        const double nans = sum_of(choices_, [&](int64_t k) { return isnan(logits_[k]) ? 1.0 : 0.0; });
        broken_ = nans > 0 || !isfinite(largest_);  // nobody may have looked: then it shows in the result
        if (broken_) return;

        const double legal = sum_of(choices_, [&](int64_t k) { return isfinite(logits_[k]) ? 1.0 : 0.0; });
        const double radius = fmin(in.radius[row * in.radius_step], 1.0);
        double square = radius * radius;
        if (in.as_published) {
            const Prefix sparsemax = find([](const Prefix&) { return 0.0; });
            square += 1 / sparsemax.count - 1 / legal;
        }
        const auto within = [&](const Prefix& face) {
            return sqrt(fmax(0.0, square - (1 / face.count - 1 / legal)));
        };
        support_ = find(within);
        radius_ = within(support_);
        corner_ = square >= (1 - 1 / legal) * (1 - ROUNDING);
        const double after = largest_of(choices_, 0, [&](int64_t k) {  // the lower the index, the larger
            return below(k) == 0 ? double(choices_ - k) : 0.0;
        });
        first_ = choices_ - int64_t(after);
    }

    __device__ bool broken() const { return broken_; }

    // As the caller sees it, which decides who is alive.
    __device__ T weight(int64_t k) const {
        const double m = support_.count;
        if (corner_) return T(k == first_ ? 1 : 0);
        if (support_.span > 0) {
            const double away = below(k) / support_.span - support_.mean;
            return T(fmax(0.0, 1 / m + support_.slope(radius_) * away));
        }
        if (below(k) < 0) return T(0);  // a tie of the largest, of which the first one leads
        const double lead = m > 1 ? radius_ / sqrt(m * (m - 1)) : 0;
        return T(fmax(0.0, 1 / m + lead * (k == first_ ? m - 1 : -1)));
    }

    // n and the gain of the gradient, as simplex_project's docstring has them.
    __device__ double direction(int64_t k) const {
        if (!binds() || support_.span == 0) return 0;
        return (below(k) / support_.span - support_.mean) / support_.norm();
    }
    __device__ double gain() const { return binds() ? fmax(1.0, radius_ / fmax(distance(), FLOOR)) : 1; }

private:
    __device__ double below(int64_t k) const { return fmax(double(logits_[k]) - largest_, OUTSIDE); }
    __device__ double distance() const { return support_.span * support_.norm(); }
    __device__ bool binds() const { return distance() < radius_; }

    // The support: the largest prefix whose lowest weight is positive. Where sparsemax has none, neither has
    // a map with a radius. Equal entries are added one by one, like others.
    template <class Radius>
    __device__ Prefix find(Radius radius) const {
        Prefix face, support;
        for (double last = 1; last > OUTSIDE;) {
            const double next = largest_of(choices_, OUTSIDE,
                                           [&](int64_t k) { return below(k) < last ? below(k) : OUTSIDE; });
            const double equal = sum_of(choices_, [&](int64_t k) { return below(k) == next ? 1.0 : 0.0; });
            for (double i = 0; i < equal; ++i) {
                face.add(next);
                if (face.lowest(face.span) <= 0) return support;
                if (face.lowest(face.slope(radius(face))) > 0) support = face;
            }
            last = next;
        }
        return support;
    }

    const T* logits_;
    int64_t choices_, first_ = 0;
    double largest_, radius_ = 0;  // the radius in the plane of the support's face
    bool broken_, corner_ = false;
    Prefix support_;
};

// Reads the logits and writes the weights, each once from outside the cache: the least possible.
template <class T>
__global__ void project_rows(SimplexRows<T> in, T* weights) {
    const Row<T> row(in, blockIdx.x);
    T* const out = weights + blockIdx.x * in.choices;
    for (int64_t k = threadIdx.x; k < in.choices; k += 32) out[k] = row.broken() ? T(nan("")) : row.weight(k);
}

// Reads the logits and the gradients of the weights and writes those of the logits: the least possible.
template <class T>
__global__ void project_rows_backward(SimplexRows<T> in, const T* dweights, T* dlogits) {
    const Row<T> row(in, blockIdx.x);
    const T* const from = dweights + blockIdx.x * in.choices;
    T* const to = dlogits + blockIdx.x * in.choices;
    const auto alive = [&](int64_t k) { return !row.broken() && row.weight(k) > 0; };
    const double count = sum_of(in.choices, [&](int64_t k) { return alive(k) ? 1.0 : 0.0; });
    const double mean =
        sum_of(in.choices, [&](int64_t k) { return alive(k) ? double(from[k]) : 0.0; }) / count;
    const double along =
        sum_of(in.choices, [&](int64_t k) { return alive(k) ? row.direction(k) * (from[k] - mean) : 0.0; });
    for (int64_t k = threadIdx.x; k < in.choices; k += 32) {
        const double g = from[k] - mean - row.direction(k) * along;
        to[k] = row.broken() ? T(nan("")) : alive(k) ? T(row.gain() * g) : T(0);
    }
}

template __global__ void project_rows(SimplexRows<float>, float*);
template __global__ void project_rows(SimplexRows<double>, double*);
template __global__ void project_rows_backward(SimplexRows<float>, const float*, float*);
template __global__ void project_rows_backward(SimplexRows<double>, const double*, double*);

}  // namespace

#ifndef __CUDACC_RTC__

template <class T>
void simplex_project(const SimplexRows<T>& in, T* weights, void* stream) {
    if (in.rows > 0) LAUNCH(project_rows<T>, in.rows, 32, stream, in, weights);
}

template <class T>
void simplex_project_backward(const SimplexRows<T>& in, const T* dweights, T* dlogits, void* stream) {
    if (in.rows > 0) LAUNCH(project_rows_backward<T>, in.rows, 32, stream, in, dweights, dlogits);
}

template void simplex_project(const SimplexRows<float>&, float*, void*);
template void simplex_project(const SimplexRows<double>&, double*, void*);
template void simplex_project_backward(const SimplexRows<float>&, const float*, float*, void*);
template void simplex_project_backward(const SimplexRows<double>&, const double*, double*, void*);

#endif

}  // namespace srnas_fast_cuda
