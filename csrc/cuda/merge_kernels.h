// sum_k weights_k pad(kernels_k): several dilated kernels in one, each centred in the largest, and its
// gradients.
#pragma once

#include "device.h"

#ifndef __CUDACC_RTC__
#include <array>
#include <vector>

namespace srnas_fast_cuda {

// merged (O, I, S, S) and its gradient, and the gradients of the kernels, are contiguous; kernels have any
// strides.
struct MergeShape {
    int64_t outputs, inputs, size;                // O, I, S
    std::vector<int64_t> sizes, dilations;        // of the K kernels
    std::vector<std::array<int64_t, 4>> strides;  // of their dimensions (O, I, row, column)
};

void merge_kernels(float* merged, const MergeShape& shape, const float* weights,
                   const std::vector<const float*>& kernels, void* stream);

// Floats of scratch that the gradients need.
int64_t merge_kernels_backward_scratch(const MergeShape& shape);

// dweights_k = <kernel_k, dmerged at its taps>, dkernels_k = weights_k times those.
void merge_kernels_backward(const float* dmerged, const MergeShape& shape, const float* weights,
                            const std::vector<const float*>& kernels, float* dweights,
                            const std::vector<float*>& dkernels, float* scratch, void* stream);

}  // namespace srnas_fast_cuda
#endif
