// Images in memory, of any strides.
#pragma once

#include "device.h"

namespace srnas_fast_cuda {

// (N, C, H, W) with strides, in elements.
template <class T>
struct Tensor {
    T* data;
    int64_t n, c, h, w;

    __host__ __device__ T& at(int64_t image, int64_t channel, int64_t y, int64_t x) const {
        return data[image * n + channel * c + y * h + x * w];
    }
};

}  // namespace srnas_fast_cuda
