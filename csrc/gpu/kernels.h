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
// blocks: so many are to fit on a multiprocessor, which bounds the registers.
#define KERNEL(name, threads, blocks)                      \
    extern "C" __global__ void name(const Arguments call); \
    EMULATED_KERNEL(name, Arguments);                      \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Arguments call)

#if SERVES(0)
KERNEL(srnas_fast_first, THREADS, MANY) {
    SHARED(real, room, room_of<Of::first>());
    make_first(call, room);
}
#endif

#if SERVES(1)
KERNEL(srnas_fast_second, THREADS, MANY) {
    SHARED(real, room, room_of<Of::second>());
    SHARED(real, affine, 128);
    make_second(call, room, affine);
}
#endif

#if SERVES(2)
KERNEL(srnas_fast_statistics, 32 * FINISHERS, 1) { statistics(call); }
#endif

#if SERVES(3)
KERNEL(srnas_fast_sum, THREADS, MANY) {
    SHARED(real, room, room_of<Of::sum>());
    SHARED(real, affine, 128);
    weighted_sum(call, room, affine);
}
#endif

#if SERVES(4)
KERNEL(srnas_fast_finish, 32 * FINISHERS, 1) { finish_gradients(call); }
#endif

#if SERVES(5)
KERNEL(srnas_fast_back, THREADS, MANY) {
    SHARED(real, room, room_of<Of::back>());
    SHARED(real, affine, 128);
    SHARED(real, coefficients, 192);
    return_seconds(call, room, affine, coefficients);
}
#endif

#if SERVES(6)
KERNEL(srnas_fast_input, THREADS, FEWER) {
    SHARED(real, room, room_of<Of::input>());
    SHARED(real, coefficients, 192);
    input_gradient(call, room, coefficients);
}
#endif

#if SERVES(7)
KERNEL(srnas_fast_kernels, THREADS, FEWER) {
    SHARED(real, room, kernels_room());
    SHARED(real, affine, 128);
    SHARED(real, coefficients, 192);
    kernel_products(call, room, affine, coefficients);
}
#endif

#if SERVES(8)
// First the gradients of x's activations and of the scale, then those of kernels.
KERNEL(srnas_fast_gather, THREADS, 1) {
    if (int(blockIdx.x) <= GROUPS) return finish_input(call, int(blockIdx.x));
    gather_kernels(call);
}
#endif

#if SERVES(9)
KERNEL(srnas_fast_merge, THREADS, 1) { merge(call); }
#endif

}  // namespace srnas_fast_gpu
