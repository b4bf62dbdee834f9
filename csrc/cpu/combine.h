// Passes over whole images, plane by plane: weighted sums, products summed over all pixels, activations and
// their gradients, copies between layouts. Where nothing else is said, pixels of a row lie together.
#pragma once

#include <vector>

#include "activation.h"

namespace srnas_fast {

struct ImageSize {
    int64_t images, channels, height, width;

    int64_t planes() const { return images * channels; }
    int64_t pixels() const { return images * height * width; }
    int64_t elements() const { return planes() * height * width; }
};

// A dense image (N, C, H, W) at an address.
template <class T>
Tensor<T> dense_image(T* data, const ImageSize& size) {
    const int64_t plane = size.height * size.width;
    return {data, size.channels * plane, plane, size.width, 1};
}

template <class T>
bool rows_lie_together(const Tensor<T>& image, const ImageSize& size) {
    return image.w == 1 || size.width == 1;
}

// scale (image - centre), a number of both for each channel; no centre: 0.
template <class T>
struct Term {
    Tensor<const T> image;
    const T *scale, *centre;
};

// out = the sum of the terms (one or two) + shift, or out += that; shift: (C) or null. out may be one of
// them.
template <class T>
void combine(const ImageSize& size, Tensor<T> out, bool accumulate, const std::vector<Term<T>>& terms,
             const T* shift, int threads);

// For each channel the sum of a (b - centre) over all pixels; no centre: 0. `partial` has room for a number a
// plane.
template <class T>
void channel_products(const ImageSize& size, Tensor<const T> a, Tensor<const T> b, const T* centre,
                      double* products, double* partial, int threads);

// For each channel the sum of a over all pixels.
template <class T>
void channel_sums(const ImageSize& size, Tensor<const T> a, double* sums, double* partial, int threads);

// out = the activation of the image, pixels of any strides on both sides.
template <class T>
void copy_images(const ImageSize& size, const Source<T>& from, Tensor<T> to, int threads);

// out = f'(x) da, or out += that; dslopes (C) or null: for each channel the sum of da x where x <= 0.
template <class T>
void activation_backward(const ImageSize& size, const Source<T>& x, Tensor<const T> da, Tensor<T> out,
                         bool accumulate, double* dslopes, double* partial, int threads);

}  // namespace srnas_fast
