// Sums of separable convolutions, pointwise_k (depthwise_k * x - centres_k), with their moments and
// gradients. The depthwise outputs d_k are made a few rows at a time, in the cache, wherever they are needed.
#pragma once

#include "activation.h"
#include "multi_depthwise.h"

namespace srnas_fast {

// Elements of scratch that the functions below need; `outputs` (O) is the number of channels of y, 0 without
// y.
template <class T>
int64_t separable_sum_scratch(const DepthwiseShape& shape, int64_t outputs, int threads);
template <class T>
int64_t separable_moments_scratch(const DepthwiseShape& shape, int threads);
template <class T>
int64_t separable_gradient_scratch(const DepthwiseShape& shape, int64_t outputs, int threads);

// y = shift + sum_k pointwise[k] (d_k - centres_k), or y += that. pointwise: (O, C) each, shift: (O) or null,
// centres: (K, C) or null.
template <class T>
void separable_sum(const DepthwiseShape& shape, const Source<T>& x, const std::vector<const T*>& depthwise,
                   const std::vector<const T*>& pointwise, const T* shift, const T* centres, int64_t outputs,
                   Tensor<T> y, bool accumulate, T* scratch, int threads);

// means (K, C) and biased covariances (K, C, C) of the d_k over all pixels.
template <class T>
void separable_moments(const DepthwiseShape& shape, const Source<T>& x,
                       const std::vector<const T*>& depthwise, T* means, T* covariances, T* scratch,
                       int threads);

// What the gradient starts from: dd_k = left[k] dy + right[k] (d_k - centres_k) + offsets_k.
template <class T>
struct GradientInput {
    Source<T> x;
    Tensor<const T> dy;                 // null data for none
    int64_t outputs;                    // channels of dy
    std::vector<const T*> depthwise;    // (C, k, k) each
    std::vector<const T*> left, right;  // (C, O) and (C, C) each; empty for none
    const T *offsets, *centres;         // (K, C) or null
};

// Where the results go; null or empty: not wanted.
template <class T>
struct GradientOutput {
    Tensor<T> dx;                          // sum_k depthwise_k^T dd_k
    bool accumulate;                       // dx += that
    T* dysum;                              // (O)
    std::vector<T*> ddepthwise, products;  // weight gradients; (O, C) sums of dy (d_k - centres_k)^T
};

template <class T>
void separable_gradient(const DepthwiseShape& shape, const GradientInput<T>& in, const GradientOutput<T>& out,
                        T* scratch, int threads);

}  // namespace srnas_fast
