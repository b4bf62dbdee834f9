// Going back: the gradients of kernels, products of what a stage reads and dz, the gradient of what it makes
// before its norm. A block has a few kernels and every shares-th tile. Its lanes keep their sums over all its
// tiles in registers, and only at the end a warp adds up those of its lanes.
#pragma once

#include "pass_back.h"

namespace srnas_fast_gpu {

constexpr int HELD = 112;  // sums that a lane has registers for

// A dense kernel is wanted of a chunk of outputs, and of as many inputs as a lane can hold, or of one and
// some of the kernel's columns.
constexpr int dense_parts(const Stage& s) {
    return ceil_div(s.size, larger(1, HELD / (CHANNELS_PER_WARP * s.size)));
}
constexpr int dense_inputs(const Stage& s) {
    if (dense_parts(s) > 1) return 1;
    return smaller(s.inputs, smaller(8, HELD / (CHANNELS_PER_WARP * s.size * s.size)));
}
// A pointwise one of a chunk of outputs and of up to 16 inputs, equally many in each job.
constexpr int pointwise_inputs(const Stage& s) { return ceil_div(s.inputs, ceil_div(s.inputs, 16)); }
// A depthwise one of these inputs for each warp.
constexpr int depthwise_inputs(const Stage& s) {
    return smaller(ceil_div(s.inputs, WARPS), larger(1, smaller(4, HELD / (s.size * s.size))));
}

// Jobs of a stage: for its convolution or its pointwise one, then for its depthwise one.
constexpr int conv_jobs(const Stage& s) {
    if (s.pools()) return 0;
    if (s.kind == Kind::separable) return chunks_of(s.outputs) * ceil_div(s.inputs, pointwise_inputs(s));
    return chunks_of(s.outputs) * dense_parts(s) * ceil_div(s.inputs, dense_inputs(s));
}
constexpr int depthwise_jobs(const Stage& s) {
    return s.kind == Kind::separable ? ceil_div(s.inputs, WARPS * depthwise_inputs(s)) : 0;
}
template <int S = 0>
constexpr int kernel_jobs() {
    if constexpr (S < STAGES) {
        constexpr Stage s = STAGE[S];
        return conv_jobs(s) + depthwise_jobs(s) + kernel_jobs<S + 1>();
    } else {
        return 0;
    }
}
constexpr int KERNEL_JOBS = kernel_jobs();

// The sum over a warp of each of 32 values or fewer, a power of two: of the lane-th, in every lane.
template <int COUNT>
__device__ inline real totals(const real (&values)[COUNT]) {
    if constexpr (COUNT == 1) {
        return values[0];
    } else {
        constexpr int HALF = COUNT / 2;
        const bool upper = lane_index() & HALF;
        real half[HALF];
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const real others = upper ? values[i] : values[i + HALF];
            half[i] = (upper ? values[i + HALF] : values[i]) + __shfl_xor_sync(0xffffffffu, others, HALF);
        }
        return totals(half);
    }
}

// Calls write(i, total) for each of a warp's sums, in one of its lanes.
template <int COUNT, class Write>
__device__ void give_totals(const real (&sums)[COUNT], const Write& write) {
#pragma unroll
    for (int first = 0; first < COUNT; first += 32) {
        real values[32];
#pragma unroll
        for (int i = 0; i < 32; ++i)
            values[i] = first + i < COUNT ? sums[smaller(first + i, COUNT - 1)] : real(0);
        const real total = totals(values);
        if (first + lane_index() < COUNT) write(first + lane_index(), total);
    }
}

// What a stage reads.
template <int S>
__device__ inline auto source_of(const Arguments& call, real* affine) {
    if constexpr (STAGE[S].first) {
        return Activated<S>(call, 0);
    } else {
        return Between<S>(call, 0, affine);
    }
}
template <int S>
__device__ inline void turn_to(Activated<S>& source, int image) {
    source.x = Outer(source.call.x, image);
}
template <int S>
__device__ inline void turn_to(Between<S>& source, int image) {
    source.image = image;
}
template <int S>
__device__ inline void turn_to(Returned<S>& source, int image) {
    source.image = image;
    source.dy = spread(Outer(source.call.dy, image));
}

// Fills planes with what stage S reads around a tile of its outputs.
template <int S, class Source>
__device__ inline void fill_around(const Arguments& call, const Tile& tile, const Source& source,
                                   int channels, real* halo) {
    constexpr Stage s = STAGE[S];
    fill<Halo<s.stride, s.reach()>>(halo, source, channels, tile.top * s.stride - s.reach(),
                                    tile.left * s.stride - s.reach(),
                                    int(s.first ? call.height : call.out_height),
                                    int(s.first ? call.width : call.out_width), source.by_channel());
}

template <int S>
__device__ inline void load(const Returned<S>& returned, const Tile& tile, int chunk, Sums& dz) {
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            const bool there = channel < STAGE[S].outputs && inside(tile, q);
            dz[q][k] = there ? returned.at(channel, tile.top + lane_y() + q, tile.left + lane_x()) : real(0);
        }
    }
}

__device__ inline real* products_of(const Arguments& call, int64_t share) {
    return call.products_at + share * PRODUCTS;
}

template <int S>
__device__ __forceinline__ void dense_products(const Arguments& call, int job, int64_t share, real* room,
                                               real* affine, real* coefficients) {
    constexpr Stage s = STAGE[S];
    using Shape = Halo<s.stride, s.reach()>;
    constexpr int CHUNKS_ = chunks_of(s.outputs), PARTS = dense_parts(s), INPUTS = dense_inputs(s);
    constexpr int WIDTH = ceil_div(s.size, PARTS);  // columns of a kernel
    static_assert(INPUTS * Shape::PLANE <= ROOM,
                  "a kernel that does not fit into shared memory is not served");
    const int chunk = job % CHUNKS_, left = job / CHUNKS_ % PARTS * WIDTH,
              first = job / CHUNKS_ / PARTS * INPUTS;
    const int channels = min(INPUTS, s.inputs - first);
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    source.first = first;
    real sums[INPUTS * WIDTH * s.size * CHANNELS_PER_WARP] = {};
    const int64_t tiles = call.images * call.tiles_of_an_image();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
        fill_around<S>(call, tile, source, channels, room);
        Sums dz;
        load(returned, tile, chunk, dz);
        __syncthreads();
        if (channel_of(chunk, 0) < s.outputs) {
#pragma unroll
            for (int c = 0; c < INPUTS; ++c) {
                if (c >= channels) continue;
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) {
                    if (left + j >= s.size) continue;
                    Taps<s.size, s.dilation, s.stride> taps;
                    taps.template load<Shape::PITCH>(room + c * Shape::PLANE, left + j);
#pragma unroll
                    for (int i = 0; i < s.size; ++i) {
                        real* const mine = sums + ((c * WIDTH + j) * s.size + i) * CHANNELS_PER_WARP;
#pragma unroll
                        for (int q = 0; q < COLUMN; ++q)
#pragma unroll
                            for (int k = 0; k < CHANNELS_PER_WARP; ++k) mine[k] += dz[q][k] * taps.at(q, i);
                    }
                }
            }
        }
        __syncthreads();
    }
    real* const to = products_of(call, share) + s.conv_products;
    give_totals(sums, [&](int index, real total) {
        const int o = channel_of(chunk, index % CHANNELS_PER_WARP), i = index / CHANNELS_PER_WARP % s.size;
        const int j = left + index / CHANNELS_PER_WARP / s.size % WIDTH;
        const int c = index / CHANNELS_PER_WARP / s.size / WIDTH;
        if (o < s.outputs && c < channels && j < s.size)
            to[((o * s.inputs + first + c) * s.size + i) * s.size + j] = total;
    });
}

template <int S>
__device__ __forceinline__ void pointwise_products(const Arguments& call, int job, int64_t share, real* room,
                                                   real* affine, real* coefficients) {
    constexpr Stage s = STAGE[S];
    constexpr int AREA = s.size * s.size, CHUNKS_ = chunks_of(s.outputs), INPUTS = pointwise_inputs(s);
    using Shape = Halo<s.stride, s.reach()>;
    constexpr int FITS = (ROOM - INPUTS * (PIXELS + AREA)) / Shape::PLANE;
    static_assert(FITS > 0, "a kernel that does not fit into shared memory is not served");
    constexpr int CHANNELS_AT_ONCE = smaller(INPUTS, FITS < WARPS ? FITS : smaller(2, FITS / WARPS) * WARPS);
    real* const made = room;  // by the depthwise convolution
    real* const kernels = made + INPUTS * PIXELS;
    real* const halo = kernels + INPUTS * AREA;
    const int chunk = job % CHUNKS_, first = job / CHUNKS_ * INPUTS, channels = min(INPUTS, s.inputs - first);
    for (int i = int(threadIdx.x); i < channels * AREA; i += THREADS)
        kernels[i] = parameter<s.depthwise>(call, first * AREA + i);
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    real sums[INPUTS * CHANNELS_PER_WARP] = {};
    const int64_t tiles = call.images * call.tiles_of_an_image();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
#pragma unroll 1
        for (int from = 0; from < channels; from += CHANNELS_AT_ONCE) {
            const int now = min(CHANNELS_AT_ONCE, channels - from);
            source.first = first + from;
            fill_around<S>(call, tile, source, now, halo);
            __syncthreads();  // before `made` is written, too: the last tile's is no longer read
#pragma unroll 1
            for (int c = warp_index(); c < now; c += WARPS) {
                real column[COLUMN] = {};
                convolve<s.size, s.dilation, s.stride, Shape::PITCH, false>(
                    halo + c * Shape::PLANE, kernels + (from + c) * AREA, column);
#pragma unroll
                for (int q = 0; q < COLUMN; ++q)
                    made[(from + c) * PIXELS + q * 32 + lane_index()] = column[q];
            }
            __syncthreads();
        }
        if (channel_of(chunk, 0) >= s.outputs) continue;
        Sums dz;
        load(returned, tile, chunk, dz);
#pragma unroll
        for (int c = 0; c < INPUTS; ++c) {
            if (c >= channels) continue;
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) {
                const real value = made[c * PIXELS + q * 32 + lane_index()];
#pragma unroll
                for (int k = 0; k < CHANNELS_PER_WARP; ++k)
                    sums[c * CHANNELS_PER_WARP + k] += dz[q][k] * value;
            }
        }
    }
    real* const to = products_of(call, share) + s.conv_products;
    give_totals(sums, [&](int index, real total) {
        const int o = channel_of(chunk, index % CHANNELS_PER_WARP), c = index / CHANNELS_PER_WARP;
        if (o < s.outputs && c < channels) to[o * s.inputs + first + c] = total;
    });
}

template <int S>
__device__ __forceinline__ void depthwise_products(const Arguments& call, int job, int64_t share, real* room,
                                                   real* affine, real* coefficients) {
    constexpr Stage s = STAGE[S];
    constexpr int AREA = s.size * s.size, INPUTS = depthwise_inputs(s);
    constexpr int APART =
        PIXELS + 1;  // planes of dz, which neighbouring threads write where it is channels_last
    using Shape = Halo<s.stride, s.reach()>;
    constexpr int LEFT = ROOM - s.outputs * CHUNK;
    static_assert(LEFT >= APART && LEFT >= WARPS * Shape::PLANE,
                  "a kernel that does not fit into shared memory is not served");
    constexpr int OUTPUTS_AT_ONCE = smaller(s.outputs, LEFT / APART);
    constexpr int PLANES_AT_ONCE = smaller(INPUTS, LEFT / (WARPS * Shape::PLANE));  // of each warp
    real* const weights = room;                                                     // (O, WARPS, 4)
    real* const halo = weights + s.outputs * CHUNK;
    real* const seen = halo;                 // dz, before the halo is there
    const int first = job * WARPS * INPUTS;  // a warp's i-th channel: first + i * WARPS + warp
    for (int i = int(threadIdx.x); i < s.outputs * CHUNK; i += THREADS) {
        const int c = first + i % 4 * WARPS + i / 4 % WARPS, o = i / CHUNK;
        weights[i] = i % 4 < INPUTS && c < s.inputs ? parameter<s.conv>(call, o * s.inputs + c) : real(0);
    }
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    const bool by_channel = returned.by_channel();
    real sums[INPUTS * AREA] = {};
    const int64_t tiles = call.images * call.tiles_of_an_image();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
        real back[INPUTS][COLUMN] = {};  // the gradient of what the depthwise convolution makes
#pragma unroll 1
        for (int from = 0; from < s.outputs; from += OUTPUTS_AT_ONCE) {
            const int now = min(OUTPUTS_AT_ONCE, s.outputs - from);
            for (int i = int(threadIdx.x); i < now * PIXELS; i += THREADS) {
                const int o = by_channel ? i % now : i / PIXELS, p = by_channel ? i / now : i % PIXELS;
                const int row = p / SIDE, column = p % SIDE;
                const bool there = row < tile.rows() && column < tile.columns();
                seen[o * APART + row % COLUMN * 32 + row / COLUMN * SIDE + column] =
                    there ? returned.at(from + o, tile.top + row, tile.left + column) : real(0);
            }
            __syncthreads();
#pragma unroll 2
            for (int o = 0; o < now; ++o) {
                const Four w = four(weights + ((from + o) * WARPS + warp_index()) * 4);
#pragma unroll
                for (int q = 0; q < COLUMN; ++q) {
                    const real value = seen[o * APART + q * 32 + lane_index()];
#pragma unroll
                    for (int i = 0; i < INPUTS; ++i) back[i][q] += w.at[i] * value;
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int c = 0; c < INPUTS; ++c) {
            if (c % PLANES_AT_ONCE == 0) {
                if (c > 0) __syncthreads();
                source.first = first + c * WARPS;
                fill_around<S>(call, tile, source, min(PLANES_AT_ONCE * WARPS, s.inputs - source.first),
                               halo);
                __syncthreads();
            }
            if (first + c * WARPS + warp_index() >= s.inputs) continue;
#pragma unroll
            for (int j = 0; j < s.size; ++j) {
                Taps<s.size, s.dilation, s.stride> taps;
                taps.template load<Shape::PITCH>(
                    halo + (c % PLANES_AT_ONCE * WARPS + warp_index()) * Shape::PLANE, j);
#pragma unroll
                for (int i = 0; i < s.size; ++i)
#pragma unroll
                    for (int q = 0; q < COLUMN; ++q)
                        sums[c * AREA + i * s.size + j] += back[c][q] * taps.at(q, i);
            }
        }
        __syncthreads();
    }
    real* const to = products_of(call, share) + s.depthwise_products;
    give_totals(sums, [&](int index, real total) {
        const int c = first + index / AREA * WARPS + warp_index();
        if (c < s.inputs) to[c * AREA + index % AREA] = total;
    });
}

template <int SLOT>
__device__ inline bool wanted(const Arguments& call) {
    return call.gradients[SLOT < 0 ? 0 : SLOT] != nullptr;
}

// Inlined by force: what a program of many stages calls instead has its arguments and sums in local memory.
template <int S = 0>
__device__ __forceinline__ void one_products(const Arguments& call, int job, int64_t share, real* room,
                                             real* affine, real* coefficients) {
    if constexpr (S < STAGES) {
        constexpr Stage s = STAGE[S];
        constexpr int BEFORE = conv_jobs(s), ALL = BEFORE + depthwise_jobs(s);
        if (job >= ALL) return one_products<S + 1>(call, job - ALL, share, room, affine, coefficients);
        if constexpr (!s.pools()) {
            if (!call.alive(s.candidate)) return;
            if constexpr (s.kind == Kind::dense) {
                if (wanted<s.conv>(call)) dense_products<S>(call, job, share, room, affine, coefficients);
            } else if (job < BEFORE) {
                if (wanted<s.conv>(call)) pointwise_products<S>(call, job, share, room, affine, coefficients);
            } else {
                if (wanted<s.depthwise>(call))
                    depthwise_products<S>(call, job - BEFORE, share, room, affine, coefficients);
            }
        }
    }
}

// blockIdx.x counts the shares of the tiles, and for each its KERNEL_JOBS jobs. What they leave: call.shares
// lists of PRODUCTS numbers, to be gathered.
__device__ __forceinline__ void kernel_products(const Arguments& call, real* room, real* affine,
                                                real* coefficients) {
    constexpr int JOBS = larger(1, KERNEL_JOBS);
    one_products(call, int(blockIdx.x % JOBS), blockIdx.x / JOBS, room, affine, coefficients);
}

// The gradient's `index`-th number, if it is one of a kernel of `count`.
template <int SLOT>
__device__ inline void gather(const Arguments& call, int place, int count, int index) {
    if (index < 0 || index >= count || !wanted<SLOT>(call)) return;
    double total = 0;
    for (int64_t share = 0; share < call.shares; ++share)
        total += double(products_of(call, share)[place + index]);
    give<SLOT>(call, index, total);
}

template <int S = 0>
__device__ void gather_kernel(const Arguments& call, int element) {
    if constexpr (S < STAGES) {
        constexpr Stage s = STAGE[S];
        if constexpr (!s.pools()) {
            constexpr int AREA = s.size * s.size;
            if (call.alive(s.candidate)) {
                gather<s.conv>(call, s.conv_products,
                               s.outputs * s.inputs * (s.kind == Kind::dense ? AREA : 1),
                               element - s.conv_products);
                if constexpr (s.kind == Kind::separable)
                    gather<s.depthwise>(call, s.depthwise_products, s.inputs * AREA,
                                        element - s.depthwise_products);
            }
        }
        gather_kernel<S + 1>(call, element);
    }
}

// A thread for each number of all kernels, in the blocks behind those of finish_input().
__device__ inline void gather_kernels(const Arguments& call) {
    gather_kernel(call, (int(blockIdx.x) - GROUPS - 1) * THREADS + int(threadIdx.x));
}

}  // namespace srnas_fast_gpu
