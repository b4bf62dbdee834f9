// y = shift + sum_k weights_k (z_k - centres_k) and its gradients, each tensor read and written once.
#pragma once

#include "device.h"

#ifndef __CUDACC_RTC__
#include <vector>
#endif

namespace srnas_fast_cuda {

// A tensor in memory: its elements lie together in blocks, which begin `step` elements after each other.
// Dense with step == block; a slice of channels has one block an image, or in channels_last one a pixel.
struct Blocks {
    const float* data;
    int64_t block, step;
};

#ifndef __CUDACC_RTC__

// All tensors are of one layout, and dense but for the zs: element i of `size` is in channel (i / inner) %
// channels, of which there is at least one. weights: (K, channels) if per_channel, else (K); shift:
// (channels) or null; centres: (K, channels) or null.
struct WeightedSum {
    int64_t size, channels, inner;
    std::vector<Blocks> zs;
    const float* weights;
    bool per_channel;
    const float* centres;
};

// y = the sum, or y += the sum. y shares no memory with the zs.
void weighted_sum(float* y, bool accumulate, const WeightedSum& sum, const float* shift, void* stream);

// Floats of scratch that the gradients need.
int64_t weighted_sum_backward_scratch(const WeightedSum& sum);

// dweights (like weights) = <dy, z_k - centres_k>, or nothing if there are no zs; dysum (channels) = sum of
// dy; dzs[k] = weights_k dy where it is not null.
void weighted_sum_backward(const float* dy, const WeightedSum& sum, float* dweights, float* dysum,
                           const std::vector<float*>& dzs, float* scratch, void* stream);

#endif

}  // namespace srnas_fast_cuda
