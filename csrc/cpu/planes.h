// Planes: how a kernel sees an image inside. Channel after channel, rows of whole vectors, a border of zeros;
// the tensors outside may have any strides and are transposed on the way in and out.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace srnas_fast {

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Elements of `rows` x `width`, stretched to an odd number of vectors: then the same pixel of many channels
// does not fall on the same few sets of a cache.
template <class T>
int64_t spread(int64_t elements) {
    const int64_t vectors = divide_up(elements, Lanes<T>);
    return (vectors | 1) * Lanes<T>;
}

// One tensor outside: (N, C, H, W) with strides.
template <class T>
struct Tensor {
    T* data;
    int64_t n, c, h, w;  // strides, in elements
    Tensor part(int64_t image, int64_t channel = 0, int64_t y = 0) const {
        return {data + image * n + channel * c + y * h, n, c, h, w};
    }
    Tensor<const T> read_only() const { return {data, n, c, h, w}; }
};

// A stack of planes, height x width pixels with `pad` zeros on every side. With step > 1 a row lies in `step`
// phases, one after the other, column x + pad in phase (x + pad) % step: so a walk over every step-th pixel
// reads neighbours.
struct Planes {
    int64_t height, width, pad, step;
    int64_t phase, row, plane;  // elements from one to the next

    template <class T>
    static Planes make(int64_t height, int64_t width, int64_t pad, int64_t step) {
        Planes p{height, width, pad, step, 0, 0, 0};
        p.phase = round_up(divide_up(width + 2 * pad, step), Lanes<T>);
        p.row = step * p.phase;
        p.plane = spread<T>((height + 2 * pad) * p.row);
        return p;
    }
    // What `channels` planes take, with room for vectors that begin inside and end outside.
    template <class T>
    int64_t size(int64_t channels) const {
        return channels * plane + (2 * pad / step + 2) * Lanes<T>;
    }
    int64_t column(int64_t x) const { return (x + pad) % step * phase + (x + pad) / step; }
    int64_t at(int64_t channel, int64_t y, int64_t x) const {
        return channel * plane + (y + pad) * row + column(x);
    }
};

// ---- the border: tensors outside <-> rows inside. Reading (in) or writing, with the same loops.

template <class T, bool in>
using Outside = std::conditional_t<in, const T, T>;

template <class T, int L, bool in>
void copy_transposed(Outside<T, in>* outside, int64_t pixel, T* inside, int64_t channel, int64_t channels,
                     int64_t width) {
    for (int64_t x0 = 0; x0 < width; x0 += L) {
        const int64_t x = std::min(x0, width - L);  // the last blocks overlap their neighbours
        for (int64_t c0 = 0; c0 < channels; c0 += L) {
            const int64_t c = std::min(c0, channels - L);
            Outside<T, in>* pixels = outside + x * pixel + c;
            T* rows = inside + c * channel + x;
            Vec<T, L> block[L];
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) block[i] = load<T, L>(in ? pixels + i * pixel : rows + i * channel);
            transpose<T, L>(block);
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
                if constexpr (in) {
                    store<T, L>(rows + i * channel, block[i]);
                } else {
                    store<T, L>(pixels + i * pixel, block[i]);
                }
            }
        }
    }
}

// Short rows: a call of memcpy would cost more than the copy.
template <class T>
inline void copy_line(const T* from, T* to, int64_t width) {
    constexpr int L = Lanes<T>;
    if (width < L) {
        for (int64_t x = 0; x < width; ++x) to[x] = from[x];
        return;
    }
    for (int64_t x = 0; x < width - L; x += L) store(to + x, load(from + x));
    store(to + width - L, load(from + width - L));  // may overlap the one before
}

// One row of many channels: outside[c * sc + x * sx] <-> inside[c * channel + x].
template <class T, bool in>
void copy_row(Outside<T, in>* outside, int64_t sc, int64_t sx, T* inside, int64_t channel, int64_t channels,
              int64_t width) {
    constexpr int L = Lanes<T>;
    const int64_t least = std::min(channels, width);
    if (sc == 1 && sx != 1 && least >= 4) {
        if (least >= L) return copy_transposed<T, L, in>(outside, sx, inside, channel, channels, width);
        if (least >= 8)
            return copy_transposed<T, std::min(8, L), in>(outside, sx, inside, channel, channels, width);
        return copy_transposed<T, std::min(4, L), in>(outside, sx, inside, channel, channels, width);
    }
    for (int64_t c = 0; c < channels; ++c) {
        T* row = inside + c * channel;
        Outside<T, in>* pixels = outside + c * sc;
        if (sx == 1) {
            if constexpr (in) {
                copy_line(pixels, row, width);
            } else {
                copy_line(row, pixels, width);
            }
        } else {
            for (int64_t x = 0; x < width; ++x) {
                if constexpr (in) {
                    row[x] = pixels[x * sx];
                } else {
                    pixels[x * sx] = row[x];
                }
            }
        }
    }
}

// One row of pixels between a line and its phases: pixel i * step + p is at row[columns[p] + i].
template <class T, bool in>
void copy_phases(Outside<T, in>* line, T* row, const int64_t* columns, int64_t step, int64_t width) {
    constexpr int L = Lanes<T>;
    int64_t done = 0;  // of each phase
    if (step == 2) {
        T *const even = row + columns[0], *const odd = row + columns[1];
        for (; 2 * (done + L) <= width; done += L) {
            Outside<T, in>* const pixels = line + 2 * done;
            if constexpr (in) {
                const Vec<T> a = load(pixels), b = load(pixels + L);
                store(even + done, separate<T, L, 0>(a, b));
                store(odd + done, separate<T, L, 1>(a, b));
            } else {
                const Vec<T> a = load(even + done), b = load(odd + done);
                store(pixels, interleave<T, L, 0>(a, b));
                store(pixels + L, interleave<T, L, L / 2>(a, b));
            }
        }
    }
    for (int64_t p = 0; p < std::min(step, width); ++p) {
        T* const phase = row + columns[p];
        for (int64_t i = done, x = done * step + p; x < width; ++i, x += step) {
            if constexpr (in) {
                phase[i] = line[x];
            } else {
                line[x] = phase[i];
            }
        }
    }
}

// Rows [y0, y1) of `channels` channels of one image, from the one on to which `outside` points, into planes
// or back. `line` has room for a row of all channels where step > 1.
template <class T, bool in>
void copy_rows(const Tensor<Outside<T, in>>& outside, const Planes& planes, T* inside, int64_t channels,
               int64_t y0, int64_t y1, T* line) {
    const int64_t width = planes.width, step = planes.step;
    std::vector<int64_t> columns;
    for (int64_t p = 0; step > 1 && p < step; ++p) columns.push_back(planes.column(p));
    for (int64_t y = y0; y < y1; ++y) {
        auto* row = outside.data + y * outside.h;
        if (step == 1) {
            copy_row<T, in>(row, outside.c, outside.w, inside + planes.at(0, y, 0), planes.plane, channels,
                            width);
            continue;
        }
        const bool planar = outside.w == 1;  // then there is no need of a line
        if constexpr (in) {
            if (!planar) copy_row<T, true>(row, outside.c, outside.w, line, width, channels, width);
        }
        for (int64_t c = 0; c < channels; ++c) {
            T* const inside_row = inside + c * planes.plane + (y + planes.pad) * planes.row;
            Outside<T, in>* const pixels = planar ? row + c * outside.c : line + c * width;
            copy_phases<T, in>(pixels, inside_row, columns.data(), step, width);
        }
        if constexpr (!in) {
            if (!planar) copy_row<T, false>(row, outside.c, outside.w, line, width, channels, width);
        }
    }
}

// Sets columns [width, row) of `count` rows to zero, so that sums may run over whole vectors.
template <class T>
void clear_tails(T* rows, int64_t row, int64_t count, int64_t width) {
    if (width == row) return;
    for (int64_t y = 0; y < count; ++y) std::fill(rows + y * row + width, rows + (y + 1) * row, T(0));
}

}  // namespace srnas_fast
