// sum_k weights_k pad(kernels_k): several dilated kernels in one, each centred in the largest, and its
// gradients.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace srnas_fast {

// merged (O, I, S, S) and its gradient, and the gradients of the kernels, are contiguous; kernels have any
// strides.
struct MergeShape {
    int64_t outputs, inputs, size;                // O, I, S
    std::vector<int64_t> sizes, dilations;        // of the K kernels
    std::vector<std::array<int64_t, 4>> strides;  // of their dimensions (O, I, row, column)
};

template <class T>
void merge_kernels(T* merged, const MergeShape& shape, const T* weights, const std::vector<const T*>& kernels,
                   int threads);

// dweights_k = <kernel_k, dmerged at its taps>, dkernels_k = weights_k times those.
template <class T>
void merge_kernels_backward(const T* dmerged, const MergeShape& shape, const T* weights,
                            const std::vector<const T*>& kernels, T* dweights,
                            const std::vector<T*>& dkernels, int threads);

}  // namespace srnas_fast
