// What a program is made of, on a GPU. The text that is compiled includes this, then has the program's
// constants (CHANNELS, STAGES, STAGE[], ...; srnas_fast/mixed/gpu_program.py writes them,
// ../program/program.h says what they mean), then includes kernels.h.
#pragma once

#include "storage.h"

namespace srnas_fast_gpu {

enum class Kind { dense, separable, max_pool, average_pool };
enum class Activation { none, relu, leaky, prelu, sine };
enum class Norm { none, batch, frozen };

// [activation -] convolution or pooling [- norm]. Slots: where the parameters stand among those of the
// program, -1: it has none.
struct Stage {
    int candidate, group;
    bool first, last;  // of its candidate
    int other;         // the candidate's other stage, or itself
    Kind kind;
    Activation activation;
    double slope;  // of a leaky one
    int slopes;    // of a PReLU: 1, or one for each channel
    int inputs, outputs, size, dilation, stride;
    bool counts_padding;  // of an average
    Norm norm;
    double eps, momentum;  // momentum < 0: the mean over all batches so far
    bool moves, counts;
    int statistics;  // place among the running statistics, -1: none
    int depthwise, conv, bias, gamma, beta, slope_slot;
    int sums;                               // channels before its own among partial sums
    int conv_products, depthwise_products;  // places of its kernels' gradients among those of all kernels

    bool outside;  // a dense one of many channels, which torch's own convolution runs, merged with its like

    __device__ constexpr int reach() const { return dilation * (size / 2); }
    __device__ constexpr bool pools() const { return kind == Kind::max_pool || kind == Kind::average_pool; }
    // Whether its output is stored: a norm must see all of it before anybody uses it, or another stage reads
    // it.
    __device__ constexpr bool stored() const { return !last || norm == Norm::batch; }
};

// An image in memory, by its strides in elements.
struct View {
    void* data;
    int64_t n, c, h, w;
};

}  // namespace srnas_fast_gpu
