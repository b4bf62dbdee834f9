// Dense convolutions of few channels, z[o] = bias[o] + sum over c and taps of kernel[o][c][tap] * shifted
// x[c].
//
// The vectors run over pixels, not over channels: so a number of channels that is no multiple of the lanes
// wastes nothing. Stride 1, zeros around the image, outputs of its size.
#pragma once

#include "activation.h"
#include "planes.h"

namespace srnas_fast {

struct NarrowShape {
    int64_t images, channels, outputs, height, width;
    int64_t size, dilation;  // of the kernel (outputs, channels, size, size)

    int64_t taps() const { return size * size; }
    int64_t reach() const { return dilation * (size / 2); }
};

// Elements of scratch that the functions below need.
template <class T>
int64_t narrow_convolution_scratch(const NarrowShape& shape, bool backward, int threads);

// z = the convolution, or z += it. Null bias: zeros. Null mean: the mean and the biased variance of each
// output channel are not wanted; with them z is written, not added to.
template <class T>
void narrow_convolution(const NarrowShape& shape, const Source<T>& x, const T* kernel, const T* bias,
                        Tensor<T> z, bool accumulate, T* mean, T* variance, T* scratch, int threads);

// The gradient that goes back through the convolution: dy itself, or (with z) scale dy + right (z - centre) +
// offset, a number of each for every channel: what a norm behind the convolution makes of dy, never stored.
template <class T>
struct NarrowGradient {
    Tensor<const T> dy, z;
    const T *scale, *right, *centre, *offset;
};

// dx = the gradient, or dx += it. Null dx.data, null dkernel: not wanted. x is read for dkernel only.
template <class T>
void narrow_convolution_backward(const NarrowShape& shape, const NarrowGradient<T>& dz, const Source<T>& x,
                                 const T* kernel, Tensor<T> dx, bool accumulate, T* dkernel, T* scratch,
                                 int threads);

}  // namespace srnas_fast
