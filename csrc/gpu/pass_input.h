// Going back: the gradient of x on a tile, gathered from all candidates, through their activations.
#pragma once

#include "pass_back.h"
#include "pass_sum.h"

namespace srnas_fast_gpu {

// Adds the gradients of what a group's candidates read.
template <int GROUP, int S>
__device__ void add_group(const Arguments& call, const Tile& tile, int chunk, real* room, real* coefficients,
                          Sums& sums) {
    if constexpr (S < STAGES) {
        constexpr Stage s = STAGE[S];
        if constexpr (s.first && s.group == GROUP && !s.outside) {
            if (call.alive(s.candidate)) add_transposed<S>(call, tile, chunk, room, coefficients, sums);
        }
        add_group<GROUP, S + 1>(call, tile, chunk, room, coefficients, sums);
    }
}

template <int GROUP, int S = 0>
__device__ constexpr int first_of_group() {
    if constexpr (S >= STAGES) {
        return -1;
    } else {
        constexpr Stage s = STAGE[S];
        if constexpr (s.first && s.group == GROUP) {
            return S;
        } else {
            return first_of_group<GROUP, S + 1>();
        }
    }
}

// Where a group's sums for the slopes of its activation begin.
template <int GROUP>
__device__ constexpr int slope_sums() {
    return GROUP * CHANNELS;
}

// The gradient of x from one group, S its first stage, through its activation.
template <int GROUP, int S>
__device__ __forceinline__ void add_activated(const Arguments& call, const Tile& tile, int64_t index,
                                              int64_t tiles, int chunk, real* room, real* coefficients,
                                              Sums& all) {
    constexpr Stage s = STAGE[S];
    Sums sums;
    clear(sums);
    add_group<GROUP, 0>(call, tile, chunk, room, coefficients, sums);
    add_outside(call, tile, chunk, GROUP, CHANNELS, sums);
    const Outer x(call.x, tile.image);
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        const bool there = channel < CHANNELS;
        const real slope = there ? slope_of<S>(call, channel) : real(0);
        real slopes = 0;
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (!there || !inside(tile, q)) continue;
            if constexpr (s.activation == Activation::none) {
                all[q][k] += sums[q][k];
            } else {
                const real value = x.at(channel, tile.top + lane_y() + q, tile.left + lane_x());
                all[q][k] += sums[q][k] * activation_slope<S>(value, slope);
                if constexpr (s.activation == Activation::prelu)
                    slopes += value > 0 ? real(0) : sums[q][k] * value;
            }
        }
        if constexpr (s.activation == Activation::prelu) {
            slopes = warp_sum(slopes);
            if (lane_index() == 0 && there)
                partial_sum(call, slope_sums<GROUP>() + channel, 0, index, tiles) = slopes;
        }
    }
}

// Of all groups with anything alive: where all is dead, a slope of NaN counts no more than other parameters.
template <int GROUP>
__device__ void add_groups(const Arguments& call, const Tile& tile, int64_t index, int64_t tiles, int chunk,
                           real* room, real* coefficients, Sums& all) {
    if constexpr (GROUP < GROUPS) {
        constexpr int S = first_of_group<GROUP>();
        if constexpr (S >= 0) {
            if (call.live & GROUP_CANDIDATES[GROUP])
                add_activated<GROUP, S>(call, tile, index, tiles, chunk, room, coefficients, all);
        }
        add_groups<GROUP + 1>(call, tile, index, tiles, chunk, room, coefficients, all);
    }
}

// The gradient of the channels that pass by, and the sum of what their scale takes.
__device__ inline void pass_back(const Arguments& call, const Tile& tile, int64_t index, int64_t tiles,
                                 int chunk, int i) {
    const Outer x(call.x, tile.image), dy(call.dy, tile.image);
    Pixel* const dx = static_cast<Pixel*>(call.dx.data) + (call.dx.data ? tile.image * call.dx.n : 0);
    const real scale = passing_scale(call);
    real products = 0;
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        if (channel >= OUTPUTS) continue;
        for (int q = 0; q < COLUMN; ++q) {
            if (!inside(tile, q)) continue;
            const int row = tile.top + lane_y() + q, column = tile.left + lane_x(),
                      from = i * OUTPUTS + channel;
            real value = dy.at(channel * PARTIAL + i, row / STRIDE, column / STRIDE);
            bool taken = true;
            if constexpr (STRIDE > 1)
                taken = Largest(x, from, row / 2, column / 2).place == row % 2 * 2 + column % 2;
            if (taken) products += value * x.at(from, row, column);
            if (call.dx.data)
                put(dx + from * int(call.dx.c) + row * int(call.dx.h) + column * int(call.dx.w),
                    taken ? scale * value : real(0));
        }
    }
    products = warp_sum(products);
    // A sum of its own for each warp, of which there are no more than channels in the sums of a chunk.
    if (lane_index() == 0)
        partial_sum(call, PASSING_SUMS + ((i - 1) * chunks_of(OUTPUTS) + chunk) * WARPS + warp_index(), 0,
                    index, tiles) = products;
}

// blockIdx.x counts the tiles of x, and for each its jobs: chunks of its channels, then of those that pass
// by.
__device__ inline void input_gradient(const Arguments& call, real* room, real* coefficients) {
    constexpr int CHUNKS_OF_X = chunks_of(CHANNELS);
    const int jobs = CHUNKS_OF_X * PARTIAL;
    const int64_t index = blockIdx.x / jobs, tiles = gridDim.x / jobs;
    const int job = int(blockIdx.x % jobs), chunk = job % CHUNKS_OF_X;
    const Tile tile = Tile::make(index, call.height, call.width);
    if (job >= CHUNKS_OF_X) return pass_back(call, tile, index, tiles, chunk, job / CHUNKS_OF_X);
    Sums sums;
    clear(sums);
    add_groups<0>(call, tile, index, tiles, chunk, room, coefficients, sums);
    if (!call.dx.data) return;
    const Outer dy = spread(Outer(call.dy, tile.image));
    give_image(call, tile, chunk, dy, call.dx, 1, CHANNELS, sums);
}

// ---- what that leaves in partial sums: a block for each group, and one for the scale

template <int GROUP>
__device__ void finish_slopes(const Arguments& call, int64_t tiles) {
    constexpr int S = first_of_group<GROUP>();
    if constexpr (S >= 0) {
        constexpr Stage s = STAGE[S];
        if constexpr (s.activation == Activation::prelu) {
            SHARED(double, of_warps, WARPS);
            if (!(call.live & GROUP_CANDIDATES[GROUP])) return;
            double all = 0;
            for (int channel = warp_index(); channel < CHANNELS; channel += WARPS) {
                const double total = total_of(call, slope_sums<GROUP>() + channel, 0, tiles, tiles);
                if (s.slopes > 1 && lane_index() == 0) give<s.slope_slot>(call, channel, total);
                all += total;
            }
            const double sum = sum_of_warps(of_warps, all);
            if (s.slopes == 1 && threadIdx.x == 0) give<s.slope_slot>(call, 0, sum);
        }
    }
}

template <int GROUP = 0>
__device__ void finish_group(const Arguments& call, int group, int64_t tiles) {
    if constexpr (GROUP < GROUPS) {
        if (group == GROUP) return finish_slopes<GROUP>(call, tiles);
        finish_group<GROUP + 1>(call, group, tiles);
    }
}

// block: 0 to GROUPS - 1 and, last, the scale of what passes by.
__device__ inline void finish_input(const Arguments& call, int block) {
    const int64_t tiles = call.images * ((call.height + SIDE - 1) / SIDE) * ((call.width + SIDE - 1) / SIDE);
    if (block < GROUPS) return finish_group(call, block, tiles);
    if (PARTIAL == 1 || !call.dscale || warp_index() != 0) return;
    double sum = 0;
    for (int i = 0; i < (PARTIAL - 1) * chunks_of(OUTPUTS) * WARPS; ++i)
        sum += total_of(call, PASSING_SUMS + i, 0, tiles, tiles);
    if (lane_index() == 0) *call.dscale = real(sum);
}

}  // namespace srnas_fast_gpu
