// The store of partial channels: a part y of the channels beside those of x that passed by, shuffled.
#pragma once

#include "tensor.h"

namespace srnas_fast_cuda {

// x has part * groups channels and `stride` (1 or 2) times the height and width given here, those of y and of
// the output. Channel j * groups of the output is channel j of y; channel j * groups + i, i >= 1, is channel
// i * part + j of x times *scale, at stride 2 the maximum of each of its 2 x 2 windows.
struct ShuffleShape {
    int64_t images, part, groups, height, width, stride;

    __host__ __device__ int64_t size() const {
        return images * part * groups * height * width;
    }  // of the output
};

// A NaN in a window is its maximum. scale is one number on the device, or null for 1.
void shuffle_concat(const ShuffleShape& shape, Tensor<const float> y, Tensor<const float> x,
                    const float* scale, Tensor<float> out, void* stream);

// Floats of scratch that dscale needs.
int64_t shuffle_concat_backward_scratch(const ShuffleShape& shape);

// dy and the channels of dx from `part` on, each element of dout to the first maximum of its window (to the
// last NaN where there is one); dscale (a single number). dx.data and dscale may be null, scratch without
// dscale.
void shuffle_concat_backward(const ShuffleShape& shape, Tensor<const float> dout, Tensor<const float> x,
                             const float* scale, Tensor<float> dy, Tensor<float> dx, float* dscale,
                             float* scratch, void* stream);

}  // namespace srnas_fast_cuda
