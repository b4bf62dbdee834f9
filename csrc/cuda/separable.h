// Sums of separable convolutions, pointwise_k (depthwise_k * x - centres_k), with their moments and
// gradients. The depthwise outputs d_k are made a tile at a time, in shared memory, wherever they are needed.
#pragma once

#include "multi_depthwise.h"

#ifndef __CUDACC_RTC__

namespace srnas_fast_cuda {

// y = shift + sum_k pointwise[k] (d_k - centres_k), or y += that. pointwise: (O, C) each, shift: (O) or null,
// centres: (K, C) or null.
void separable_sum(const DepthwiseShape& shape, Tensor<const float> x,
                   const std::vector<const float*>& depthwise, const std::vector<const float*>& pointwise,
                   const float* shift, const float* centres, int64_t outputs, Tensor<float> y,
                   bool accumulate, void* stream);

// Floats of scratch that the functions below need; `outputs` (O) is the number of channels of dy, 0 without
// dy.
int64_t separable_moments_scratch(const DepthwiseShape& shape);
int64_t separable_gradient_scratch(const DepthwiseShape& shape, int64_t outputs);

// means (K, C) and biased covariances (K, C, C) of the d_k over all pixels, of which there is at least one.
void separable_moments(const DepthwiseShape& shape, Tensor<const float> x,
                       const std::vector<const float*>& depthwise, float* means, float* covariances,
                       float* scratch, void* stream);

// What the gradient starts from: dd_k = left[k] dy + right[k] (d_k - centres_k) + offsets_k.
struct GradientInput {
    Tensor<const float> x, dy;              // dy: null data for none
    int64_t outputs;                        // channels of dy
    std::vector<const float*> depthwise;    // (C, k, k) each
    std::vector<const float*> left, right;  // (C, O) and (C, C) each; empty for none
    const float *offsets, *centres;         // (K, C) or null
};

// Where the results go; null or empty: not wanted.
struct GradientOutput {
    Tensor<float> dx;                          // sum_k depthwise_k^T dd_k
    bool accumulate;                           // dx += that
    float* dysum;                              // (O)
    std::vector<float*> ddepthwise, products;  // weight gradients; (O, C) sums of dy (d_k - centres_k)^T
};

// One dd_k at a time is stored, in the scratch.
void separable_gradient(const DepthwiseShape& shape, const GradientInput& in, const GradientOutput& out,
                        float* scratch, void* stream);

}  // namespace srnas_fast_cuda
#endif
