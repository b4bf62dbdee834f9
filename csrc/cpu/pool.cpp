// A row of an image is one line of numbers, and so is what a window's rows or columns are reduced to: all
// loops run along a line, in which the next column is `unit` elements further on. Lines have a margin on both
// sides, so that no loop asks where the image ends, and hold all columns, also those that a stride leaves
// out: it is cheaper to compute them than to step over them.
#include "pool.h"

#include <algorithm>
#include <limits>

#include "channel_pieces.h"  // Lines
#include "maximum.h"
#include "parallel.h"
#include "planes.h"

namespace srnas_fast {
namespace {

template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

struct Larger {
    template <class T>
    T operator()(T best, T value) const {
        return beats(value, best) ? value : best;
    }
};

struct Plus {
    template <class T>
    T operator()(T a, T b) const {
        return a + b;
    }
};

// ---- along a line: K rows or columns, `count` elements of each

template <int K, class Join, class T>
void join(Join joined, const T* const* lines, int64_t count, T* __restrict out) {
    for (int64_t j = 0; j < count; ++j) {
        T sum = lines[0][j];
        for (int t = 1; t < K; ++t) sum = joined(sum, lines[t][j]);
        out[j] = sum;
    }
}

template <int K, class T>
void weighted(const T* const* lines, const T* weights, int64_t count, T* __restrict out) {
    for (int64_t j = 0; j < count; ++j) {
        T sum = weights[0] * lines[0][j];
        for (int t = 1; t < K; ++t) sum += weights[t] * lines[t][j];
        out[j] = sum;
    }
}

// The best of K columns and which one it is, kept as a T like the values: so both fill vectors alike. `first`
// is the column that stands for a window without any value above -infinity.
template <int K, class T>
void best_column(const T* const* columns, const T* first, int64_t count, T* __restrict best,
                 T* __restrict column) {
    for (int64_t j = 0; j < count; ++j) {
        T most = kLowest<T>, at = first[j];
        for (int t = 0; t < K; ++t) {
            const T value = columns[t][j];
            const bool better = beats(value, most);
            most = better ? value : most;
            at = better ? T(t) : at;
        }
        best[j] = most;
        column[j] = at;
    }
}

// tap = row * K + column of the best of K rows; `first` is the first row inside the image.
template <int K, class T>
void best_tap(const T* const* bests, const T* const* columns, int64_t first, int64_t count,
              T* __restrict tap) {
    const T* const stand_in = columns[first];
    for (int64_t j = 0; j < count; ++j) {
        T most = kLowest<T>, at = T(first * K) + stand_in[j];
        for (int t = 0; t < K; ++t) {
            const T value = bests[t][j], candidate = T(t * K) + columns[t][j];
            const bool better = beats(value, most);
            most = better ? value : most;
            at = better ? candidate : at;
        }
        tap[j] = at;
    }
}

// dx = the sum of the dy that the K x K windows around a pixel give to it; taps[q] and dys[q] are the windows
// in the q-th row. The pixel is the last tap of the first window and the first tap of the last one.
template <int K, class T>
void collect(const T* const* taps, const T* const* dys, int64_t unit, int64_t count, T* __restrict dx) {
    for (int64_t j = 0; j < count; ++j) {
        T sum = 0;
#pragma GCC unroll 8
        for (int q = 0; q < K; ++q) {
#pragma GCC unroll 8
            for (int u = 0; u < K; ++u) {
                const T tap = taps[q][j + u * unit], dy = dys[q][j + u * unit];
                sum += tap == T(K * K - 1 - q * K - u) ? dy : T(0);
            }
        }
        dx[j] = sum;
    }
}

// ---- lines

// Room for lines of `length` elements, at first 0.
template <class T>
class Store {
    int64_t line_;
    Lines<T> values_;

public:
    Store(int64_t lines, int64_t length)
        : line_(round_up(length, 64 / int64_t(sizeof(T)))), values_(lines * line_) {}
    T* line(int64_t index) { return values_.data() + index * line_; }
    void fill(int64_t index, T value) { std::fill(line(index), line(index + 1), value); }
};

template <class T, int K>
struct Pool : PoolShape {
    static constexpr int64_t reach = K / 2;
    int64_t margin;  // elements

    explicit Pool(const PoolShape& shape) : PoolShape(shape), margin(reach * unit) {}

    // For each thread `lines` lines with margins.
    std::vector<Store<T>> stores(int threads, int64_t lines) const {
        return std::vector<Store<T>>(threads, Store<T>(lines, row() + 2 * margin));
    }

    // work(plane, first row, row after the last one, thread) for bands of the planes' `rows` rows: where
    // there are few planes, as many bands as keep all threads busy. A row of a result is computed alike in
    // any band.
    template <class Work>
    void for_bands(int64_t rows, int threads, Work work) const {
        const int64_t wanted = divide_up(4 * threads, std::max<int64_t>(1, planes));
        const int64_t bands = std::max<int64_t>(1, std::min(wanted, rows / (4 * K)));
        for_pieces(planes * bands, threads, 0, [&](int64_t piece, int thread) {
            const int64_t plane = piece / bands, band = piece % bands;
            work(plane, rows * band / bands, rows * (band + 1) / bands, thread);
        });
    }

    // work(element in a line of all columns, element in one of the stride-th, number of them) for what lies
    // together in both.
    template <class Work>
    void for_runs(Work work) const {
        if (stride == 1) return work(0, 0, row());
        for (int64_t x = 0; x < out_width(); ++x) work(x * stride * unit, x * unit, unit);
    }

    // How many pixels of a window around `centre` count, in a direction of `length` pixels.
    T pixels(int64_t centre, int64_t length, bool count_padding) const {
        const int64_t first = std::max<int64_t>(centre - reach, 0),
                      last = std::min(centre + reach, length - 1);
        return T(count_padding ? K : last - first + 1);
    }

    // The same for the elements of a line of stride-th columns.
    Lines<T> column_pixels(bool count_padding) const {
        Lines<T> line(out_row());
        for (int64_t x = 0; x < out_width(); ++x) {
            std::fill_n(line.data() + x * unit, unit, pixels(x * stride, width, count_padding));
        }
        return line;
    }

    // Window t of K along a line with margins.
    void columns(const T* line, const T** taps) const {
        for (int t = 0; t < K; ++t) taps[t] = line + t * unit;
    }

    // One row of x, its pixels together.
    void gather(const PoolInput<T>& x, int64_t plane, int64_t y, T* line) const {
        const T* const from = x.row(plane, y);
        if (x.pixel == unit) return copy_line(from, line, row());
        for (int64_t i = 0; i < width; ++i) copy_line(from + i * x.pixel, line + i * unit, unit);
    }

    bool window_at(int64_t y) const { return y >= 0 && y < height && y % stride == 0; }
};

// write(plane, row, line): the joined windows around all columns of a row.
template <int K, class Join, class T, class Write>
void reduce(const Pool<T, K>& pool, Join joined, T neutral, const PoolInput<T>& x, int threads, Write write) {
    const int64_t row = pool.row();
    const bool apart = x.pixel != pool.unit;  // then a row is gathered first, into line kOwn + y % K
    enum { kOutside, kLine, kResult, kOwn };
    auto stores = pool.stores(threads, kOwn + (apart ? K : 0));
    for (auto& store : stores) {
        for (const int i : {kOutside, kLine}) store.fill(i, neutral);
    }
    pool.for_bands(pool.out_height(), threads, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
        Store<T>& store = stores[thread];
        T *const outside = store.line(kOutside), *const line = store.line(kLine),
                 *const result = store.line(kResult);
        const T* taps[K];
        int64_t gathered = std::max<int64_t>(begin * pool.stride - pool.reach, 0);
        for (int64_t y = begin; y < end; ++y) {
            const int64_t first = y * pool.stride - pool.reach, last = std::min(first + K, pool.height);
            if (apart) {
                for (gathered = std::max(gathered, first); gathered < last; ++gathered) {
                    pool.gather(x, plane, gathered, store.line(kOwn + gathered % K));
                }
            }
            for (int t = 0; t < K; ++t) {
                const int64_t at = first + t;
                const bool inside = at >= 0 && at < pool.height;
                taps[t] = !inside ? outside : apart ? store.line(kOwn + at % K) : x.row(plane, at);
            }
            join<K>(joined, taps, row, line + pool.margin);
            pool.columns(line, taps);
            join<K>(joined, taps, row, result);
            write(plane, y, result);
        }
    });
}

template <int K, class T>
void maxima(const Pool<T, K>& pool, const PoolInput<T>& x, T* y, int threads) {
    reduce(pool, Larger{}, kLowest<T>, x, threads, [&](int64_t plane, int64_t row, const T* line) {
        T* const out = y + (plane * pool.out_height() + row) * pool.out_row();
        pool.for_runs(
            [&](int64_t from, int64_t to, int64_t count) { copy_line(line + from, out + to, count); });
    });
}

template <int K, class T>
void averages(const Pool<T, K>& pool, bool count_padding, const PoolInput<T>& x, T* y, int threads) {
    const Lines<T> widths = pool.column_pixels(count_padding);
    reduce(pool, Plus{}, T(0), x, threads, [&](int64_t plane, int64_t row, const T* line) {
        const T height = pool.pixels(row * pool.stride, pool.height, count_padding);
        T* const out = y + (plane * pool.out_height() + row) * pool.out_row();
        pool.for_runs([&](int64_t from, int64_t to, int64_t count) {
            for (int64_t j = 0; j < count; ++j)
                out[to + j] = line[from + j] / (height * widths.data()[to + j]);
        });
    });
}

template <int K, class T>
void maxima_backward(const Pool<T, K>& pool, const T* dy, const PoolInput<T>& x, T* dx, int threads) {
    const int64_t reach = pool.reach, row = pool.row(), height = pool.height;
    enum { kOutside, kLine, kNone, kOwn };       // lines of their own
    enum { kBest, kColumn, kTap, kDy, kRings };  // rows in turns: K lines each, row y in line y % K
    auto stores = pool.stores(threads, kOwn + kRings * K);
    for (auto& store : stores) {
        for (const int i : {kOutside, kLine}) store.fill(i, kLowest<T>);
    }
    Lines<T> first(row);  // the first column of a window that is inside the image
    for (int64_t x = 0; x < std::min(reach, pool.width); ++x) {
        std::fill_n(first.data() + x * pool.unit, pool.unit, T(reach - x));
    }
    pool.for_bands(height, threads, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
        Store<T>& store = stores[thread];
        const auto ring = [&](int which, int64_t y) { return store.line(kOwn + which * K + y % K); };
        const T *upper[K], *lower[K];

        const auto search_columns = [&](int64_t y) {  // in a row of x
            T* const line = store.line(kLine);
            pool.gather(x, plane, y, line + pool.margin);
            pool.columns(line, upper);
            best_column<K>(upper, first.data(), row, ring(kBest, y), ring(kColumn, y));
        };
        const auto search_rows = [&](int64_t y) {  // for the windows around row y
            for (int t = 0; t < K; ++t) {
                const int64_t at = y + t - reach;
                const bool inside = at >= 0 && at < height;
                upper[t] = inside ? ring(kBest, at) : store.line(kOutside);
                lower[t] = inside ? ring(kColumn, at) : store.line(kNone);
            }
            best_tap<K>(upper, lower, std::max<int64_t>(reach - y, 0), row, ring(kTap, y) + pool.margin);
            const T* const given = dy + (plane * pool.out_height() + y / pool.stride) * pool.out_row();
            T* const spread =
                ring(kDy, y) + pool.margin;  // 0 between the stride-th columns and in the margins
            pool.for_runs([&](int64_t to, int64_t from, int64_t count) {
                copy_line(given + from, spread + to, count);
            });
        };

        int64_t window = divide_up(std::max<int64_t>(begin - reach, 0), pool.stride) * pool.stride;
        int64_t searched = std::max<int64_t>(window - reach, 0);
        for (int64_t y = begin; y < end; ++y) {
            for (; window < std::min(y + reach + 1, height); window += pool.stride) {
                for (; searched < std::min(window + reach + 1, height); ++searched) search_columns(searched);
                search_rows(window);
            }
            for (int t = 0; t < K; ++t) {
                const int64_t at = y + t - reach;
                upper[t] = pool.window_at(at) ? ring(kTap, at) : store.line(kNone);
                lower[t] = pool.window_at(at) ? ring(kDy, at) : store.line(kNone);
            }
            collect<K>(upper, lower, pool.unit, row, dx + (plane * height + y) * row);
        }
    });
}

template <int K, class T>
void averages_backward(const Pool<T, K>& pool, bool count_padding, const T* dy, T* dx, int threads) {
    auto stores = pool.stores(threads, 3);
    const Lines<T> widths = pool.column_pixels(count_padding);
    pool.for_bands(pool.height, threads, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
        const T* const windows = dy + plane * pool.out_height() * pool.out_row();
        Store<T>& store = stores[thread];
        T *const none = store.line(0), *const sum = store.line(1), *const line = store.line(2);
        const T* taps[K];
        T shares[K];
        for (int64_t y = begin; y < end; ++y) {
            for (int t = 0; t < K; ++t) {
                const int64_t at = y + t - pool.reach;
                taps[t] = pool.window_at(at) ? windows + at / pool.stride * pool.out_row() : none;
                shares[t] = T(1) / pool.pixels(at, pool.height, count_padding);
            }
            weighted<K>(taps, shares, pool.out_row(), sum);
            pool.for_runs([&](int64_t to, int64_t from, int64_t count) {
                T* const spread =
                    line + pool.margin + to;  // 0 between the stride-th columns and in the margins
                const T* const counts = widths.data() + from;
                for (int64_t j = 0; j < count; ++j) spread[j] = sum[from + j] / counts[j];
            });
            pool.columns(line, taps);
            join<K>(Plus{}, taps, pool.row(), dx + (plane * pool.height + y) * pool.row());
        }
    });
}

// work(Pool) for the shape's size.
template <class T, class Work>
void with_pool(const PoolShape& shape, Work work) {
    if (shape.size == 3) work(Pool<T, 3>(shape));
    if (shape.size == 5) work(Pool<T, 5>(shape));
    if (shape.size == 7) work(Pool<T, 7>(shape));
}

}  // namespace

template <class T>
void max_pool(const PoolShape& shape, const PoolInput<T>& x, T* y, int threads) {
    with_pool<T>(shape, [&](const auto& pool) { maxima(pool, x, y, threads); });
}

template <class T>
void max_pool_backward(const PoolShape& shape, const T* dy, const PoolInput<T>& x, T* dx, int threads) {
    with_pool<T>(shape, [&](const auto& pool) { maxima_backward(pool, dy, x, dx, threads); });
}

template <class T>
void average_pool(const PoolShape& shape, bool count_padding, const PoolInput<T>& x, T* y, int threads) {
    with_pool<T>(shape, [&](const auto& pool) { averages(pool, count_padding, x, y, threads); });
}

template <class T>
void average_pool_backward(const PoolShape& shape, bool count_padding, const T* dy, T* dx, int threads) {
    with_pool<T>(shape, [&](const auto& pool) { averages_backward(pool, count_padding, dy, dx, threads); });
}

#define INSTANTIATE(T)                                                                            \
    template void max_pool<T>(const PoolShape&, const PoolInput<T>&, T*, int);                    \
    template void max_pool_backward<T>(const PoolShape&, const T*, const PoolInput<T>&, T*, int); \
    template void average_pool<T>(const PoolShape&, bool, const PoolInput<T>&, T*, int);          \
    template void average_pool_backward<T>(const PoolShape&, bool, const T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
