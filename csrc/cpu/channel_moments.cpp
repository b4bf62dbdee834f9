#include "channel_moments.h"

#include <cmath>

#include "channel_pieces.h"

namespace srnas_fast {
namespace {

template <bool PLANAR, int R, class T>
void add(T* __restrict sums, T* __restrict squares, const T* __restrict z, const T* __restrict centres,
         int64_t period, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
        const T centre = centres[PLANAR ? 0 : j];
        T sum = 0, square = 0;
        for (int r = 0; r < R; ++r) {
            const T d = z[r * period + j] - centre;
            sum += d;
            square += d * d;
        }
        sums[j] += sum;
        squares[j] += square;
    }
}

// The mean of each channel in a piece, and the sum of squares around it: from the sums of d and d^2, where d
// is the distance from the mean over the piece's first row. With m of n pixels in that row, its mean is
// within sqrt(n / m) standard deviations of the piece's whatever the numbers are, so few digits can be lost.
template <bool PLANAR, class T>
void piece_moments(const T* z, const ChannelPieces& pieces, double* means, double* squares, int threads) {
    const int64_t period = pieces.period(), width = pieces.width();
#pragma omp parallel num_threads(threads) if (pieces.count() > 1)
    {
        Lines<T> sums(period), square_sums(period), centres(period);
        std::vector<double> rough(width), rest(width);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pieces.count(); ++p) {
            const Piece piece = pieces.piece(p);
            const int64_t first = std::min(period, piece.count);
            sums.clear();
            std::copy(z + piece.begin, z + piece.begin + first, sums.data());
            std::fill(rough.begin(), rough.end(), 0.0);
            pieces.fold(sums.data(), rough.data());
            for (double& value : rough) {
                value = static_cast<T>(value / static_cast<double>(first / width));
                if (!std::isfinite(value)) value = 0;  // an infinite mean has a finite distance from 0 only
            }
            pieces.spread(rough.data(), centres.data());

            sums.clear();
            square_sums.clear();
            pieces.walk(piece, [&](auto rows, int64_t at, int64_t count) {
                add<PLANAR, decltype(rows)::value>(sums.data(), square_sums.data(), z + at, centres.data(),
                                                   period, count);
            });
            std::fill(rest.begin(), rest.end(), 0.0);
            pieces.fold(sums.data(), rest.data());
            pieces.fold(square_sums.data(), squares + p * width);
            const double pixels = static_cast<double>(piece.count / width);
            for (int64_t c = 0; c < width; ++c) {
                means[p * width + c] = rough[c] + rest[c] / pixels;
                squares[p * width + c] -= rest[c] * rest[c] / pixels;
            }
        }
    }
}

}  // namespace

template <class T>
void channel_moments(const T* z, int64_t size, int64_t channels, int64_t inner, T* mean, T* variance,
                     int threads) {
    const ChannelPieces pieces(size, channels, inner);
    const int64_t width = pieces.width();
    std::vector<double> means(pieces.count() * width), squares(pieces.count() * width);
    auto* const run = width == 1 ? piece_moments<true, T> : piece_moments<false, T>;
    run(z, pieces, means.data(), squares.data(), threads);

    // The pieces are merged by Chan's formula, in the order of the tensor.
    const double total = static_cast<double>(size / channels);
    std::vector<double> mean_sum(channels), square_sum(channels);
    const auto each = [&](auto merge) {
        for (int64_t p = 0; p < pieces.count(); ++p) {
            const Piece piece = pieces.piece(p);
            for (int64_t c = 0; c < width; ++c)
                merge(piece.channel + c, p * width + c, piece.count / width / total);
        }
    };
    each([&](int64_t c, int64_t at, double share) { mean_sum[c] += share * means[at]; });
    each([&](int64_t c, int64_t at, double share) {
        const double distance = means[at] - mean_sum[c];
        square_sum[c] += squares[at] / total + share * distance * distance;
    });
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] = static_cast<T>(mean_sum[c]);
        variance[c] = static_cast<T>(square_sum[c]);
    }
}

template void channel_moments(const float*, int64_t, int64_t, int64_t, float*, float*, int);
template void channel_moments(const double*, int64_t, int64_t, int64_t, double*, double*, int);

}  // namespace srnas_fast
