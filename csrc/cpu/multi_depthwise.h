// z_k = depthwise_k * x for several kernels of one input, and its gradients.
#pragma once

#include "depthwise.h"

namespace srnas_fast {

// The sizes of the input and of the kernels. An output has the size (height - 1) / stride + 1.
struct DepthwiseShape {
    int64_t images, channels, height, width;
    std::vector<int64_t> sizes, dilations;
    int64_t stride;

    int64_t count() const { return int64_t(sizes.size()); }
    int64_t out_height() const { return (height - 1) / stride + 1; }
    int64_t out_width() const { return (width - 1) / stride + 1; }
    int64_t reach() const {
        int64_t most = 0;
        for (int64_t k = 0; k < count(); ++k) most = std::max(most, dilations[k] * (sizes[k] / 2));
        return most;
    }
    int64_t taps() const {
        int64_t sum = 0;
        for (const int64_t size : sizes) sum += size * size;
        return sum;
    }
    template <class T>
    Planes x_planes() const {
        return Planes::make<T>(height, width, reach(), stride);
    }
    template <class T>
    Planes dz_planes() const {
        return Planes::make<T>(out_height(), out_width(), divide_up(reach(), stride), 1);
    }
    template <class T>
    Planes dx_planes() const {
        return Planes::make<T>(height, width, 0, stride);
    }
    template <class T>
    Planes z_planes() const {
        return Planes::make<T>(out_height(), out_width(), 0, 1);
    }
    template <class T>
    std::vector<Kernel<T>> kernels(const std::vector<const T*>& weights) const {
        const Planes x = x_planes<T>(), dz = dz_planes<T>();
        std::vector<Kernel<T>> all;
        for (int64_t k = 0; k < count(); ++k) all.emplace_back(weights[k], sizes[k], dilations[k], x, dz);
        return all;
    }
};

// Elements of scratch that the functions below need.
template <class T>
int64_t multi_depthwise_scratch(const DepthwiseShape& shape, int threads);

template <class T>
void multi_depthwise(const DepthwiseShape& shape, Tensor<const T> x, const std::vector<const T*>& weights,
                     const std::vector<Tensor<T>>& outputs, T* scratch, int threads);

// dx (null data: not wanted) = the input gradient; dweights[k] (none: not wanted) = the weight gradients.
template <class T>
void multi_depthwise_backward(const DepthwiseShape& shape, Tensor<const T> x,
                              const std::vector<Tensor<const T>>& dys, const std::vector<const T*>& weights,
                              Tensor<T> dx, const std::vector<T*>& dweights, T* scratch, int threads);

}  // namespace srnas_fast
