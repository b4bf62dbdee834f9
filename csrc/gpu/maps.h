// The linear maps of stages on a tile, forward and transposed. All of a block's threads call them together;
// they leave shared memory free behind them.
#pragma once

#include "sources.h"

namespace srnas_fast_gpu {

struct alignas(4 * sizeof(real)) Four {
    real at[4];
};
__device__ inline Four four(const real* from) { return *reinterpret_cast<const Four*>(from); }

// The pixels of a plane that a column of a kernel meets for COUNT pixels of a lane from the `first` on.
template <int SIZE, int DILATION, int STEP, int COUNT = COLUMN>
struct Taps {
    static constexpr int HEIGHT = (COUNT - 1) * STEP + (SIZE - 1) * DILATION + 1;
    real values[HEIGHT];

    template <int PITCH>
    __device__ void load(const real* plane, int j, int first = 0) {
        const real* const from = plane + (lane_y() + first) * STEP * PITCH + lane_x() * STEP + j * DILATION;
#pragma unroll
        for (int r = 0; r < HEIGHT; ++r) values[r] = from[r * PITCH];
    }
    __device__ real at(int q, int i) const { return values[q * STEP + i * DILATION]; }
};

// The convolution of one plane with one kernel; FLIPPED: with its transposed one.
template <int SIZE, int DILATION, int STEP, int PITCH, bool FLIPPED>
__device__ void convolve(const real* plane, const real* kernel, real (&sums)[COLUMN]) {
    // Of kernels that reach far more at once would take too many registers.
#pragma unroll((SIZE - 1) * DILATION > 6 ? 1 : SIZE)
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

// Puts weight(o, r), of `rows` rows, times scale(o) into shared memory, (rows, CHUNK): a thread has one
// output.
template <class Weight, class Scale>
__device__ void fill_weights(real* weights, int chunk, int outputs, int rows, const Weight& weight,
                             const Scale& scale) {
    constexpr int APART = THREADS / CHUNK;
    const int mine = int(threadIdx.x) % CHUNK, o = chunk * CHUNK + mine;
    const real factor = o < outputs ? scale(o) : real(0);
    for (int row = int(threadIdx.x) / CHUNK; row < rows; row += APART)
        weights[row * CHUNK + mine] = o < outputs ? factor * weight(o, row) : real(0);
}

// sums += scale(o) times a dense convolution of what `source` gives. weight(o, c, tap).
template <int INPUTS, int OUTPUTS_, int SIZE, int DILATION, int STEP, class Source, class Weight, class Scale>
__device__ void add_dense(const Tile& tile, Source source, int chunk, const Weight& weight,
                          const Scale& scale, int height, int width, real* room, Sums& sums) {
    using Room = DenseRoom<INPUTS, SIZE, DILATION, STEP>;
    using Shape = typename Room::Shape;
    constexpr int AREA = SIZE * SIZE, REACH = DILATION * (SIZE / 2), CHANNELS_AT_ONCE = Room::AT_ONCE;
    real* const weights = room;
    real* const halo = weights + CHANNELS_AT_ONCE * AREA * CHUNK;
#pragma unroll 1
    for (int first = 0; first < INPUTS; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, INPUTS - first);
        source.first = first;
        fill<Shape, CHANNELS_AT_ONCE>(halo, source, channels, tile.top * STEP - REACH,
                                      tile.left * STEP - REACH, height, width, source.by_channel());
        fill_weights(
            weights, chunk, OUTPUTS_, channels * AREA,
            [&](int o, int row) { return weight(o, first + row / AREA, row % AREA); }, scale);
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
    using Room = SeparableRoom<S>;
    using Shape = typename Room::Shape;
    constexpr int AREA = Room::AREA, CHANNELS_AT_ONCE = Room::AT_ONCE;
    real* const weights = room;
    real* const kernels = weights + CHANNELS_AT_ONCE * CHUNK;
    real* const made = kernels + CHANNELS_AT_ONCE * padded(AREA);
    real* const made_here = made + lane_index();
    real* const halo = made + CHANNELS_AT_ONCE * PIXELS;
#pragma unroll 1
    for (int first = 0; first < s.inputs; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, s.inputs - first);
        source.first = first;
        fill<Shape, CHANNELS_AT_ONCE>(halo, source, channels, tile.top * s.stride - s.reach(),
                                      tile.left * s.stride - s.reach(), height, width, source.by_channel());
        for (int i = int(threadIdx.x); i < channels * AREA; i += THREADS)
            kernels[i] = parameter<s.depthwise>(call, first * AREA + i);
        fill_weights(
            weights, chunk, s.outputs, channels,
            [&](int o, int row) { return parameter<s.conv>(call, o * s.inputs + first + row); }, scale);
        __syncthreads();
#pragma unroll 1
        for (int c = warp_index(); c < channels; c += WARPS) {
            real column[COLUMN] = {};
            convolve<s.size, s.dilation, s.stride, Shape::PITCH, false>(halo + c * Shape::PLANE,
                                                                        kernels + c * AREA, column);
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) made_here[c * PIXELS + q * 32] = column[q];
        }
        __syncthreads();
#pragma unroll 2
        for (int c = 0; c < channels; ++c) {
            const Four w = four(weights + c * CHUNK + CHANNELS_PER_WARP * warp_index());
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) {
                const real value = made_here[c * PIXELS + q * 32];
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
    using Room = TransposedRoom<S>;
    using Shape = typename Room::Shape;
    using Flat = typename Room::Flat;
    constexpr int AREA = Room::AREA, CHANNELS_AT_ONCE = Room::AT_ONCE, K = Room::K;
    constexpr int SEEN = Flat::PLANE, EACH = ceil_div(SEEN, THREADS);
    real* const kernels = room;
    real* const weights = kernels + Room::KERNELS;
    real* const halo = weights + CHANNELS_AT_ONCE * CHUNK;
    real* const made = weights;
    real results[CHUNK][EACH];
#pragma unroll
    for (int c = 0; c < CHUNK; ++c)
#pragma unroll
        for (int p = 0; p < EACH; ++p) results[c][p] = 0;
    for (int i = int(threadIdx.x); i < CHUNK * AREA; i += THREADS) {
        const int c = chunk * CHUNK + i / AREA;
        kernels[i] = c < s.inputs ? parameter<s.depthwise>(call, chunk * CHUNK * AREA + i) : real(0);
    }
#pragma unroll 1
    for (int first = 0; first < s.outputs; first += CHANNELS_AT_ONCE) {
        const int channels = min(CHANNELS_AT_ONCE, s.outputs - first);
        source.first = first;
        fill<Flat, CHANNELS_AT_ONCE>(halo, source, channels, tile.top - s.reach(), tile.left - s.reach(),
                                     source.height(), source.width(), source.by_channel());
        fill_weights(
            weights, chunk, s.inputs, channels,
            [&](int c, int row) { return parameter<s.conv>(call, (first + row) * s.inputs + c); },
            [](int) { return real(1); });
        __syncthreads();
        const real* plane = halo + threadIdx.x;
        const real* factors = weights;
#pragma unroll 1
        for (int o = 0; o < channels; ++o, plane += SEEN, factors += CHUNK) {
            real values[EACH];
#pragma unroll
            for (int p = 0; p < EACH; ++p) values[p] = plane[p * THREADS];  // behind the last pixel anything
#pragma unroll
            for (int c = 0; c < CHUNK; c += 4) {
                const Four w = four(factors + c);
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int p = 0; p < EACH; ++p) results[c + k][p] += w.at[k] * values[p];
            }
        }
        __syncthreads();
    }
    // Of each warp's channels K at a time.
#pragma unroll
    for (int from = 0; from < CHANNELS_PER_WARP; from += K) {
#pragma unroll
        for (int p = 0; p < EACH; ++p) {
            const int seen = int(threadIdx.x) + p * THREADS;
            if (seen >= SEEN) continue;
            real* const to = made + Shape::place(seen / Shape::ROWS, seen % Shape::ROWS);
#pragma unroll
            for (int c = 0; c < WARPS * K; ++c)
                to[c * Shape::PLANE] = results[c / K * CHANNELS_PER_WARP + from + c % K][p];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < K; ++k) {
            real column[COLUMN] = {};
            convolve<s.size, s.dilation, 1, Shape::PITCH, true>(
                made + (warp_index() * K + k) * Shape::PLANE,
                kernels + (CHANNELS_PER_WARP * warp_index() + from + k) * AREA, column);
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) sums[q][from + k] += column[q];
        }
        __syncthreads();
    }
}

// Planes of one channel of each warp, of those four that it has: those that pools work on.
template <class Shape, class Load>
__device__ void fill_own(real* planes, const Load& load, int chunk, int k, int channels, int top, int left,
                         int height, int width, real outside = 0) {
    const auto own = [&](int warp, int row, int column) {
        const int channel = chunk * CHUNK + warp * CHANNELS_PER_WARP + k;
        return channel < channels ? load(channel, row, column) : real(0);
    };
    fill<Shape, WARPS>(planes, own, WARPS, top, left, height, width, false, outside);
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
    constexpr bool largest = s.kind == Kind::max_pool;
    constexpr int reach = s.reach();
    using Shape = typename PoolRoom<S, false>::Shape;
    source.first = 0;
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        fill_own<Shape>(room, source, chunk, k, s.inputs, tile.top * s.stride - reach,
                        tile.left * s.stride - reach, height, width, largest ? -infinity() : real(0));
        __syncthreads();
        const int channel = channel_of(chunk, k);
        const real factor = channel < s.outputs ? scale(channel) : real(0);
        real results[COLUMN];
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) results[q] = largest ? -infinity() : real(0);
#pragma unroll
        for (int j = 0; j < s.size; ++j) {
            Taps<s.size, 1, s.stride> taps;
            taps.template load<Shape::PITCH>(room + warp_index() * Shape::PLANE, j);
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) {
#pragma unroll
                for (int i = 0; i < s.size; ++i) {
                    const real value = taps.at(q, i);
                    if constexpr (largest) {
                        if (value > results[q] || value != value) results[q] = value;
                    } else {
                        results[q] += value;
                    }
                }
            }
        }
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if constexpr (!largest) {
                const Window down((tile.top + lane_y() + q) * s.stride, reach, height);
                const Window across((tile.left + lane_x()) * s.stride, reach, width);
                results[q] *= averaged<S>(down.count(), across.count());
            }
            results[q] *= factor;
        }
        add_to(sums, k, results);
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
