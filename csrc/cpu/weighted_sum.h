// y = shift + sum_k weights_k (z_k - centres_k) and its gradients, each tensor read and written once.
#pragma once

#include <cstdint>
#include <vector>

namespace srnas_fast {

// All tensors are dense and of one layout: element i of `size` is in channel (i / inner) % channels.
// weights: (K, channels) if per_channel, else (K); shift: (channels) or null; centres: (K, channels) or null.
template <class T>
struct WeightedSum {
    int64_t size, channels, inner;
    std::vector<const T*> zs;
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
