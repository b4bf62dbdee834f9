// What stages make of a tile: stored where a norm or another stage has to see it, with the partial sums that
// norms and, going back, the gradients of weights and norms need. First stages in one launch, second ones in
// another.
#pragma once

#include "maps.h"
#include "pass_merge.h"

namespace srnas_fast_gpu {

// Keeps the mean and the sum of squares around it, of each channel's pixels in the tile.
__device__ inline void give_moments(const Arguments& call, const Tile& tile, int64_t index, int64_t tiles,
                                    int chunk, int before, int channels, const Sums& sums) {
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        real total = 0, squares = 0;
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) total += inside(tile, q) ? sums[q][k] : real(0);
        const real mean = warp_sum(total) / real(tile.count());
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            const real apart = inside(tile, q) ? sums[q][k] - mean : real(0);
            squares += apart * apart;
        }
        squares = warp_sum(squares);
        const int channel = channel_of(chunk, k);
        if (lane_index() == 0 && channel < channels) {
            partial_sum(call, before + channel, 0, index, tiles) = mean;
            partial_sum(call, before + channel, 1, index, tiles) = squares;
        }
    }
}

// Keeps the sums of dy, and of dy times (value - mean) * rstd.
template <class Mean, class Deviation>
__device__ void give_products(const Arguments& call, const Tile& tile, int64_t index, int64_t tiles,
                              int chunk, int before, int channels, const Mean& mean, const Deviation& rstd,
                              const Sums& sums) {
    const Outer dy = spread(Outer(call.dy, tile.image));
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        real values[COLUMN];
        take(sums, k, values);
        const int channel = channel_of(chunk, k);
        const bool there = channel < channels;
        const real middle = there ? mean(channel) : real(0), factor = there ? rstd(channel) : real(0);
        real total = 0, product = 0;
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (there && inside(tile, q)) {
                const real value = dy.at(channel, tile.top + lane_y() + q, tile.left + lane_x());
                total += value;
                product += value * (values[q] - middle);
            }
        }
        total = warp_sum(total);
        product = warp_sum(product) * factor;
        if (lane_index() == 0 && there) {
            partial_sum(call, before + channel, 0, index, tiles) = total;
            partial_sum(call, before + channel, 1, index, tiles) = product;
        }
    }
}

template <int S>
__device__ void store(const Arguments& call, const Tile& tile, int chunk, const Sums& sums) {
    constexpr Stage s = STAGE[S];
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        if (channel >= s.outputs) continue;
        real* const plane = plane_of(call, call.made[S], s.outputs, tile.image, channel);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (inside(tile, q))
                plane[(tile.top + lane_y() + q) * int(call.out_width) + tile.left + lane_x()] = sums[q][k];
        }
    }
}

// sums += scale(o) times stage S's map of what it reads.
template <int S, class Scale>
__device__ void add_made(const Arguments& call, const Tile& tile, int chunk, const Scale& scale, real* room,
                         real* affine, Sums& sums) {
    if constexpr (STAGE[S].first) {
        add_stage<S>(call, tile, Activated<S>(call, tile.image), chunk, scale, int(call.height),
                     int(call.width), room, sums);
    } else {
        add_stage<S>(call, tile, Between<S>(call, tile.image, affine), chunk, scale, int(call.out_height),
                     int(call.out_width), room, sums);
    }
}

template <int S>
__device__ void make(const Arguments& call, int64_t index, int64_t tiles, int chunk, real* room,
                     real* affine) {
    constexpr Stage s = STAGE[S];
    const bool back = call.dy.data != nullptr;
    if (!call.alive(s.candidate) || chunk >= chunks_of(s.outputs) || !(s.stored() || back)) return;
    const Tile tile = Tile::make(index, call.out_height, call.out_width);
    Sums sums;
    clear(sums);
    add_made<S>(call, tile, chunk, [](int) { return real(1); }, room, affine, sums);
    if constexpr (s.stored()) store<S>(call, tile, chunk, sums);
    if (!back) {
        if constexpr (s.norm == Norm::batch)
            give_moments(call, tile, index, tiles, chunk, s.sums, s.outputs, sums);
        return;
    }
    if constexpr (s.last) {
        const auto mean = [&](int c) { return s.norm == Norm::none ? real(0) : call.kept[S][c]; };
        const auto rstd = [&](int c) {
            return s.norm == Norm::none ? real(1) : call.kept[S][2 * s.outputs + c];
        };
        give_products(call, tile, index, tiles, chunk, s.sums, s.outputs, mean, rstd, sums);
    }
}

// Going back: the sums of dy times x, whose total is the gradient of an identity's weight.
__device__ inline void give_identity(const Arguments& call, int64_t index, int64_t tiles, int chunk) {
    if (!call.dy.data || chunk >= chunks_of(CHANNELS)) return;
    const Tile tile = Tile::make(index, call.out_height, call.out_width);
    const Outer x(call.x, tile.image);
    Sums sums;
    clear(sums);
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (channel < CHANNELS && inside(tile, q))
                sums[q][k] = x.at(channel, tile.top + lane_y() + q, tile.left + lane_x());
        }
    }
    give_products(
        call, tile, index, tiles, chunk, IDENTITY_SUMS, CHANNELS, [](int) { return real(0); },
        [](int) { return real(1); }, sums);
}

// Which stages a pass is about.
enum class Stages { first, second, all };

// Calls body with the job-th of them, as a constant.
template <Stages WHICH, int S = 0, class Body>
__device__ void with_stage(int job, const Body& body) {
    if constexpr (S < STAGES) {
        if constexpr (WHICH == Stages::all ||
                      (!STAGE[S].outside && STAGE[S].first == (WHICH == Stages::first))) {
            if (job == 0) return body(Number<S>{});
            --job;
        }
        with_stage<WHICH, S + 1>(job, body);
    }
}

// blockIdx.x counts the tiles, and for each its jobs: a chunk of a stage's outputs, last the identities.
// Behind them going back, the rows of kernels that torch's own convolutions ran with.
__device__ inline void make_first(const Arguments& call, real* room) {
    const int jobs = (FIRST_STAGES + (IDENTITIES ? 1 : 0)) * CHUNKS;
    const int64_t tiles = call.tiles();
    if (blockIdx.x >= tiles * jobs) return return_merged(call, int(blockIdx.x - tiles * jobs));
    const int64_t tile = blockIdx.x / jobs;
    const int job = int(blockIdx.x % jobs), chunk = job % CHUNKS;
    if (job / CHUNKS == FIRST_STAGES) return give_identity(call, tile, tiles, chunk);
    with_stage<Stages::first>(job / CHUNKS,
                              [&](auto s) { make<s.value>(call, tile, tiles, chunk, room, nullptr); });
}

__device__ inline void make_second(const Arguments& call, real* room, real* affine) {
    const int jobs = SECOND_STAGES * CHUNKS;
    const int64_t tile = blockIdx.x / jobs, tiles = gridDim.x / jobs;
    const int job = int(blockIdx.x % jobs);
    with_stage<Stages::second>(job / CHUNKS,
                               [&](auto s) { make<s.value>(call, tile, tiles, job % CHUNKS, room, affine); });
}

}  // namespace srnas_fast_gpu
