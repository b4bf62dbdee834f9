// One thread per element of the output, neighbours in memory one after the other: along a row of pixels, or
// in channels_last across channels.
#include "block_sum.h"
#include "partial_sums.h"
#include "shuffle_concat.h"

namespace srnas_fast_cuda {
namespace {

constexpr int THREADS = 256;
constexpr int BLOCKS = 512;  // at most, on the way back: so many parts dscale has

// Where an element of the output comes from: channel `from` of y, or of x.
struct Place {
    int64_t image, y, x;
    int64_t channel, from;
    bool of_y;
};

// Element `index`, counted in the order (N, C, H, W), or with pixels in (N, H, W, C).
__device__ Place place_of(const ShuffleShape& shape, bool pixels, int64_t index) {
    const int64_t channels = shape.part * shape.groups;
    const int64_t sizes[3] = {pixels ? channels : shape.width, pixels ? shape.width : shape.height,
                              pixels ? shape.height : channels};
    int64_t at[3];
    for (int d = 0; d < 3; ++d) {
        const int64_t rest = quotient(index, sizes[d]);
        at[d] = index - rest * sizes[d];
        index = rest;
    }
    const int64_t channel = pixels ? at[0] : at[2];
    const int64_t part = quotient(channel, shape.groups), group = channel - part * shape.groups;
    return {index,   pixels ? at[2] : at[1],    pixels ? at[1] : at[0],
            channel, group * shape.part + part, group == 0};
}

// The maximum of a 2 x 2 window, and its number in it, row by row: the first of equal ones, the last NaN.
__device__ float largest(Tensor<const float> x, const Place& p, int& number) {
    float best = x.at(p.image, p.from, 2 * p.y, 2 * p.x);
    number = 0;
#pragma unroll
    for (int i = 1; i < 4; ++i) {
        const float value = x.at(p.image, p.from, 2 * p.y + i / 2, 2 * p.x + i % 2);
        if (!(value > best || isnan(value))) continue;
        best = value;
        number = i;
    }
    return best;
}

// Reads y and the channels of x that pass by once and writes the output once: the least possible.
__global__ void store(ShuffleShape shape, bool pixels, Tensor<const float> y, Tensor<const float> x,
                      const float* scale, Tensor<float> out) {
    const int64_t index = int64_t{blockIdx.x} * THREADS + threadIdx.x;
    if (index >= shape.size()) return;
    const Place p = place_of(shape, pixels, index);
    float value;
    int number;
    if (p.of_y) {
        value = y.at(p.image, p.from, p.y, p.x);
    } else {
        value = shape.stride == 2 ? largest(x, p, number) : x.at(p.image, p.from, p.y, p.x);
        if (scale) value *= *scale;
    }
    out.at(p.image, p.channel, p.y, p.x) = value;
}

// The gradient of one element that passed by, to dx where it is wanted; gives back its share of dscale where
// that is wanted.
__device__ float give_back(const ShuffleShape& shape, const Place& p, float gradient, Tensor<const float> x,
                           float scale, Tensor<float> dx, bool want_scale) {
    if (shape.stride == 1) {
        if (dx.data) dx.at(p.image, p.from, p.y, p.x) = scale * gradient;
        return want_scale ? gradient * x.at(p.image, p.from, p.y, p.x) : 0;
    }
    if (!dx.data && !want_scale) return 0;
    int number;
    const float passed = largest(x, p, number);
    if (dx.data) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            dx.at(p.image, p.from, 2 * p.y + i / 2, 2 * p.x + i % 2) = i == number ? scale * gradient : 0;
    }
    return gradient * passed;
}

// Reads dout once, and x where its values are needed, and writes dy and dx once: the least possible. partial
// has the parts of dscale, one for each block, or is null.
__global__ void give_back_all(ShuffleShape shape, bool pixels, Tensor<const float> dout,
                              Tensor<const float> x, const float* scale, Tensor<float> dy, Tensor<float> dx,
                              float* partial) {
    const float factor = scale ? *scale : 1;
    float sum = 0;
    for (int64_t index = int64_t{blockIdx.x} * THREADS + threadIdx.x; index < shape.size();
         index += int64_t{gridDim.x} * THREADS) {
        const Place p = place_of(shape, pixels, index);
        const float gradient = dout.at(p.image, p.channel, p.y, p.x);
        if (p.of_y)
            dy.at(p.image, p.from, p.y, p.x) = gradient;
        else
            sum += give_back(shape, p, gradient, x, factor, dx, partial);
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0 && partial) partial[blockIdx.x] = sum;
}

}  // namespace

#ifndef __CUDACC_RTC__

void shuffle_concat(const ShuffleShape& shape, Tensor<const float> y, Tensor<const float> x,
                    const float* scale, Tensor<float> out, void* stream) {
    if (shape.size() == 0) return;
    LAUNCH(store, ceil_div(shape.size(), THREADS), THREADS, stream, shape, out.c == 1, y, x, scale, out);
}

int64_t shuffle_concat_backward_scratch(const ShuffleShape& shape) {
    return max(int64_t{1}, min(int64_t{BLOCKS}, ceil_div(shape.size(), 4 * THREADS)));
}

void shuffle_concat_backward(const ShuffleShape& shape, Tensor<const float> dout, Tensor<const float> x,
                             const float* scale, Tensor<float> dy, Tensor<float> dx, float* dscale,
                             float* scratch, void* stream) {
    const int64_t blocks = shuffle_concat_backward_scratch(shape);
    LAUNCH(give_back_all, blocks, THREADS, stream, shape, dout.c == 1, dout, x, scale, dy, dx,
           dscale ? scratch : nullptr);
    if (dscale) add_partial(scratch, blocks, 1, 1, 1, dscale, stream);
}

#endif

}  // namespace srnas_fast_cuda
