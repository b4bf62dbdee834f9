// What a kernel is written against: CUDA under nvcc and NVRTC, its emulation under g++.
//
// One source serves all three. The rules that make it so:
// - Each thread of a block meets every __syncthreads() and every shuffle: no kernel returns before its last.
// - Shared memory is static: `__shared__ float tile[32][33];`. Shuffles are of whole warps.
// - NVRTC compiles device code only. Host code stands at a file's end behind `#ifndef __CUDACC_RTC__`, and a
//   kernel template is instantiated explicitly before it, since NVRTC sees no launch that would do so.
// - A kernel is launched by LAUNCH(kernel, grid, block, stream, arguments...), where a template's name stands
//   in parentheses if it has a comma: (kernel<A, B>).
#pragma once

#if defined(SRNAS_FAST_EMULATE)

#include "emulation.h"

#elif defined(__CUDACC_RTC__)

using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;

#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace srnas_fast_cuda {

// A launch that was refused is an error here and now, not in the next call of torch.
inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("cannot launch ") + kernel + ": " + cudaGetErrorString(error));
}

}  // namespace srnas_fast_cuda

#define LAUNCH(kernel, grid, block, stream, ...)                                    \
    do {                                                                            \
        kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
        srnas_fast_cuda::check_launch(#kernel);                                     \
    } while (false)

#endif

namespace srnas_fast_cuda {

constexpr unsigned WHOLE_WARP = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// a / b of numbers that are not negative: where both are short, as they mostly are, several times as fast.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : int64_t(uint32_t(a) / uint32_t(b));
}

}  // namespace srnas_fast_cuda
