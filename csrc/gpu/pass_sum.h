// The weighted sum on a tile: what is stored, through its norm; what needs no norm of its batch, made here;
// the identity; the channels that pass by.
#pragma once

#include "pass_made.h"

namespace srnas_fast_gpu {

template <int S>
__device__ void add_weighted(const Arguments& call, const Tile& tile, int chunk, real* room, real* affine,
                             Sums& sums) {
    constexpr Stage s = STAGE[S];
    if (!call.alive(s.candidate)) return;
    const real weight = call.weights[s.candidate];
    if constexpr (!s.stored() && !s.outside) {
        const auto scale = [&](int o) { return weight * scale_of<S>(call, o); };
        add_made<S>(call, tile, chunk, scale, room, affine, sums);
    }
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        if (channel >= s.outputs) continue;
        const real shift = weight * shift_of<S>(call, channel);
        real scale = 0;
        const real* plane = nullptr;
        if constexpr (s.stored()) {
            scale = weight * scale_of<S>(call, channel);
            plane = plane_of(call, call.made[S], s.outputs, tile.image, channel);
        }
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            sums[q][k] += shift;
            if constexpr (s.stored()) {
                if (inside(tile, q))
                    sums[q][k] +=
                        scale * plane[(tile.top + lane_y() + q) * int(call.out_width) + tile.left + lane_x()];
            }
        }
    }
}

template <int S>
__device__ void add_all(const Arguments& call, const Tile& tile, int chunk, real* room, real* affine,
                        Sums& sums) {
    if constexpr (S < STAGES) {
        if constexpr (STAGE[S].last) add_weighted<S>(call, tile, chunk, room, affine, sums);
        add_all<S + 1>(call, tile, chunk, room, affine, sums);
    }
}

// What torch's own convolutions made: of a group's input, forward all of it with the first group.
__device__ inline void add_outside(const Arguments& call, const Tile& tile, int chunk, int group,
                                   int channels, Sums& sums) {
    if constexpr (OUTSIDES > 0) {
        const View& view = call.outside[group];
        if (!view.data) return;
        const Outer image(view, tile.image);
#pragma unroll
        for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
#pragma unroll
            for (int q = 0; q < COLUMN; ++q) {
                if (inside(tile, q) && channel_of(chunk, k) < channels)
                    sums[q][k] +=
                        image.at(channel_of(chunk, k), tile.top + lane_y() + q, tile.left + lane_x());
            }
        }
    }
}

// The weights of all live identities.
__device__ inline real identity_weight(const Arguments& call) {
    real weight = 0;
#pragma unroll
    for (int k = 0; k < CANDIDATES; ++k) {
        if (IDENTITIES >> k & 1 && call.alive(k)) weight += call.weights[k];
    }
    return weight;
}

// Adds a lane's pixels of an image to its k-th channel. All of them are on their way at once: outside of the
// image stands its last pixel, which nobody stores.
__device__ inline void add_column(const Outer& image, const Tile& tile, int channel, real factor, int k,
                                  Sums& sums) {
    const int column = min(tile.left + lane_x(), tile.width - 1);
#pragma unroll
    for (int q = 0; q < COLUMN; ++q)
        sums[q][k] += factor * image.at(channel, min(tile.top + lane_y() + q, tile.height - 1), column);
}

// Writes a tile of an image, whose channels are `apart` channels of the tensor's apart: the sums, and where
// an identity is alive also its share of `same`.
__device__ inline void give_image(const Arguments& call, const Tile& tile, int chunk, const Outer& same,
                                  const View& view, int apart, int channels, Sums& sums) {
    const real weight = identity_weight(call);
    const bool any = IDENTITIES & uint64_t(call.live);
    Pixel* const image = static_cast<Pixel*>(view.data) + tile.image * view.n;
#pragma unroll
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        if (channel >= channels) continue;
        if (any) add_column(same, tile, channel, weight, k, sums);
        Pixel* const to = image + channel * apart * int(view.c) + (tile.left + lane_x()) * int(view.w);
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (inside(tile, q)) put(to + (tile.top + lane_y() + q) * int(view.h), sums[q][k]);
        }
    }
}

__device__ inline real passing_scale(const Arguments& call) { return call.scale ? *call.scale : real(1); }

// The largest of a window of 2 x 2, the first of equal ones, and which it is.
struct Largest {
    real value;
    int place;

    __device__ Largest(const Outer& x, int channel, int y, int column) : value(0), place(-1) {
        for (int i = 0; i < 4; ++i) {
            const real next = x.at(channel, 2 * y + i / 2, 2 * column + i % 2);
            if (place < 0 || next > value || next != next) value = next, place = i;
        }
    }
};

// The i-th of the channels that stand between two of the sum's: those of x from i * OUTPUTS on.
__device__ inline void pass_by(const Arguments& call, const Tile& tile, int chunk, int i) {
    const Outer x(call.x, tile.image);
    Pixel* const y = static_cast<Pixel*>(call.y.data) + tile.image * call.y.n;
    const real scale = passing_scale(call);
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        const int channel = channel_of(chunk, k);
        if (channel >= OUTPUTS) continue;
        for (int q = 0; q < COLUMN; ++q) {
            if (!inside(tile, q)) continue;
            const int row = tile.top + lane_y() + q, column = tile.left + lane_x(),
                      from = i * OUTPUTS + channel;
            const real value = STRIDE == 1 ? x.at(from, row, column) : Largest(x, from, row, column).value;
            put(y + (channel * PARTIAL + i) * int(call.y.c) + row * int(call.y.h) + column * int(call.y.w),
                scale * value);
        }
    }
}

// blockIdx.x counts the tiles, and for each its jobs: chunks of the sum, then of the channels that pass by.
__device__ inline void weighted_sum(const Arguments& call, real* room, real* affine) {
    constexpr int CHUNKS_OF_SUM = chunks_of(OUTPUTS);
    const int jobs = CHUNKS_OF_SUM * PARTIAL;
    const int job = int(blockIdx.x % jobs), chunk = job % CHUNKS_OF_SUM;
    const Tile tile = Tile::make(blockIdx.x / jobs, call.out_height, call.out_width);
    if (job >= CHUNKS_OF_SUM) return pass_by(call, tile, chunk, job / CHUNKS_OF_SUM);
    Sums sums;
    clear(sums);
    add_all<0>(call, tile, chunk, room, affine, sums);
    add_outside(call, tile, chunk, 0, OUTPUTS, sums);
    give_image(call, tile, chunk, Outer(call.x, tile.image), call.y, PARTIAL, OUTPUTS, sums);
}

}  // namespace srnas_fast_gpu
