// The sum of a number over the threads of a block, always in the same order.
#pragma once

#include "device.h"

namespace srnas_fast_cuda {

// For one-dimensional blocks of THREADS threads, a multiple of 32 and at most 1024. Every thread calls it;
// the sum is what the first gets back.
template <int THREADS, class T>
__device__ T block_sum(T value) {
    constexpr int WARPS = THREADS / 32;
    __shared__ T partial[WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(WHOLE_WARP, value, step);
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    if (warp == 0) {
        value = lane < WARPS ? partial[lane] : T(0);
        for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(WHOLE_WARP, value, step);
    }
    __syncthreads();  // the next sum may overwrite the partial ones
    return value;
}

}  // namespace srnas_fast_cuda
