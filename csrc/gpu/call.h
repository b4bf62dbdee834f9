// What one call of a program brings, and how its channels fall to the warps of a block.
#pragma once

#include "stage.h"

namespace srnas_fast_gpu {

// What a call brings, in words of 8 bytes: srnas_fast/mixed/gpu_call.py fills them in this order.
struct Arguments {
    int64_t phase;  // which of its parts a kernel does that has several
    int64_t images, height, width, out_height, out_width;
    int64_t live;       // a bit for each candidate
    int64_t shares;     // blocks that share the tiles of one sum, in the gradients of kernels
    View x, y, dy, dx;  // of all channels; null: there is none, or it is not wanted
    const real* weights;
    const real* scale;   // of the channels that pass by; null: 1
    real* sums_at;       // partial sums
    real* coefficients;  // (channels of all stages, 3): dz = a g + b z + c
    real* products_at;   // partial gradients of kernels
    real* dweights;
    real* dscale;
    const Parameter* parameters[SLOTS ? SLOTS : 1];
    Parameter* gradients[SLOTS ? SLOTS : 1];
    void* statistics[NORMS ? 3 * NORMS : 1];
    // Of each stage, if its candidate is alive: what its norm keeps, (3, O): mean, variance, one over the
    // deviation; its output before the norm, where it is stored; of the first of two the gradient of what the
    // norm makes.
    real* kept[STAGES ? STAGES : 1];
    real* made[STAGES ? STAGES : 1];
    real* returned[STAGES ? STAGES : 1];
    // What torch's own convolutions make of what a group reads, without bias; going back, the gradient of
    // that input.
    View outside[GROUPS ? GROUPS : 1];
    // Of each stage that they run: the merged kernel (O, C, size, size) that it is part of, going back the
    // gradient of that kernel; the kernel's size, and the steps of the stage's own taps inside; the sum of dy
    // (O).
    Pixel* merged[OUTSIDES ? OUTSIDES : 1];
    const Pixel* returned_merged[OUTSIDES ? OUTSIDES : 1];
    int64_t merged_size[OUTSIDES ? OUTSIDES : 1], merged_step[OUTSIDES ? OUTSIDES : 1];
    const real* dy_sum;

    __device__ bool alive(int candidate) const { return live >> candidate & 1; }
    __device__ int64_t pixels() const { return images * out_height * out_width; }
    // Of results.
    __device__ int64_t tiles() const { return images * tiles_of_an_image(); }
    __device__ int64_t tiles_of_an_image() const { return (out_height + 15) / 16 * ((out_width + 15) / 16); }
};

constexpr int THREADS = 32 * WARPS;
constexpr int FINISHERS = 16;     // warps of a block that adds up what tiles have left, a channel by each
constexpr int CHUNK = 4 * WARPS;  // channels of a block: each warp has four of them

__device__ inline int warp_index() { return int(threadIdx.x) / 32; }
__device__ inline int lane_index() { return int(threadIdx.x) % 32; }

template <int VALUE>
struct Number {
    static constexpr int value = VALUE;
};

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int chunks_of(int channels) { return ceil_div(channels, CHUNK); }
__device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// A parameter, or what stands for one that is not there.
template <int SLOT>
__device__ inline real parameter(const Arguments& call, int index, real without = 0) {
    if constexpr (SLOT < 0) return without;
    return read(call.parameters[SLOT < 0 ? 0 : SLOT] + index);
}

}  // namespace srnas_fast_gpu
