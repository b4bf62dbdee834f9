// y = shift + sum_k weights_k (z_k - centres_k) and its gradients, each tensor read and written once.
#pragma once

#include <cstdint>
#include <vector>

namespace srnas_fast {

// A tensor in memory: its elements lie together in blocks, which begin `step` elements after each other.
// Dense with step == block; a slice of channels has one block an image, or in channels_last one a pixel.
template <class T>
struct Blocks {
    const T* data;
    int64_t block, step;

    // Where elements [at, at + count) lie together: in place, or in `line`, to which they were copied.
    const T* read(int64_t at, int64_t count, T* line) const;
};

// All tensors are of one layout, and dense but for the zs: element i of `size` is in channel (i / inner) %
// channels. weights: (K, channels) if per_channel, else (K); shift: (channels) or null; centres: (K,
// channels) or null.
template <class T>
struct WeightedSum {
    int64_t size, channels, inner;
    std::vector<Blocks<T>> zs;
    const T* weights;
    bool per_channel;
    const T* centres;
};

// y = the sum, or y += the sum. y shares no memory with the zs.
template <class T>
void weighted_sum(T* y, bool accumulate, const WeightedSum<T>& sum, const T* shift, int threads);

// dweights (like weights) = <dy, z_k - centres_k>, or nothing if there are no zs; dysum (channels) = sum of
// dy; dzs[k] = weights_k dy where it is not null.
template <class T>
void weighted_sum_backward(const T* dy, const WeightedSum<T>& sum, T* dweights, T* dysum,
                           const std::vector<T*>& dzs, int threads);

}  // namespace srnas_fast
