// One plane through one depthwise kernel: the convolution, its transpose and its weight gradient.
//
// Square kernels of 1, 3, 5 and 7 at stride 1 are unrolled and blocked over rows that share their inputs
// (rows `dilation` apart), so that an input row is loaded once for several outputs. The rest goes tap by tap.
#pragma once

#include "planes.h"

namespace srnas_fast {

// A depthwise kernel, (channels, size, size), and where its taps lie: in the planes of x, which it reads in
// steps, and in the planes dz of its output's gradient, from where it goes back to x.
template <class T>
struct Kernel {
    // The pixels (step i + y, step j + x) of dx take the taps whose distance to them is a multiple of step.
    struct Phase {
        int64_t y, x;
        std::vector<int64_t> taps, offsets;  // offsets in dz from the pixel (i, j)
    };
    const T* weights;
    int64_t size, dilation;
    std::vector<int64_t> offsets;  // of each tap in x from the pixel (step i, step j)
    std::vector<Phase> phases;

    Kernel(const T* weights, int64_t size, int64_t dilation, const Planes& x, const Planes& dz)
        : weights(weights), size(size), dilation(dilation) {
        const int64_t reach = dilation * (size / 2), step = x.step;
        for (int64_t t = 0; t < taps(); ++t) {
            const int64_t down = t / size * dilation - reach, right = t % size * dilation - reach;
            offsets.push_back(x.at(0, down, right) - x.at(0, 0, 0));
        }
        for (int64_t p = 0; p < step * step; ++p) {
            Phase phase{p / step, p % step, {}, {}};
            if (phase.y >= x.height || phase.x >= x.width) continue;
            for (int64_t t = 0; t < taps(); ++t) {
                const int64_t down = phase.y + reach - t / size * dilation;
                const int64_t right = phase.x + reach - t % size * dilation;
                if (down % step || right % step) continue;
                phase.taps.push_back(t);
                phase.offsets.push_back(dz.at(0, down / step, right / step) - dz.at(0, 0, 0));
            }
            phases.push_back(phase);
        }
    }
    int64_t taps() const { return size * size; }
};

// ---- out = start + sum over taps of weight * in, or out += that sum

template <class T, int K, int R, int V>
inline void convolve_tile(const T* in, int64_t in_row, int64_t dilation, const T* weights, Vec<T> start,
                          bool add, T* out, int64_t out_row) {
    constexpr int L = Lanes<T>;
    Vec<T> sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[r][v] = add ? load(out + r * out_row + v * L) : start;
    }
#pragma GCC unroll 1
    for (int j = 0; j < K; ++j) {
        Vec<T> column[K];
#pragma GCC unroll 8
        for (int i = 0; i < K; ++i) column[i] = broadcast(weights[i * K + j]);
        const T* row = in + j * dilation;
#pragma GCC unroll 16
        for (int i = 0; i < R + K - 1; ++i, row = step(row, in_row)) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const Vec<T> pixels = keep(load(row + v * L));
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    if (i - r >= 0 && i - r < K) sums[r][v] += column[i - r] * pixels;
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + r * out_row + v * L, sums[r][v]);
    }
}

template <class T, int K, int R>
inline void convolve_strip(const T* in, int64_t in_row, int64_t dilation, const T* weights, Vec<T> start,
                           bool add, T* out, int64_t out_row, int64_t width) {
    constexpr int L = Lanes<T>, V = 2;
    int64_t x = 0;
    for (; x + V * L <= width; x += V * L) {
        convolve_tile<T, K, R, V>(in + x, in_row, dilation, weights, start, add, out + x, out_row);
    }
    if (x < width) {
        convolve_tile<T, K, R, 1>(in + x, in_row, dilation, weights, start, add, out + x, out_row);
    }
}

// in: where the kernel's first tap for out[0] lies; width: a multiple of Lanes.
template <class T, int K>
void convolve_square(const T* in, int64_t in_row, int64_t dilation, const T* weights, T start, bool add,
                     T* out, int64_t out_row, int64_t rows, int64_t width) {
    const Vec<T> first = broadcast(start);
    const int64_t step = K == 1 ? 1 : dilation;  // rows that share inputs
    for (int64_t phase = 0; phase < std::min(step, rows); ++phase) {
        int64_t y = phase;
        const auto strip = [&](auto height) {
            constexpr int R = decltype(height)::value;
            for (; y + (R - 1) * step < rows; y += R * step) {
                convolve_strip<T, K, R>(in + y * in_row, step * in_row, dilation, weights, first, add,
                                        out + y * out_row, step * out_row, width);
            }
        };
        strip(std::integral_constant<int, 4>{});
        strip(std::integral_constant<int, 2>{});
        strip(std::integral_constant<int, 1>{});
    }
}

template <class T, int R, int V>
inline void convolve_taps_tile(const T* in, int64_t in_row, const int64_t* offsets, const T* weights,
                               int64_t taps, T start, bool add, T* out, int64_t out_row) {
    constexpr int L = Lanes<T>;
    Vec<T> sums[R][V];
    T* to = out;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, to = step(to, out_row)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[r][v] = add ? load(to + v * L) : broadcast(start);
    }
    for (int64_t t = 0; t < taps; ++t) {
        const Vec<T> weight = broadcast(weights[t]);
        const T* row = in + offsets[t];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r, row = step(row, in_row)) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] += weight * load(row + v * L);
        }
    }
    to = out;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, to = step(to, out_row)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(to + v * L, sums[r][v]);
    }
}

// Any set of taps: in + offsets[t] is where tap t reads for out[0]; in_row leads to the inputs of the next
// row.
template <class T>
void convolve_taps(const T* in, int64_t in_row, const int64_t* offsets, const T* weights, int64_t taps,
                   T start, bool add, T* out, int64_t out_row, int64_t rows, int64_t width) {
    constexpr int L = Lanes<T>;
    int64_t y = 0;
    const auto strip = [&](auto height) {
        constexpr int R = decltype(height)::value, V = R == 1 ? 4 : 2;
        for (; y + R <= rows; y += R) {
            const T* const from = in + y * in_row;
            T* const to = out + y * out_row;
            int64_t x = 0;
            for (; x + V * L <= width; x += V * L) {
                convolve_taps_tile<T, R, V>(from + x, in_row, offsets, weights, taps, start, add, to + x,
                                            out_row);
            }
            for (; x < width; x += L) {
                convolve_taps_tile<T, R, 1>(from + x, in_row, offsets, weights, taps, start, add, to + x,
                                            out_row);
            }
        }
    };
    strip(std::integral_constant<int, 4>{});
    strip(std::integral_constant<int, 1>{});
}

// Rows [y, y + rows) of the convolution of the plane x with the weights of `channel`, minus `centre`, for
// columns [0, width), a multiple of Lanes.
template <class T>
void convolve(const Kernel<T>& kernel, int64_t channel, const Planes& planes, const T* x, T centre, int64_t y,
              int64_t rows, T* out, int64_t out_row, int64_t width) {
    const T* weights = kernel.weights + channel * kernel.taps();
    const T* in = x + planes.at(0, y * planes.step, 0);
    const auto square = [&](auto size) {
        convolve_square<T, decltype(size)::value>(in + kernel.offsets[0], planes.row, kernel.dilation,
                                                  weights, -centre, false, out, out_row, rows, width);
    };
    const int64_t size = planes.step == 1 ? kernel.size : 0;
    if (size == 1) return square(std::integral_constant<int, 1>{});
    if (size == 3) return square(std::integral_constant<int, 3>{});
    if (size == 5) return square(std::integral_constant<int, 5>{});
    if (size == 7) return square(std::integral_constant<int, 7>{});
    convolve_taps(in, planes.step * planes.row, kernel.offsets.data(), weights, kernel.taps(), -centre, false,
                  out, out_row, rows, width);
}

// Writes the transposed convolution of a plane dz (padded planes, step 1) into a plane dx (no pad, the step
// of x), or adds it to what is there.
template <class T>
void convolve_transposed(const Kernel<T>& kernel, int64_t channel, const Planes& dz_planes, const T* dz,
                         const Planes& dx_planes, T* dx, bool add) {
    const T* weights = kernel.weights + channel * kernel.taps();
    const int64_t size = kernel.size, step = dx_planes.step, reach = kernel.dilation * (size / 2);
    if (step == 1 && (size == 1 || size == 3 || size == 5 || size == 7)) {
        T flipped[49];
        std::reverse_copy(weights, weights + kernel.taps(), flipped);
        const T* in = dz + dz_planes.at(0, -reach, -reach);
        const auto square = [&](auto k) {
            convolve_square<T, decltype(k)::value>(in, dz_planes.row, kernel.dilation, flipped, T(0), add, dx,
                                                   dx_planes.row, dx_planes.height, dx_planes.phase);
        };
        if (size == 1) return square(std::integral_constant<int, 1>{});
        if (size == 3) return square(std::integral_constant<int, 3>{});
        if (size == 5) return square(std::integral_constant<int, 5>{});
        return square(std::integral_constant<int, 7>{});
    }
    std::vector<T> chosen;
    for (const auto& phase : kernel.phases) {
        chosen.clear();
        for (const int64_t tap : phase.taps) chosen.push_back(weights[tap]);
        convolve_taps(dz + dz_planes.at(0, 0, 0), dz_planes.row, phase.offsets.data(), chosen.data(),
                      int64_t(chosen.size()), T(0), add, dx + dx_planes.at(0, phase.y, phase.x),
                      step * dx_planes.row, divide_up(dx_planes.height - phase.y, step), dx_planes.phase);
    }
}

// ---- weight gradients: sums over the plane of dz * x, one per tap

template <class T, int K, int J, int R>
inline void correlate_rows(const T* dz, int64_t dz_row, const T* x, int64_t x_row, int64_t dilation,
                           int64_t width, Vec<T> (&sums)[K * J]) {
    for (int64_t v = 0; v < width; v += Lanes<T>) {
        Vec<T> rows[R];
        const T* row = dz + v;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r, row = step(row, dz_row)) rows[r] = keep(load(row));
        row = x + v;
#pragma GCC unroll 16
        for (int i = 0; i < R + K - 1; ++i, row = step(row, x_row)) {
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) {
                const Vec<T> pixels = keep(load(row + j * dilation));
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    if (i - r >= 0 && i - r < K) sums[(i - r) * J + j] += rows[r] * pixels;
                }
            }
        }
    }
}

// J columns of a K x K kernel, from column `first` on; x: where the first tap for dz[0] lies.
template <class T, int K, int J>
void correlate_columns(const T* dz, int64_t dz_row, const T* x, int64_t x_row, int64_t dilation, int64_t rows,
                       int64_t width, int first, T* out) {
    Vec<T> sums[K * J] = {};
    x += first * dilation;
    for (int64_t phase = 0; phase < std::min(dilation, rows); ++phase) {
        int64_t y = phase;
        const auto strip = [&](auto height) {
            constexpr int R = decltype(height)::value;
            for (; y + (R - 1) * dilation < rows; y += R * dilation) {
                correlate_rows<T, K, J, R>(dz + y * dz_row, dilation * dz_row, x + y * x_row,
                                           dilation * x_row, dilation, width, sums);
            }
        };
        strip(std::integral_constant<int, 4>{});
        strip(std::integral_constant<int, 1>{});
    }
    T totals[K * J];
    sum_lanes<K * J>(sums, totals);
    for (int i = 0; i < K; ++i) {
        for (int j = 0; j < J; ++j) out[i * K + first + j] = totals[i * J + j];
    }
}

template <class T>
void correlate_taps(const T* dz, int64_t dz_row, const T* x, int64_t x_row, const int64_t* offsets,
                    int64_t taps, int64_t rows, int64_t width, T* out) {
    constexpr int G = 9;  // taps at a time
    for (int64_t first = 0; first < taps; first += G) {
        const int64_t begin = std::max<int64_t>(0, std::min(first, taps - G));  // the last group overlaps
        const int64_t count = std::min<int64_t>(G, taps);
        Vec<T> sums[G] = {};
        for (int64_t y = 0; y < rows; ++y) {
            for (int64_t v = 0; v < width; v += Lanes<T>) {
                const Vec<T> gradient = load(dz + y * dz_row + v);
                const T* pixels = x + y * x_row + v;
                if (count == G) {
#pragma GCC unroll 9
                    for (int t = 0; t < G; ++t) sums[t] += gradient * load(pixels + offsets[begin + t]);
                } else {
                    for (int64_t t = 0; t < count; ++t)
                        sums[t] += gradient * load(pixels + offsets[begin + t]);
                }
            }
        }
        T totals[G];
        sum_lanes<G>(sums, totals);
        std::copy(totals, totals + count, out + begin);
    }
}

// out[t] = sum over the plane of dz * (x as tap t sees it). dz is zero beyond its width.
template <class T>
void correlate(const Kernel<T>& kernel, const Planes& dz_planes, const T* dz, const Planes& x_planes,
               const T* x, T* out) {
    constexpr bool wide = kVectorBytes == 64;  // 32 registers, else 16
    const T* gradient = dz + dz_planes.at(0, 0, 0);
    const T* pixels = x + x_planes.at(0, 0, 0);
    const int64_t rows = dz_planes.height, width = round_up(dz_planes.width, Lanes<T>);
    const auto columns = [&](auto size, auto count, int first) {
        constexpr int K = decltype(size)::value, J = decltype(count)::value;
        correlate_columns<T, K, J>(gradient, dz_planes.row, pixels + kernel.offsets[0], x_planes.row,
                                   kernel.dilation, rows, width, first, out);
    };
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, wide ? 2 : 1> two;
    const std::integral_constant<int, 3> three;
    const std::integral_constant<int, 5> five;
    const std::integral_constant<int, 7> seven;
    if (x_planes.step == 1 && kernel.size == 3) {
        columns(three, three, 0);
    } else if (x_planes.step == 1 && kernel.size == 5) {
        int first = 0;
        if constexpr (wide) columns(five, three, first), first = 3;
        for (; first < 5; first += two) columns(five, two, first);
    } else if (x_planes.step == 1 && kernel.size == 7) {
        int first = 0;
        if constexpr (wide) columns(seven, three, first), first = 3;
        for (; first < 7; first += two) columns(seven, two, first);
    } else if (x_planes.step == 1 && kernel.size == 1) {
        columns(one, one, 0);
    } else {
        correlate_taps(gradient, dz_planes.row, pixels, x_planes.step * x_planes.row, kernel.offsets.data(),
                       kernel.taps(), rows, width, out);
    }
}

}  // namespace srnas_fast
