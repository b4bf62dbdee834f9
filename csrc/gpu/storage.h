// How numbers lie in memory and how they are computed with: images and parameters in float, half or bfloat16
// (under the emulation also double), all arithmetic in `real`.
#pragma once

#include "device.h"

namespace srnas_fast_gpu {

#ifdef SRNAS_FAST_EMULATE
using real = SRNAS_FAST_REAL;  // double, to be held to exact gradients, or float
#else
using real = float;
#endif

struct Half {
    uint16_t bits;
};
struct Brain {  // bfloat16
    uint16_t bits;
};

__device__ inline real number(float value) { return real(value); }
__device__ inline real number(double value) { return real(value); }
__device__ inline real number(Brain value) { return real(__uint_as_float(uint32_t(value.bits) << 16)); }
__device__ inline real number(Half value) {
#ifdef SRNAS_FAST_EMULATE
    _Float16 half;
    __builtin_memcpy(&half, &value.bits, 2);
    return real(half);
#else
    float wide;  // without NVIDIA's header, which NVRTC would have to find
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#endif
}

__device__ inline void put(float* to, real value) { *to = float(value); }
__device__ inline void put(double* to, real value) { *to = double(value); }
__device__ inline void put(Brain* to, real value) {
    const uint32_t bits = __float_as_uint(float(value));
    // To the nearest, ties to even; NaN stays one.
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to->bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
__device__ inline void put(Half* to, real value) {
#ifdef SRNAS_FAST_EMULATE
    const _Float16 half = _Float16(float(value));
    __builtin_memcpy(&to->bits, &half, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(float(value)));
#endif
}

// Through the read-only cache: before compute capability 7.0 the L1 cache holds nothing else of global
// memory. Of nothing that the same launch writes.
__device__ inline real read(const float* from) { return number(__ldg(from)); }
__device__ inline real read(const double* from) { return number(__ldg(from)); }
template <class T>
__device__ inline real read(const T* from) {
    T value;
    value.bits = __ldg(&from->bits);
    return number(value);
}

}  // namespace srnas_fast_gpu
