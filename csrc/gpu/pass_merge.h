// Dense convolutions of many channels and without a norm of their batch, which torch's own convolution runs:
// their weighted kernels as one, and from the gradient of that one those of each.
#pragma once

#include "sources.h"

namespace srnas_fast_gpu {

// Where a tile's share of a sum goes: three sums for each channel.
__device__ inline real& partial_sum(const Arguments& call, int channel, int which, int64_t tile,
                                    int64_t tiles) {
    return call.sums_at[(int64_t(channel) * 3 + which) * tiles + tile];
}

// Where a tap of a stage's kernel stands in the merged one.
template <int S>
__device__ inline int merged_tap(int64_t size, int64_t step, int tap) {
    constexpr int own = STAGE[S].size, reach = own / 2;
    const int middle = int(size) / 2;
    return (middle + (tap / own - reach) * int(step)) * int(size) + middle + (tap % own - reach) * int(step);
}

// The sum, at one element of the merged kernel, of the stages that are part of it.
template <int S = 0, int PLACE = 0>
__device__ real merged_at(const Arguments& call, const Pixel* kernel, int o, int c, int tap) {
    if constexpr (S >= STAGES) {
        return 0;
    } else if constexpr (!STAGE[S].outside) {
        return merged_at<S + 1, PLACE>(call, kernel, o, c, tap);
    } else {
        constexpr Stage s = STAGE[S];
        real value = 0;
        if (call.alive(s.candidate) && call.merged[PLACE] == kernel) {
            const int size = int(call.merged_size[PLACE]), step = int(call.merged_step[PLACE]);
            const int y = tap / size - size / 2 + s.size / 2 * step,
                      x = tap % size - size / 2 + s.size / 2 * step;
            if (y >= 0 && x >= 0 && y % step == 0 && x % step == 0 && y / step < s.size &&
                x / step < s.size) {
                const int own = y / step * s.size + x / step;
                value = call.weights[s.candidate] * scale_of<S>(call, o) *
                        parameter<s.conv>(call, (o * s.inputs + c) * s.size * s.size + own);
            }
        }
        return value + merged_at<S + 1, PLACE + 1>(call, kernel, o, c, tap);
    }
}

// phase: the first of the stages that are part of the kernel. A thread for each of its elements.
__device__ inline void merge(const Arguments& call) {
    if constexpr (OUTSIDES > 0) {
        int64_t size = 0;
        Pixel* kernel = nullptr;
#pragma unroll
        for (int place = 0; place < OUTSIDES; ++place) {
            if (place == call.phase) size = call.merged_size[place], kernel = call.merged[place];
        }
        const int area = int(size * size);
        const int64_t i = blockIdx.x * int64_t(THREADS) + threadIdx.x;
        if (i >= int64_t(OUTPUTS) * CHANNELS * area) return;
        const int tap = int(i % area), c = int(i / area % CHANNELS), o = int(i / area / CHANNELS);
        put(kernel + i, merged_at(call, kernel, o, c, tap));
    }
}

// The gradient of a row of a stage's kernel; the sums that the gradients of its weight and norm are made of,
// as one tile's share.
template <int S, int PLACE>
__device__ void return_row(const Arguments& call, int o) {
    constexpr Stage s = STAGE[S];
    constexpr int area = s.size * s.size, columns = s.inputs * area;
    if (!call.alive(s.candidate)) return;
    SHARED(double, shares, WARPS);
    const int size = int(call.merged_size[PLACE]);
    const Pixel* const row = call.returned_merged[PLACE] + int64_t(o) * s.inputs * size * size;
    Parameter* const gradient = call.gradients[s.conv];
    const real scale = call.weights[s.candidate] * scale_of<S>(call, o);
    double product = 0;
    for (int i = int(threadIdx.x); i < columns; i += THREADS) {
        const int tap = merged_tap<S>(size, call.merged_step[PLACE], i % area);
        const real value = read(row + i / area * size * size + tap);
        product += double(value) * double(parameter<s.conv>(call, o * columns + i));
        if (gradient) put(gradient + o * columns + i, scale * value);
    }
    product = warp_sum_wide(product);
    if (lane_index() == 0) shares[warp_index()] = product;
    __syncthreads();
    if (threadIdx.x != 0) return;
    product = 0;
    for (int warp = 0; warp < WARPS; ++warp) product += shares[warp];
    const double total = call.dy_sum ? double(call.dy_sum[o]) : 0;
    if constexpr (s.norm != Norm::none)  // of what the norm makes
        product = (product - double(call.kept[S][o]) * total) * double(call.kept[S][2 * s.outputs + o]);
    partial_sum(call, s.sums + o, 0, 0, call.tiles()) = real(total);
    partial_sum(call, s.sums + o, 1, 0, call.tiles()) = real(product);
}

// A block for each row of each stage.
template <int S = 0, int PLACE = 0>
__device__ void return_merged(const Arguments& call, int block) {
    if constexpr (S < STAGES) {
        if constexpr (!STAGE[S].outside) {
            return_merged<S + 1, PLACE>(call, block);
        } else {
            if (block < STAGE[S].outputs) return return_row<S, PLACE>(call, block);
            return_merged<S + 1, PLACE + 1>(call, block - STAGE[S].outputs);
        }
    }
}

}  // namespace srnas_fast_gpu
