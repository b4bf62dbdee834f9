// The linear maps of stages on a tile, forward and transposed. All of a block's threads call them together;
// they leave shared memory free behind them.
#pragma once

#include "sources.h"

namespace srnas_fast_gpu {

struct alignas(4 * sizeof(real)) Four {
    real at[4];
};
__device__ inline Four four(const real* from) { return *reinterpret_cast<const Four*>(from); }

__device__ constexpr int padded(int count) { return (count + 3) / 4 * 4; }

// sums += w times the pixels of a plane that tap row after tap row meets: one column of a kernel.
template <int SIZE, int DILATION, int STEP>
struct Taps {
    static constexpr int HEIGHT = (COLUMN - 1) * STEP + (SIZE - 1) * DILATION + 1;
    real values[HEIGHT];

    template <int PITCH>
    __device__ void load(const real* plane, int j) {
        const real* const from = plane + lane_y() * STEP * PITCH + lane_x() * STEP + j * DILATION;
#pragma unroll
        for (int r = 0; r < HEIGHT; ++r) values[r] = from[r * PITCH];
    }
    __device__ real at(int q, int i) const { return values[q * STEP + i * DILATION]; }
};

// The convolution of one plane with one kernel; FLIPPED: with its transposed one.
template <int SIZE, int DILATION, int STEP, int PITCH, bool FLIPPED>
__device__ void convolve(const real* plane, const real* kernel, real (&sums)[COLUMN]) {
#pragma unroll
    for (int j = 0; j < SIZE; ++j) {
        Taps<SIZE, DILATION, STEP> taps;
        taps.template load<PITCH>(plane, j);
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
            const real weight = kernel[FLIPPED ? SIZE * SIZE - 1 - (i * SIZE + j) : i * SIZE + j];
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) sums[q] += weight * taps.at(q, i);
        }
    }
}

// sums += scale(o) times a dense convolution of what `source` gives. weight(o, c, tap).
template <int INPUTS, int OUTPUTS_, int SIZE, int DILATION, int STEP, class Source, class Weight, class Scale>
__device__ void add_dense(const Tile& tile, Source source, int chunk, const Weight& weight,
                          const Scale& scale, int height, int width, real* room, Sums& sums) {
    constexpr int AREA = SIZE * SIZE;
    using Shape = Halo<STEP, DILATION*(SIZE / 2)>;
    constexpr int FITS = ROOM / (AREA * CHUNK + Shape::PLANE);
    constexpr int CHANNELS_AT_ONCE = smaller(INPUTS, smaller(8, FITS));
    static_assert(FITS > 0, "a kernel that does not fit into shared memory is not served");
    real* const weights = room;
    real* const halo = weights + CHANNELS_AT_ONCE * AREA * CHUNK;
    constexpr int REACH = DILATION * (SIZE / 2);
#pragma unroll 1
    for (int first = 0; first < INPUTS; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, INPUTS - first);
        source.first = first;
        fill<Shape>(halo, source, channels, tile.top * STEP - REACH, tile.left * STEP - REACH, height, width,
                    source.by_channel());
        for (int i = int(threadIdx.x); i < channels * AREA * CHUNK; i += THREADS) {
            const int o = chunk * CHUNK + i % CHUNK, c = first + i / CHUNK / AREA, tap = i / CHUNK % AREA;
            weights[i] = o < OUTPUTS_ ? scale(o) * weight(o, c, tap) : real(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < channels; ++c) {
            const real* const mine = weights + c * AREA * CHUNK + CHANNELS_PER_WARP * warp_index();
#pragma unroll 1
            for (int j = 0; j < SIZE; ++j) {
                Taps<SIZE, DILATION, STEP> taps;
                taps.template load<Shape::PITCH>(halo + c * Shape::PLANE, j);
#pragma unroll
                for (int i = 0; i < SIZE; ++i) {
                    const Four w = four(mine + (i * SIZE + j) * CHUNK);
#pragma unroll
                    for (int q = 0; q < COLUMN; ++q)
#pragma unroll
                        for (int k = 0; k < CHANNELS_PER_WARP; ++k) sums[q][k] += w.at[k] * taps.at(q, i);
                }
            }
        }
        __syncthreads();
    }
}

// sums += scale(o) times stage S's depthwise and pointwise convolution of what `source` gives.
template <int S, class Source, class Scale>
__device__ void add_separable(const Arguments& call, const Tile& tile, Source source, int chunk,
                              const Scale& scale, int height, int width, real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    constexpr int AREA = s.size * s.size;
    using Shape = Halo<s.stride, s.reach()>;
    constexpr int FITS = ROOM / (CHUNK + padded(AREA) + Shape::PLANE + PIXELS);
    constexpr int CHANNELS_AT_ONCE = smaller(s.inputs, smaller(8, FITS));
    static_assert(FITS > 0, "a kernel that does not fit into shared memory is not served");
    real* const weights = room;
    real* const kernels = weights + CHANNELS_AT_ONCE * CHUNK;
    real* const made = kernels + CHANNELS_AT_ONCE * padded(AREA);
    real* const halo = made + CHANNELS_AT_ONCE * PIXELS;
#pragma unroll 1
    for (int first = 0; first < s.inputs; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, s.inputs - first);
        source.first = first;
        fill<Shape>(halo, source, channels, tile.top * s.stride - s.reach(), tile.left * s.stride - s.reach(),
                    height, width, source.by_channel());
        for (int i = int(threadIdx.x); i < channels * AREA; i += THREADS)
            kernels[i] = parameter<s.depthwise>(call, first * AREA + i);
        for (int i = int(threadIdx.x); i < channels * CHUNK; i += THREADS) {
            const int o = chunk * CHUNK + i % CHUNK, c = first + i / CHUNK;
            weights[i] = o < s.outputs ? scale(o) * parameter<s.conv>(call, o * s.inputs + c) : real(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int c = warp_index(); c < channels; c += WARPS) {
            real column[COLUMN] = {};
            convolve<s.size, s.dilation, s.stride, Shape::PITCH, false>(halo + c * Shape::PLANE,
                                                                        kernels + c * AREA, column);
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) made[c * PIXELS + q * 32 + lane_index()] = column[q];
        }
        __syncthreads();
#pragma unroll 2
        for (int c = 0; c < channels; ++c) {
            const Four w = four(weights + c * CHUNK + CHANNELS_PER_WARP * warp_index());
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) {
                const real value = made[c * PIXELS + q * 32 + lane_index()];
#pragma unroll
                for (int k = 0; k < CHANNELS_PER_WARP; ++k) sums[q][k] += w.at[k] * value;
            }
        }
        __syncthreads();
    }
}

// sums += the transposed separable convolution of stage S: the pointwise one at every pixel that kernels
// reach, then the depthwise one. The tile and the chunk are of the stage's input.
template <int S, class Source>
__device__ void add_separable_transposed(const Arguments& call, const Tile& tile, Source source, int chunk,
                                         real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    constexpr int AREA = s.size * s.size;
    using Shape = Halo<1, s.reach()>;
    constexpr int SEEN = Shape::ROWS * Shape::ROWS, EACH = ceil_div(SEEN, THREADS);
    constexpr int LEFT = ROOM - CHUNK * (padded(AREA) + Shape::PLANE);
    static_assert(LEFT >= CHUNK + Shape::PLANE,
                  "a kernel that does not fit into shared memory is not served");
    constexpr int CHANNELS_AT_ONCE = smaller(s.outputs, smaller(8, LEFT / (CHUNK + Shape::PLANE)));
    real* const weights = room;
    real* const kernels = weights + CHANNELS_AT_ONCE * CHUNK;
    real* const made = kernels + CHUNK * padded(AREA);
    real* const halo = made + CHUNK * Shape::PLANE;
    real results[EACH][CHUNK];
#pragma unroll
    for (int p = 0; p < EACH; ++p)
#pragma unroll
        for (int c = 0; c < CHUNK; ++c) results[p][c] = 0;
    for (int i = int(threadIdx.x); i < CHUNK * AREA; i += THREADS) {
        const int c = chunk * CHUNK + i / AREA;
        kernels[i] = c < s.inputs ? parameter<s.depthwise>(call, chunk * CHUNK * AREA + i) : real(0);
    }
#pragma unroll 1
    for (int first = 0; first < s.outputs; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, s.outputs - first);
        source.first = first;
        fill<Shape>(halo, source, channels, tile.top - s.reach(), tile.left - s.reach(), source.height(),
                    source.width(), source.by_channel());
        for (int i = int(threadIdx.x); i < channels * CHUNK; i += THREADS) {
            const int c = chunk * CHUNK + i % CHUNK, o = first + i / CHUNK;
            weights[i] = c < s.inputs ? parameter<s.conv>(call, o * s.inputs + c) : real(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int o = 0; o < channels; ++o) {
#pragma unroll
            for (int p = 0; p < EACH; ++p) {
                const int seen = int(threadIdx.x) + p * THREADS;
                const int place = seen / Shape::ROWS * Shape::PITCH + seen % Shape::ROWS;
                const real value = seen < SEEN ? halo[o * Shape::PLANE + place] : real(0);
#pragma unroll
                for (int c = 0; c < CHUNK; c += 4) {
                    const Four w = four(weights + o * CHUNK + c);
#pragma unroll
                    for (int k = 0; k < 4; ++k) results[p][c + k] += w.at[k] * value;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < EACH; ++p) {
        const int seen = int(threadIdx.x) + p * THREADS;
        const int place = seen / Shape::ROWS * Shape::PITCH + seen % Shape::ROWS;
        if (seen < SEEN) {
#pragma unroll
            for (int c = 0; c < CHUNK; ++c) made[c * Shape::PLANE + place] = results[p][c];
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int c = CHANNELS_PER_WARP * warp_index() + k;
        real column[COLUMN] = {};
        convolve<s.size, s.dilation, 1, Shape::PITCH, true>(made + c * Shape::PLANE, kernels + c * AREA,
                                                            column);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) sums[q][k] += column[q];
    }
    __syncthreads();
}

// Planes of one channel of each warp, of those four that it has: those that pools work on.
template <class Shape, class Load>
__device__ void fill_own(real* planes, const Load& load, int chunk, int k, int channels, int top, int left,
                         int height, int width) {
    const auto own = [&](int warp, int row, int column) {
        const int channel = chunk * CHUNK + warp * CHANNELS_PER_WARP + k;
        return channel < channels ? load(channel, row, column) : real(0);
    };
    fill<Shape>(planes, own, WARPS, top, left, height, width, false);
}

// The pixels of a window that lie in the image, of rows or of columns: [from, to) of the kernel's.
struct Window {
    int from, to;

    __device__ Window(int centre, int reach, int length)
        : from(max(0, reach - centre)), to(min(2 * reach + 1, length - centre + reach)) {}
    __device__ int count() const { return to - from; }
};

__device__ inline real infinity() { return real(__uint_as_float(0x7f800000u)); }

template <int S>
__device__ inline real averaged(int rows, int columns) {
    constexpr Stage s = STAGE[S];
    return real(1) / real(s.counts_padding ? s.size * s.size : rows * columns);
}

// sums += scale(c) times stage S's pool of what `source` gives.
template <int S, class Source, class Scale>
__device__ void add_pool(const Tile& tile, Source source, int chunk, const Scale& scale, int height,
                         int width, real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    constexpr int reach = s.reach();
    using Shape = Halo<s.stride, reach>;
    source.first = 0;
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        fill_own<Shape>(room, source, chunk, k, s.inputs, tile.top * s.stride - reach,
                        tile.left * s.stride - reach, height, width);
        __syncthreads();
        const real* const plane = room + warp_index() * Shape::PLANE;
        const int channel = chunk * CHUNK + warp_index() * CHANNELS_PER_WARP + k;
        const real factor = channel < s.outputs ? scale(channel) : real(0);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            const int row = lane_y() + q, column = lane_x();
            const Window down((tile.top + row) * s.stride, reach, height);
            const Window across((tile.left + column) * s.stride, reach, width);
            real result = s.kind == Kind::max_pool ? -infinity() : real(0);
            for (int i = down.from; i < down.to; ++i) {
                for (int j = across.from; j < across.to; ++j) {
                    const real value = plane[(row * s.stride + i) * Shape::PITCH + column * s.stride + j];
                    if constexpr (s.kind == Kind::max_pool) {
                        if (value > result || value != value) result = value;
                    } else {
                        result += value;
                    }
                }
            }
            if constexpr (s.kind == Kind::average_pool) result *= averaged<S>(down.count(), across.count());
            sums[q][k] += factor * result;
        }
        __syncthreads();
    }
}

// sums += the raw map of stage S, times scale(o).
template <int S, class Source, class Scale>
__device__ void add_stage(const Arguments& call, const Tile& tile, const Source& source, int chunk,
                          const Scale& scale, int height, int width, real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    if constexpr (s.pools()) {
        add_pool<S>(tile, source, chunk, scale, height, width, room, sums);
    } else if constexpr (s.kind == Kind::separable) {
        add_separable<S>(call, tile, source, chunk, scale, height, width, room, sums);
    } else {
        const auto weight = [&](int o, int c, int tap) {
            return parameter<s.conv>(call, (o * s.inputs + c) * s.size * s.size + tap);
        };
        add_dense<s.inputs, s.outputs, s.size, s.dilation, s.stride>(tile, source, chunk, weight, scale,
                                                                     height, width, room, sums);
    }
}

}  // namespace srnas_fast_gpu
