// Going back: the gradients of kernels, products of what a stage reads and dz, the gradient of what it makes
// before its norm. A block has a few kernels and every shares-th tile. Its lanes keep their sums over all its
// tiles in registers, and only at the end a warp adds up those of its lanes.
#pragma once

#include "pass_back.h"

namespace srnas_fast_gpu {

// Sums that a lane has registers for, of a dense kernel and of depthwise ones.
constexpr int HELD = 80, HELD_DEPTHWISE = 64;

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
    return smaller(ceil_div(s.inputs, WARPS), larger(1, smaller(4, HELD_DEPTHWISE / (s.size * s.size))));
}

// Jobs of a stage: for its convolution or its pointwise one, then for its depthwise one.
constexpr int conv_jobs(const Stage& s) {
    if (s.pools() || s.outside) return 0;
    if (s.kind == Kind::separable) return chunks_of(s.outputs) * ceil_div(s.inputs, pointwise_inputs(s));
    return chunks_of(s.outputs) * dense_parts(s) * ceil_div(s.inputs, dense_inputs(s));
}
constexpr int depthwise_jobs(const Stage& s) {
    return s.kind == Kind::separable ? ceil_div(s.inputs, WARPS * depthwise_inputs(s)) : 0;
}
// What they stage: of a dense one planes.
constexpr int KERNELS_AIM = aim_for(FEWER);
template <int S>
struct DenseProductsRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<s.stride, s.reach()>;
    static constexpr int NUMBERS = dense_inputs(s) * Shape::PLANE;
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};
// Of a pointwise one what the depthwise kernels make of the tile, these kernels, planes.
template <int S>
struct PointwiseProductsRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<s.stride, s.reach()>;
    static constexpr int INPUTS = pointwise_inputs(s), MADE = INPUTS * PIXELS;
    static constexpr int KERNELS = INPUTS * s.size * s.size;
    static constexpr int AT_ONCE = at_once(INPUTS, Shape::PLANE, KERNELS_AIM - MADE - KERNELS);
    static constexpr int NUMBERS = MADE + KERNELS + AT_ONCE * Shape::PLANE;
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};
// Of a depthwise one the pointwise weights; dz and then, in its place, planes, so many of each warp.
struct Lanes {  // a tile as the lanes of a warp have it; the planes apart so that channels lie in different
                // banks
    static constexpr int ROWS = SIDE, PLANE = PIXELS + 1;

    __device__ static int place(int row, int column) { return row % 8 * 32 + row / 8 * SIDE + column; }
};
template <int S>
struct DepthwiseProductsRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<s.stride, s.reach()>;
    static constexpr int WEIGHTS = s.outputs * CHUNK, LEFT = KERNELS_AIM - WEIGHTS;
    static constexpr int OUTPUTS_AT_ONCE = larger(1, smaller(s.outputs, LEFT / Lanes::PLANE));
    static constexpr int PLANES_AT_ONCE =
        larger(1, smaller(depthwise_inputs(s), LEFT / (WARPS * Shape::PLANE)));
    static constexpr int NUMBERS =
        WEIGHTS + larger(OUTPUTS_AT_ONCE * Lanes::PLANE, PLANES_AT_ONCE * WARPS * Shape::PLANE);
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};
constexpr int TOTALS = WARPS * 32 * 33;  // in the end, for give_totals()
template <int S = 0>
constexpr int kernels_room() {
    if constexpr (S >= STAGES) {
        return TOTALS;
    } else {
        constexpr Stage s = STAGE[S];
        constexpr int others = kernels_room<S + 1>();
        if constexpr (s.pools() || s.outside)
            return others;
        else if constexpr (s.kind == Kind::dense)
            return larger(others, DenseProductsRoom<S>::NUMBERS);
        else
            return larger(others,
                          larger(PointwiseProductsRoom<S>::NUMBERS, DepthwiseProductsRoom<S>::NUMBERS));
    }
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

// Calls write(i, total) for each of a warp's sums, in one of its lanes. By way of shared memory: shuffles
// would be three times the code.
template <int COUNT, class Write>
__device__ void give_totals(const real (&sums)[COUNT], real* room, const Write& write) {
    real* const mine = room + warp_index() * 32 * 33 + lane_index();  // of this lane, its sums 33 apart
    const real* const row = mine + lane_index() * 32;                 // of all lanes, its sum
    __syncthreads();
#pragma unroll
    for (int first = 0; first < COUNT; first += 32) {
#pragma unroll
        for (int i = 0; i < smaller(32, COUNT - first); ++i) mine[i * 33] = sums[first + i];
        __syncwarp();
        if (first + lane_index() < COUNT) {
            real total = 0;
#pragma unroll 8
            for (int i = 0; i < 32; ++i) total += row[i];
            write(first + lane_index(), total);
        }
        __syncwarp();
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
template <int S, int PLANES, class Source>
__device__ inline void fill_around(const Arguments& call, const Tile& tile, const Source& source,
                                   int channels, real* halo) {
    constexpr Stage s = STAGE[S];
    fill<Halo<s.stride, s.reach()>, PLANES>(halo, source, channels, tile.top * s.stride - s.reach(),
                                            tile.left * s.stride - s.reach(),
                                            int(s.first ? call.height : call.out_height),
                                            int(s.first ? call.width : call.out_width), source.by_channel());
}

// What a lane holds of dz: half of its pixels at a time.
constexpr int HALF = COLUMN / 2;
using Pixels = real[HALF][CHANNELS_PER_WARP];

template <int S>
__device__ inline void load(const Returned<S>& returned, const Tile& tile, int chunk, int first, Pixels& dz) {
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
#pragma unroll
        for (int q = 0; q < HALF; ++q) {
            const bool there = channel < STAGE[S].outputs && inside(tile, first + q);
            dz[q][k] =
                there ? returned.at(channel, tile.top + lane_y() + first + q, tile.left + lane_x()) : real(0);
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
    using Shape = typename DenseProductsRoom<S>::Shape;
    constexpr int CHUNKS_ = chunks_of(s.outputs), PARTS = dense_parts(s), INPUTS = dense_inputs(s);
    constexpr int WIDTH = ceil_div(s.size, PARTS);  // columns of a kernel
    const int chunk = job % CHUNKS_, left = job / CHUNKS_ % PARTS * WIDTH,
              first = job / CHUNKS_ / PARTS * INPUTS;
    const int channels = s.inputs % INPUTS == 0 ? INPUTS : min(INPUTS, s.inputs - first);
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    source.first = first;
    real sums[INPUTS * WIDTH * s.size * CHANNELS_PER_WARP] = {};
    const int64_t tiles = call.tiles();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
        fill_around<S, INPUTS>(call, tile, source, channels, room);
        __syncthreads();
#pragma unroll 1
        for (int half = 0; half < (channel_of(chunk, 0) < s.outputs ? COLUMN : 0); half += HALF) {
            Pixels dz;
            load(returned, tile, chunk, half, dz);
#pragma unroll
            for (int c = 0; c < INPUTS; ++c) {
                if (c >= channels) continue;
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) {
                    if (WIDTH * PARTS != s.size && left + j >= s.size) continue;
                    Taps<s.size, s.dilation, s.stride, HALF> taps;
                    taps.template load<Shape::PITCH>(room + c * Shape::PLANE, left + j, half);
#pragma unroll
                    for (int i = 0; i < s.size; ++i) {
                        real* const mine = sums + ((c * WIDTH + j) * s.size + i) * CHANNELS_PER_WARP;
#pragma unroll
                        for (int q = 0; q < HALF; ++q)
#pragma unroll
                            for (int k = 0; k < CHANNELS_PER_WARP; ++k) mine[k] += dz[q][k] * taps.at(q, i);
                    }
                }
            }
        }
        __syncthreads();
    }
    real* const to = products_of(call, share) + s.conv_products;
    give_totals(sums, room, [&](int index, real total) {
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
    using Room = PointwiseProductsRoom<S>;
    using Shape = typename Room::Shape;
    constexpr int CHANNELS_AT_ONCE = Room::AT_ONCE;
    real* const made = room;  // by the depthwise convolution
    real* const made_here = made + lane_index();
    real* const kernels = made + INPUTS * PIXELS;
    real* const halo = kernels + INPUTS * AREA;
    const int chunk = job % CHUNKS_, first = job / CHUNKS_ * INPUTS;
    const int channels = s.inputs % INPUTS == 0 ? INPUTS : min(INPUTS, s.inputs - first);
    for (int i = int(threadIdx.x); i < channels * AREA; i += THREADS)
        kernels[i] = parameter<s.depthwise>(call, first * AREA + i);
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    real sums[INPUTS * CHANNELS_PER_WARP] = {};
    const int64_t tiles = call.tiles();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
#pragma unroll 1
        for (int from = 0; from < channels; from += CHANNELS_AT_ONCE) {
            const int now = min(CHANNELS_AT_ONCE, channels - from);
            source.first = first + from;
            fill_around<S, CHANNELS_AT_ONCE>(call, tile, source, now, halo);
            __syncthreads();  // before `made` is written, too: the last tile's is no longer read
#pragma unroll 1
            for (int c = warp_index(); c < now; c += WARPS) {
                real column[COLUMN] = {};
                convolve<s.size, s.dilation, s.stride, Shape::PITCH, false>(
                    halo + c * Shape::PLANE, kernels + (from + c) * AREA, column);
#pragma unroll
                for (int q = 0; q < COLUMN; ++q) made_here[(from + c) * PIXELS + q * 32] = column[q];
            }
            __syncthreads();
        }
#pragma unroll 1
        for (int half = 0; half < (channel_of(chunk, 0) < s.outputs ? COLUMN : 0); half += HALF) {
            Pixels dz;
            load(returned, tile, chunk, half, dz);
            const real* const values = made_here + half * 32;
#pragma unroll
            for (int c = 0; c < INPUTS; ++c) {
                if (c >= channels) continue;
#pragma unroll
                for (int q = 0; q < HALF; ++q) {
                    const real value = values[c * PIXELS + q * 32];
#pragma unroll
                    for (int k = 0; k < CHANNELS_PER_WARP; ++k)
                        sums[c * CHANNELS_PER_WARP + k] += dz[q][k] * value;
                }
            }
        }
    }
    real* const to = products_of(call, share) + s.conv_products;
    give_totals(sums, room, [&](int index, real total) {
        const int o = channel_of(chunk, index % CHANNELS_PER_WARP), c = index / CHANNELS_PER_WARP;
        if (o < s.outputs && c < channels) to[o * s.inputs + first + c] = total;
    });
}

template <int S>
__device__ __forceinline__ void depthwise_products(const Arguments& call, int job, int64_t share, real* room,
                                                   real* affine, real* coefficients) {
    constexpr Stage s = STAGE[S];
    constexpr int AREA = s.size * s.size, INPUTS = depthwise_inputs(s);
    using Room = DepthwiseProductsRoom<S>;
    using Shape = typename Room::Shape;
    constexpr int OUTPUTS_AT_ONCE = Room::OUTPUTS_AT_ONCE, PLANES_AT_ONCE = Room::PLANES_AT_ONCE;
    real* const weights = room;  // (O, WARPS, 4)
    real* const halo = weights + Room::WEIGHTS;
    real* const seen = halo;                 // dz, before the halo is there
    const int first = job * WARPS * INPUTS;  // a warp's i-th channel: first + i * WARPS + warp
    for (int i = int(threadIdx.x); i < s.outputs * CHUNK; i += THREADS) {
        const int c = first + i % 4 * WARPS + i / 4 % WARPS, o = i / CHUNK;
        weights[i] = i % 4 < INPUTS && c < s.inputs ? parameter<s.conv>(call, o * s.inputs + c) : real(0);
    }
    auto source = source_of<S>(call, affine);
    Returned<S> returned(call, 0, coefficients);
    const auto seen_at = [&](int o, int row, int column) {
        return returned.at(returned.first + o, row, column);
    };
    real sums[INPUTS * AREA] = {};
    const int64_t tiles = call.tiles();
#pragma unroll 1
    for (int64_t t = share; t < tiles; t += call.shares) {
        const Tile tile = Tile::make(t, call.out_height, call.out_width);
        turn_to(source, tile.image);
        turn_to(returned, tile.image);
        real back[INPUTS][COLUMN] = {};  // the gradient of what the depthwise convolution makes
#pragma unroll 1
        for (int from = 0; from < s.outputs; from += OUTPUTS_AT_ONCE) {
            const int now = min(OUTPUTS_AT_ONCE, s.outputs - from);
            returned.first = from;
            fill<Lanes, OUTPUTS_AT_ONCE>(seen, seen_at, now, tile.top, tile.left, tile.height, tile.width,
                                         returned.by_channel());
            __syncthreads();
#pragma unroll 2
            for (int o = 0; o < now; ++o) {
                const Four w = four(weights + ((from + o) * WARPS + warp_index()) * 4);
                const real* const values = seen + o * Lanes::PLANE + lane_index();
#pragma unroll
                for (int q = 0; q < COLUMN; ++q) {
                    const real value = values[q * 32];
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
                fill_around<S, PLANES_AT_ONCE * WARPS>(
                    call, tile, source, min(PLANES_AT_ONCE * WARPS, s.inputs - source.first), halo);
                __syncthreads();
            }
            if (s.inputs % (INPUTS * WARPS) != 0 && first + c * WARPS + warp_index() >= s.inputs) continue;
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
    give_totals(sums, room, [&](int index, real total) {
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
        if constexpr (!s.pools() && !s.outside) {
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
        if constexpr (!s.pools() && !s.outside) {
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
