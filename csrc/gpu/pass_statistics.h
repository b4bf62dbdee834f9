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
    const int64_t tiles = call.tiles();
    const uint32_t per_image = uint32_t(call.tiles_of_an_image());
    const uint32_t across = uint32_t((call.out_width + SIDE - 1) / SIDE);
    const auto pixels_of = [&](int64_t t) {
        return double(
            Tile::count(uint32_t(t) % per_image, across, int(call.out_height), int(call.out_width)));
    };
    const double pixels = double(call.pixels());
    for (int channel = warp_index(); channel < s.outputs; channel += FINISHERS) {
        const real bias = parameter<s.bias>(call, channel);
        double mean = 0, variance = 0;
        if constexpr (s.norm == Norm::batch) {
            double total = 0, squares = 0;
#pragma unroll 4
            for (int64_t t = lane_index(); t < tiles; t += 32)
                total += pixels_of(t) * double(partial_sum(call, s.sums + channel, 0, t, tiles));
            mean = warp_sum_wide(total) / pixels;
#pragma unroll 4
            for (int64_t t = lane_index(); t < tiles; t += 32) {
                const double apart = double(partial_sum(call, s.sums + channel, 0, t, tiles)) - mean;
                squares +=
                    double(partial_sum(call, s.sums + channel, 1, t, tiles)) + pixels_of(t) * apart * apart;
            }
            variance = warp_sum_wide(squares) / pixels;
            if (s.moves && lane_index() == 0) {
                const double moved = double(share[0]), unbiased = variance * (pixels / (pixels - 1));
                const double was_mean = double(number(running_mean[channel]));
                const double was_variance = double(number(running_variance[channel]));
                put(running_mean + channel, real(was_mean + moved * (mean + double(bias) - was_mean)));
                put(running_variance + channel, real(was_variance + moved * (unbiased - was_variance)));
            }
        } else {
            mean = double(number(running_mean[channel])) - double(bias);
            variance = double(number(running_variance[channel]));
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
