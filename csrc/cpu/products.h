// Products of small matrices with rows of pixels.
#pragma once

#include "planes.h"

namespace srnas_fast {

// A small matrix, cut into bands of at most kBand rows, each stored column by column.
template <class T>
class Packed {
public:
    static constexpr int kBand = kVectorBytes == 64 ? 6 : 4;

    Packed(const T* matrix, int64_t rows, int64_t columns)
        : rows_(rows), columns_(columns), values_(rows * columns) {
        T* out = values_.data();
        for (int64_t band = 0; band < bands(); ++band) {
            const int64_t height = begin(band + 1) - begin(band);
            const T* const first = matrix + begin(band) * columns;
            for (int64_t r = 0; r < height; ++r) {
                for (int64_t c = 0; c < columns; ++c) out[c * height + r] = first[r * columns + c];
            }
            out += height * columns;
        }
    }
    int64_t columns() const { return columns_; }
    int64_t bands() const { return divide_up(rows_, kBand); }
    int64_t begin(int64_t band) const { return rows_ * band / bands(); }
    const T* values(int64_t band) const { return values_.data() + begin(band) * columns_; }

private:
    int64_t rows_, columns_;
    std::vector<T> values_;
};

template <class T, int M, int V>
inline void multiply_tile(const T* values, int64_t columns, const T* start, const T* in, int64_t in_row,
                          T* out, int64_t out_row) {
    constexpr int L = Lanes<T>;
    Vec<T> sums[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            sums[m][v] = start ? broadcast(start[m]) : load(out + m * out_row + v * L);
    }
    for (int64_t c = 0; c < columns; ++c) {
        Vec<T> pixels[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) pixels[v] = load(in + c * in_row + v * L);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec<T> value = broadcast(values[c * M + m]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[m][v] += value * pixels[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + m * out_row + v * L, sums[m][v]);
    }
}

template <class T, int V>
void multiply_columns(const Packed<T>& matrix, const T* start, const T* in, int64_t in_row, T* out,
                      int64_t out_row) {
    for (int64_t band = 0; band < matrix.bands(); ++band) {
        const int64_t row = matrix.begin(band);
        const auto tile = [&](auto height) {
            multiply_tile<T, decltype(height)::value, V>(matrix.values(band), matrix.columns(),
                                                         start ? start + row : nullptr, in, in_row,
                                                         out + row * out_row, out_row);
        };
        switch (matrix.begin(band + 1) - row) {
            case 1:
                tile(std::integral_constant<int, 1>{});
                break;
            case 2:
                tile(std::integral_constant<int, 2>{});
                break;
            case 3:
                tile(std::integral_constant<int, 3>{});
                break;
            case 4:
                tile(std::integral_constant<int, 4>{});
                break;
            case 5:
                tile(std::integral_constant<int, std::min(5, Packed<T>::kBand)>{});
                break;
            default:
                tile(std::integral_constant<int, Packed<T>::kBand>{});
        }
    }
}

// out[r][p] = start[r] + sum_c matrix[r][c] in[c][p] for p < pixels, a multiple of Lanes; without start it is
// added to what out holds.
template <class T>
void multiply(const Packed<T>& matrix, const T* start, const T* in, int64_t in_row, T* out, int64_t out_row,
              int64_t pixels) {
    constexpr int kMost = kVectorBytes == 64 ? 4 : 2;
    const int64_t vectors = pixels / Lanes<T>, tiles = divide_up(vectors, kMost);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = vectors * tile / tiles, p = begin * Lanes<T>;
        const auto columns = [&](auto width) {
            multiply_columns<T, decltype(width)::value>(matrix, start, in + p, in_row, out + p, out_row);
        };
        switch (vectors * (tile + 1) / tiles - begin) {
            case 1:
                columns(std::integral_constant<int, 1>{});
                break;
            case 2:
                columns(std::integral_constant<int, 2>{});
                break;
            case 3:
                columns(std::integral_constant<int, std::min(3, kMost)>{});
                break;
            default:
                columns(std::integral_constant<int, kMost>{});
        }
    }
}

template <class T, int A, int B>
inline void outer_tile(const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t pixels, double* out,
                       int64_t out_row) {
    Vec<T> sums[A * B] = {};
    for (int64_t p = 0; p < pixels; p += Lanes<T>) {
        Vec<T> right[B];
#pragma GCC unroll 4
        for (int j = 0; j < B; ++j) right[j] = keep(load(b + j * b_row + p));
#pragma GCC unroll 4
        for (int i = 0; i < A; ++i) {
            const Vec<T> left = keep(load(a + i * a_row + p));
#pragma GCC unroll 4
            for (int j = 0; j < B; ++j) sums[i * B + j] += left * right[j];
        }
    }
    T totals[A * B];
    sum_lanes<A * B>(sums, totals);
    for (int i = 0; i < A; ++i) {
        for (int j = 0; j < B; ++j) out[i * out_row + j] += totals[i * B + j];
    }
}

// out[i][j] += sum_p a[i][p] b[j][p], out (rows, columns); upper: only the tiles that reach above the
// diagonal.
template <class T>
void add_outer(const T* a, int64_t a_row, int64_t rows, const T* b, int64_t b_row, int64_t columns,
               int64_t pixels, bool upper, double* out) {
    constexpr int B = kVectorBytes == 64 ? 4 : 3;  // a tile is 4 x B
    for (int64_t i = 0; i < rows;) {
        const bool tall = i + 4 <= rows;
        for (int64_t j = upper ? i / B * B : 0; j < columns;) {
            const bool broad = j + B <= columns;
            const T *from = a + i * a_row, *with = b + j * b_row;
            double* to = out + i * columns + j;
            if (tall && broad) {
                outer_tile<T, 4, B>(from, a_row, with, b_row, pixels, to, columns);
            } else if (tall) {
                outer_tile<T, 4, 1>(from, a_row, with, b_row, pixels, to, columns);
            } else if (broad) {
                outer_tile<T, 1, B>(from, a_row, with, b_row, pixels, to, columns);
            } else {
                outer_tile<T, 1, 1>(from, a_row, with, b_row, pixels, to, columns);
            }
            j += broad ? B : 1;
        }
        i += tall ? 4 : 1;
    }
}

}  // namespace srnas_fast
