#include "weighted_sum.h"

#include "channel_pieces.h"
#include "planes.h"

namespace srnas_fast {
namespace {

// One row of coefficients per candidate, as ChannelPieces lays them out.
template <class T>
Lines<T> table(const ChannelPieces& pieces, const T* values, int64_t rows, bool per_channel) {
    const int64_t width = pieces.table_width(), step = per_channel ? pieces.channels() : 1;
    Lines<T> result(rows * width);
    for (int64_t k = 0; k < rows; ++k) {
        pieces.fill(values ? values + k * step : nullptr, per_channel ? 1 : 0, result.data() + k * width);
    }
    return result;
}

// Calls run(K, first) for the candidates first .. first + K - 1, K a compile-time constant up to kTogether:
// one loop handles so many, so that y is loaded and stored once for them.
template <int kTogether, class Run>
void in_groups(int64_t candidates, Run run) {
    int64_t first = 0;
    for (; first + kTogether <= candidates; first += kTogether) {
        run(std::integral_constant<int, kTogether>(), first);
    }
    for (; first < candidates; ++first) run(std::integral_constant<int, 1>(), first);
}

// The loops over a row of `count` elements, or over R rows of a `period` each. PLANAR: coefficients are
// single numbers, else there is one for each element; those of the next candidate are `width` further on.

template <bool PLANAR, class T>
void begin(T* __restrict y, bool accumulate, const T* __restrict shift, int64_t count) {
    if (accumulate) {
        for (int64_t j = 0; j < count; ++j) y[j] += shift[PLANAR ? 0 : j];
    } else {
        for (int64_t j = 0; j < count; ++j) y[j] = shift[PLANAR ? 0 : j];
    }
}

template <bool PLANAR, int K, class T>
void add(T* __restrict y, const T* const* z, const T* __restrict weights, const T* __restrict centres,
         int64_t width, int64_t count) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
        T sum = y[j];
        for (int k = 0; k < K; ++k) {
            const int64_t i = k * width + (PLANAR ? 0 : j);
            sum += weights[i] * (z[k][j] - centres[i]);
        }
        y[j] = sum;
    }
}

template <bool PLANAR, int R, class T>
void add_products(T* __restrict products, const T* __restrict dy, const T* __restrict z,
                  const T* __restrict centres, int64_t period, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
        const T centre = centres[PLANAR ? 0 : j];
        T sum = 0;
        for (int r = 0; r < R; ++r) sum += dy[r * period + j] * (z[r * period + j] - centre);
        products[j] += sum;
    }
}

template <bool PLANAR, int R, class T>
void scale(T* __restrict dz, const T* __restrict dy, const T* __restrict weights, int64_t period,
           int64_t count) {
    for (int r = 0; r < R; ++r) {
        for (int64_t j = 0; j < count; ++j) dz[r * period + j] = weights[PLANAR ? 0 : j] * dy[r * period + j];
    }
}

template <int R, class T>
void add_rows(T* __restrict sums, const T* __restrict dy, int64_t period, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
        T sum = 0;
        for (int r = 0; r < R; ++r) sum += dy[r * period + j];
        sums[j] += sum;
    }
}

template <bool PLANAR, class T>
void forward(T* y, bool accumulate, const WeightedSum<T>& sum, const T* shift, const ChannelPieces& pieces,
             int threads) {
    const int64_t candidates = sum.zs.size(), width = pieces.table_width();
    const Lines<T> weights = table(pieces, sum.weights, candidates, sum.per_channel);
    const Lines<T> centres = table(pieces, sum.centres, candidates, true);
    const Lines<T> shifts = table(pieces, shift, 1, true);
    constexpr int kTogether = PLANAR ? 4 : 2;
#pragma omp parallel num_threads(threads) if (pieces.count() > 1)
    {
        Lines<T> gathered(kTogether * pieces.period());
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pieces.count(); ++p) {
            const Piece piece = pieces.piece(p);
            for (int64_t done = 0; done < piece.count; done += pieces.period()) {
                const int64_t count = std::min(pieces.period(), piece.count - done), at = piece.begin + done;
                if (shift || !accumulate)
                    begin<PLANAR>(y + at, accumulate, shifts.data() + piece.channel, count);
                in_groups<kTogether>(candidates, [&](auto group, int64_t k) {
                    constexpr int K = decltype(group)::value;
                    const T* z[K];
                    for (int i = 0; i < K; ++i)
                        z[i] = sum.zs[k + i].read(at, count, gathered.data() + i * pieces.period());
                    const int64_t row = k * width + piece.channel;
                    add<PLANAR, K>(y + at, z, weights.data() + row, centres.data() + row, width, count);
                });
            }
        }
    }
}

template <bool PLANAR, class T>
void backward(const T* dy, const WeightedSum<T>& sum, T* dweights, T* dysum, const std::vector<T*>& dzs,
              const ChannelPieces& pieces, int threads) {
    const int64_t products = sum.zs.size(), candidates = dzs.size();
    const int64_t width = pieces.table_width(), period = pieces.period();
    const Lines<T> weights = table(pieces, sum.weights, candidates, sum.per_channel);
    const Lines<T> centres = table(pieces, sum.centres, products, true);
    // Per piece: the products of each candidate, then the sum of dy, each for the channels of the piece.
    const int64_t share = (products + 1) * pieces.width();
    std::vector<double> partial(pieces.count() * share);
#pragma omp parallel num_threads(threads) if (pieces.count() > 1)
    {
        Lines<T> sums((products + 1) * period), gathered(ChannelPieces::kRows * period);
        T* const total = sums.data() + products * period;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pieces.count(); ++p) {
            const Piece piece = pieces.piece(p);
            sums.clear();
            pieces.walk(piece, [&](auto rows, int64_t at, int64_t count) {
                constexpr int R = decltype(rows)::value;
                add_rows<R>(total, dy + at, period, count);
                for (int64_t k = 0; k < products; ++k) {
                    const T* const z = sum.zs[k].read(at, (R - 1) * period + count, gathered.data());
                    add_products<PLANAR, R>(sums.data() + k * period, dy + at, z,
                                            centres.data() + k * width + piece.channel, period, count);
                }
                for (int64_t k = 0; k < candidates; ++k) {
                    const T* const weight = weights.data() + k * width + piece.channel;
                    if (dzs[k]) scale<PLANAR, R>(dzs[k] + at, dy + at, weight, period, count);
                }
            });
            for (int64_t k = 0; k <= products; ++k) {
                pieces.fold(sums.data() + k * period, partial.data() + p * share + k * pieces.width());
            }
        }
    }
    std::vector<double> totals((products + 1) * sum.channels);
    for (int64_t p = 0; p < pieces.count(); ++p) {
        const int64_t channel = pieces.piece(p).channel;
        for (int64_t k = 0; k <= products; ++k) {
            for (int64_t c = 0; c < pieces.width(); ++c) {
                totals[k * sum.channels + channel + c] += partial[p * share + k * pieces.width() + c];
            }
        }
    }
    for (int64_t k = 0; k < products; ++k) {
        const double* const row = totals.data() + k * sum.channels;
        if (sum.per_channel) {
            for (int64_t c = 0; c < sum.channels; ++c)
                dweights[k * sum.channels + c] = static_cast<T>(row[c]);
        } else {
            dweights[k] = static_cast<T>(std::accumulate(row, row + sum.channels, 0.0));
        }
    }
    for (int64_t c = 0; c < sum.channels; ++c) dysum[c] = static_cast<T>(totals[products * sum.channels + c]);
}

}  // namespace

template <class T>
const T* Blocks<T>::read(int64_t at, int64_t count, T* line) const {
    if (step == block) return data + at;
    const int64_t first = at % block;  // of the block that `at` is in
    const T* from = data + at / block * step;
    if (first + count <= block) return from + first;
    for (int64_t done = -first; done < count; done += block, from += step) {
        const int64_t skipped = std::max<int64_t>(-done, 0);
        copy_line(from + skipped, line + done + skipped, std::min(block, count - done) - skipped);
    }
    return line;
}

template <class T>
void weighted_sum(T* y, bool accumulate, const WeightedSum<T>& sum, const T* shift, int threads) {
    const ChannelPieces pieces(sum.size, sum.channels, sum.inner);
    auto* const run = pieces.planar() ? forward<true, T> : forward<false, T>;
    run(y, accumulate, sum, shift, pieces, threads);
}

template <class T>
void weighted_sum_backward(const T* dy, const WeightedSum<T>& sum, T* dweights, T* dysum,
                           const std::vector<T*>& dzs, int threads) {
    const ChannelPieces pieces(sum.size, sum.channels, sum.inner);
    auto* const run = pieces.planar() ? backward<true, T> : backward<false, T>;
    run(dy, sum, dweights, dysum, dzs, pieces, threads);
}

#define INSTANTIATE(T)                                                          \
    template void weighted_sum(T*, bool, const WeightedSum<T>&, const T*, int); \
    template void weighted_sum_backward(const T*, const WeightedSum<T>&, T*, T*, const std::vector<T*>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
