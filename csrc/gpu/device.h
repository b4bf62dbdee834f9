// What a kernel is written against: CUDA under NVRTC, its emulation under g++.
//
// The rules that let one source serve both:
// - Blocks are of whole warps. Each thread of a block meets every __syncthreads(), each lane of a warp every
//   __syncwarp() and shuffle, at the same line, and with the mask 0xffffffff: none returns before its last.
// - Shared memory is declared in the body of a function, by SHARED(float, tile, 32 * 33); as a statement of
//   its own. It holds garbage, in the emulation NaN, when a block begins. No pointer to it is __restrict__:
//   the compiler could keep what another thread has overwritten.
// - A kernel is `extern "C" __global__ void NAME(const Arguments a)` with a trivially copyable struct of at
//   most 4 KiB, and EMULATED_KERNEL(NAME, Arguments); follows it.
// - There are no atomics, no vector types and no dynamic shared memory.
#pragma once

#if defined(SRNAS_FAST_EMULATE)

#include "emulation.h"

#else

#if defined(__CUDACC_RTC__)
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using int32_t = int;
using int64_t = long long;
#else
#include <stdint.h>
#endif

#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define EMULATED_KERNEL(NAME, Arguments) static_assert(true, "takes a semicolon")

#endif
