// Between two passes: the statistics of norms, from what the tiles have left; running statistics move.
#pragma once

#include "pass_made.h"

namespace srnas_fast_gpu {

// One warp for each channel: the numbers of all tiles, added up in one order. Centred twice over: the
// variance is the sum of the tiles' own and of that of their means.
template <int S>
__device__ void finish_statistics(const Arguments& call) {
    constexpr Stage s = STAGE[S];
    if constexpr (s.norm == Norm::none) return;
    if (!call.alive(s.candidate)) return;
    SHARED(real, share, 4);
    Parameter* running_mean = nullptr;
    Parameter* running_variance = nullptr;
    if constexpr (s.statistics >= 0) {
        running_mean = static_cast<Parameter*>(call.statistics[3 * s.statistics]);
        running_variance = static_cast<Parameter*>(call.statistics[3 * s.statistics + 1]);
    }
    if (threadIdx.x == 0) {
        double seen = 0;
        if constexpr (s.norm == Norm::batch && s.moves && s.counts)
            seen = double(++*static_cast<int64_t*>(call.statistics[3 * s.statistics + 2]));
        share[0] = real(s.momentum >= 0 ? s.momentum : seen > 0 ? 1 / seen : 0);
    }
    __syncthreads();
    const int64_t per_image = call.tiles_of_an_image(), tiles = call.tiles();
    const double pixels = double(call.pixels());
    for (int channel = warp_index(); channel < s.outputs; channel += WARPS) {
        const real bias = parameter<s.bias>(call, channel);
        double mean = 0, variance = 0;
        if constexpr (s.norm == Norm::batch) {
            double total = 0, squares = 0;
            for (int64_t t = lane_index(); t < tiles; t += 32) {
                const Tile tile = Tile::make(t % per_image, call.out_height, call.out_width);
                total += double(tile.count()) * double(partial_sum(call, s.sums + channel, 0, t, tiles));
            }
            mean = warp_sum_wide(total) / pixels;
            for (int64_t t = lane_index(); t < tiles; t += 32) {
                const Tile tile = Tile::make(t % per_image, call.out_height, call.out_width);
                const double apart = double(partial_sum(call, s.sums + channel, 0, t, tiles)) - mean;
                squares += double(partial_sum(call, s.sums + channel, 1, t, tiles)) +
                           double(tile.count()) * apart * apart;
            }
            variance = warp_sum_wide(squares) / pixels;
            if (s.moves && lane_index() == 0) {
                const double moved = double(share[0]), unbiased = variance * (pixels / (pixels - 1));
                const double was_mean = double(read(running_mean + channel));
                const double was_variance = double(read(running_variance + channel));
                put(running_mean + channel, real(was_mean + moved * (mean + double(bias) - was_mean)));
                put(running_variance + channel, real(was_variance + moved * (unbiased - was_variance)));
            }
        } else {
            mean = double(read(running_mean + channel)) - double(bias);
            variance = double(read(running_variance + channel));
        }
        if (lane_index() == 0) {
            call.kept[S][channel] = real(mean);
            call.kept[S][s.outputs + channel] = real(variance);
            call.kept[S][2 * s.outputs + channel] = real(1 / sqrt(variance + s.eps));
        }
    }
}

// A block for each stage; phase 0: of the first stages, 1: of the second, 2: of those outside.
__device__ inline void statistics(const Arguments& call) {
    with_stage<Stages::all>(int(blockIdx.x), [&](auto s) {
        constexpr Stage stage = STAGE[s.value];
        if (call.phase == (stage.outside ? 2 : stage.first ? 0 : 1)) finish_statistics<s.value>(call);
    });
}

}  // namespace srnas_fast_gpu
