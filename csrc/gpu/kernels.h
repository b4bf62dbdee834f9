// The kernels of a program, each compiled by itself: the text that is compiled defines PASS and includes
// this; under the emulation all of them at once.
#pragma once

#include "pass_input.h"
#include "pass_kernels.h"
#include "pass_statistics.h"

namespace srnas_fast_gpu {

#ifdef SRNAS_FAST_EMULATE
#define SERVES(pass) 1
#else
#define SERVES(pass) (PASS == pass)
#endif
#define KERNEL(name)                                       \
    extern "C" __global__ void name(const Arguments call); \
    EMULATED_KERNEL(name, Arguments);                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const Arguments call)

#if SERVES(0)
KERNEL(srnas_fast_first) {
    SHARED(real, room, ROOM);
    make_first(call, room);
}
#endif

#if SERVES(1)
KERNEL(srnas_fast_second) {
    SHARED(real, room, ROOM);
    SHARED(real, affine, 128);
    make_second(call, room, affine);
}
#endif

#if SERVES(2)
KERNEL(srnas_fast_statistics) { statistics(call); }
#endif

#if SERVES(3)
KERNEL(srnas_fast_sum) {
    SHARED(real, room, ROOM);
    SHARED(real, affine, 128);
    weighted_sum(call, room, affine);
}
#endif

#if SERVES(4)
KERNEL(srnas_fast_finish) { finish_gradients(call); }
#endif

#if SERVES(5)
KERNEL(srnas_fast_back) {
    SHARED(real, room, ROOM);
    SHARED(real, affine, 128);
    SHARED(real, coefficients, 192);
    return_seconds(call, room, affine, coefficients);
}
#endif

#if SERVES(6)
KERNEL(srnas_fast_input) {
    SHARED(real, room, ROOM);
    SHARED(real, coefficients, 192);
    input_gradient(call, room, coefficients);
}
#endif

#if SERVES(7)
KERNEL(srnas_fast_kernels) {
    SHARED(real, room, ROOM);
    SHARED(real, affine, 128);
    SHARED(real, coefficients, 192);
    kernel_products(call, room, affine, coefficients);
}
#endif

#if SERVES(8)
// First the gradients of x's activations and of the scale, then those of kernels.
KERNEL(srnas_fast_gather) {
    if (int(blockIdx.x) <= GROUPS) return finish_input(call, int(blockIdx.x));
    gather_kernels(call);
}
#endif

}  // namespace srnas_fast_gpu
