// z_k = depthwise_k * x for several kernels of one input, and its gradients.
#pragma once

#include "tensor.h"

#ifndef __CUDACC_RTC__
#include <algorithm>
#include <vector>

namespace srnas_fast_cuda {

// The sizes of the input and of the kernels. An output has the size (height - 1) / stride + 1.
struct DepthwiseShape {
    int64_t images, channels, height, width;
    std::vector<int64_t> sizes, dilations;
    int64_t stride;

    int64_t count() const { return int64_t(sizes.size()); }
    int64_t out_height() const { return (height - 1) / stride + 1; }
    int64_t out_width() const { return (width - 1) / stride + 1; }
    bool empty() const { return images * channels * height * width == 0; }

    // From the size of the image on all taps but the middle ones lie outside of it, however far.
    int64_t dilation(int64_t k) const { return std::min(dilations[k], std::max(height, width)); }
    int64_t reach() const {
        int64_t most = 0;
        for (int64_t k = 0; k < count(); ++k) most = std::max(most, dilation(k) * (sizes[k] / 2));
        return most;
    }
    // The same images with one kernel only.
    DepthwiseShape only(int64_t k) const {
        return {images, channels, height, width, {sizes[k]}, {dilations[k]}, stride};
    }
};

void multi_depthwise(const DepthwiseShape& shape, Tensor<const float> x,
                     const std::vector<const float*>& weights, const std::vector<Tensor<float>>& outputs,
                     void* stream);

// Floats of scratch that the weight gradients need.
int64_t multi_depthwise_backward_scratch(const DepthwiseShape& shape);

// dx (null data: not wanted) = the input gradient; dweights[k] (none: not wanted) = the weight gradients.
void multi_depthwise_backward(const DepthwiseShape& shape, Tensor<const float> x,
                              const std::vector<Tensor<const float>>& dys,
                              const std::vector<const float*>& weights, Tensor<float> dx,
                              const std::vector<float*>& dweights, float* scratch, void* stream);

// dx = the input gradient, or dx += it.
void depthwise_input_gradient(const DepthwiseShape& shape, const std::vector<Tensor<const float>>& dys,
                              const std::vector<const float*>& weights, Tensor<float> dx, bool accumulate,
                              void* stream);

}  // namespace srnas_fast_cuda
#endif
