// What the passes read, one number at a time: x through an activation, the norm and activation between two
// stages, the gradient of what a stage makes before its norm.
#pragma once

#include "tile.h"

namespace srnas_fast_gpu {

template <int S>
__device__ inline real slope_of(const Arguments& call, int channel) {
    constexpr Stage s = STAGE[S];
    if constexpr (s.activation == Activation::prelu) {
        return parameter<s.slope_slot>(call, s.slopes > 1 ? channel : 0);
    } else {
        return real(s.slope);
    }
}

// NaN passes through, as in torch.
template <int S>
__device__ inline real activate(real value, real slope) {
    constexpr Activation kind = STAGE[S].activation;
    if constexpr (kind == Activation::relu) return value < 0 ? real(0) : value;
    if constexpr (kind == Activation::leaky || kind == Activation::prelu)
        return value > 0 ? value : value * slope;
    if constexpr (kind == Activation::sine) return sin(value);
    return value;
}

template <int S>
__device__ inline real activation_slope(real value, real slope) {
    constexpr Activation kind = STAGE[S].activation;
    if constexpr (kind == Activation::relu) return value <= 0 ? real(0) : real(1);
    if constexpr (kind == Activation::leaky || kind == Activation::prelu) return value > 0 ? real(1) : slope;
    if constexpr (kind == Activation::sine) return cos(value);
    return 1;
}

// One image of a tensor, from outside.
struct Outer {
    const Pixel* data;
    int c, h, w;

    __device__ Outer(const View& view, int image)
        : data(static_cast<const Pixel*>(view.data) + image * view.n),
          c(int(view.c)),
          h(int(view.h)),
          w(int(view.w)) {}
    __device__ real at(int channel, int y, int x) const { return read(data + channel * c + y * h + x * w); }
    __device__ bool by_channel() const { return c == 1; }
};

// y as it is given has its channels PARTIAL apart: the others pass by.
__device__ inline Outer spread(Outer image) {
    image.c *= PARTIAL;
    return image;
}

// Of a scratch image, (N, C, H, W) of the result's size.
__device__ inline real* plane_of(const Arguments& call, real* images, int channels, int image, int channel) {
    return images + (int64_t(image) * channels + channel) * (call.out_height * call.out_width);
}

// What the norm behind a stage multiplies with and adds.
template <int S>
__device__ inline real scale_of(const Arguments& call, int channel) {
    constexpr Stage s = STAGE[S];
    if constexpr (s.norm == Norm::none) return 1;
    return call.kept[S][2 * s.outputs + channel] * parameter<s.gamma>(call, channel, 1);
}
template <int S>
__device__ inline real shift_of(const Arguments& call, int channel) {
    constexpr Stage s = STAGE[S];
    if constexpr (s.norm == Norm::none) return parameter<s.bias>(call, channel);
    // The mean is kept without the convolution's bias.
    return parameter<s.beta>(call, channel) - call.kept[S][channel] * scale_of<S>(call, channel);
}

// What a first stage reads: x through the activation.
template <int S>
struct Activated {
    const Arguments& call;
    Outer x;
    int first = 0;  // channel

    __device__ Activated(const Arguments& call, int image) : call(call), x(call.x, image) {}
    __device__ real operator()(int c, int row, int column) const {
        return activate<S>(x.at(first + c, row, column), slope_of<S>(call, first + c));
    }
    __device__ bool by_channel() const { return x.by_channel(); }
};

// What a second stage reads: what the first one made, through its norm and the activation.
template <int S>
struct Between {
    static constexpr int F = STAGE[S].other;
    const Arguments& call;
    int image;
    const real* affine;  // (2, 64) in shared memory
    int first = 0;

    // Loads the norm's scale and shift; behind it stands a __syncthreads().
    __device__ Between(const Arguments& call, int image, real* affine)
        : call(call), image(image), affine(affine) {
        for (int c = int(threadIdx.x); c < STAGE[F].outputs; c += THREADS) {
            affine[c] = scale_of<F>(call, c);
            affine[64 + c] = shift_of<F>(call, c);
        }
        __syncthreads();
    }
    // Before the activation.
    __device__ real normed(int c, int row, int column) const {
        const real* plane = plane_of(call, call.made[F], STAGE[F].outputs, image, first + c);
        return affine[first + c] * plane[row * int(call.out_width) + column] + affine[64 + first + c];
    }
    __device__ real operator()(int c, int row, int column) const {
        return activate<S>(normed(c, row, column), slope_of<S>(call, first + c));
    }
    __device__ bool by_channel() const { return false; }
};

// The gradient of what a stage makes before its norm, seen with stride - 1 rows and columns of zeros between
// its own.
template <int S>
struct Returned {
    const Arguments& call;
    int image;
    Outer dy;
    const real* coefficients;  // (64, 3) in shared memory
    int first = 0;

    __device__ Returned(const Arguments& call, int image, real* coefficients)
        : call(call), image(image), dy(spread(Outer(call.dy, image))), coefficients(coefficients) {
        constexpr Stage s = STAGE[S];
        if constexpr (s.norm == Norm::batch) {
            for (int i = int(threadIdx.x); i < 3 * s.outputs; i += THREADS)
                coefficients[i] = call.coefficients[3 * s.sums + i];
        } else {
            const real weight = s.last ? call.weights[s.candidate] : real(1);
            for (int c = int(threadIdx.x); c < s.outputs; c += THREADS)
                coefficients[3 * c] = weight * scale_of<S>(call, c);
        }
        __syncthreads();
    }
    __device__ real at(int channel, int row, int column) const {
        constexpr Stage s = STAGE[S];
        const int place = row * int(call.out_width) + column;
        const real* const three = coefficients + 3 * channel;
        const real g = s.last ? dy.at(channel, row, column)
                              : plane_of(call, call.returned[S], s.outputs, image, channel)[place];
        real value = three[0] * g;
        if constexpr (s.norm == Norm::batch)
            value += three[1] * plane_of(call, call.made[S], s.outputs, image, channel)[place] + three[2];
        return value;
    }
    __device__ real operator()(int c, int row, int column) const {
        constexpr int stride = STAGE[S].stride;
        if constexpr (stride > 1) {
            if (row % stride || column % stride) return 0;
        }
        return at(first + c, row / stride, column / stride);
    }
    __device__ bool by_channel() const { return STAGE[S].last && dy.by_channel(); }
    // As it is seen.
    __device__ int height() const { return (int(call.out_height) - 1) * STAGE[S].stride + 1; }
    __device__ int width() const { return (int(call.out_width) - 1) * STAGE[S].stride + 1; }
};

}  // namespace srnas_fast_gpu
