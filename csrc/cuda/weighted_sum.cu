// The gradients' sums over a channel go two ways. Planar, where the elements of a channel lie together in
// runs: the blocks of a channel share its elements. By columns, where they do not: the tensor is a table of
// rows whose columns each belong to one channel, a few periods of channels * inner elements wide; the threads
// of a block walk down 32 columns, and memory is read along the rows. Either way the parts are added by a
// second kernel.
#include "block_sum.h"
#include "weighted_sum.h"

namespace srnas_fast_cuda {
namespace {

constexpr int MOST = 8;             // zs per launch
constexpr int THREADS = 256;        // per block
constexpr int ROWS = THREADS / 32;  // by columns: a block's rows at a time
constexpr int EACH = 4;             // elements of a thread in the way there, on their way at the same time

// Some of the zs, beginning with the one to which weights and centres point.
struct Terms {
    int64_t size, channels, inner;
    int count;
    Blocks zs[MOST];   // null where they are not read
    float* dzs[MOST];  // null where they are not wanted
    const float* weights;
    int64_t weight_step, channel_step;  // to the next z's, and the next channel's weight
    const float* centres;               // (K, channels) or null

    __device__ int64_t channel(int64_t i) const {
        if (channels == 1) return 0;
        const int64_t plane = quotient(i, inner);
        return plane - quotient(plane, channels) * channels;
    }
    __device__ float weight(int k, int64_t c) const { return weights[k * weight_step + c * channel_step]; }

    // z_k - centre_k
    __device__ float centred(int k, int64_t i, int64_t c) const {
        const Blocks& z = zs[k];
        const int64_t gap = z.step == z.block ? 0 : quotient(i, z.block) * (z.step - z.block);
        return z.data[i + gap] - (centres ? centres[k * channels + c] : 0);
    }
};

// Reads each z once and writes y once, the least possible; with accumulate y is read too.
__global__ void add_terms(Terms terms, const float* shift, float* y, bool accumulate) {
    const int64_t begin = int64_t{blockIdx.x} * THREADS * EACH + threadIdx.x;
    float sums[EACH];
    int64_t channels[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int64_t i = begin + e * THREADS;
        if (i >= terms.size) continue;
        channels[e] = terms.channel(i);
        sums[e] = (accumulate ? y[i] : 0) + (shift ? shift[channels[e]] : 0);
    }
    for (int k = 0; k < terms.count; ++k) {
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int64_t i = begin + e * THREADS;
            if (i < terms.size) sums[e] += terms.weight(k, channels[e]) * terms.centred(k, i, channels[e]);
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int64_t i = begin + e * THREADS;
        if (i < terms.size) y[i] = sums[e];
    }
}

// How the sums over a channel are shared. There are `splits` parts of each of `width` sums: one per channel
// (planar), or one per column, of which a channel has `inner` in each of `periods`.
struct Shares {
    bool planar;
    int64_t width, splits, periods, inner;

    __host__ __device__ int64_t parts() const { return width * splits; }
};

// What a thread has seen of one channel: the sums of dy and of dy (z_k - centre_k).
struct Sums {
    float dy = 0, products[MOST] = {};

    // Takes element i of channel c, and writes the gradients of the zs there.
    __device__ void add(const Terms& terms, const float* gradient, int64_t i, int64_t c) {
        const float d = gradient[i];
        dy += d;
#pragma unroll
        for (int k = 0; k < MOST; ++k) {
            if (k >= terms.count) break;
            if (terms.zs[k].data) products[k] += d * terms.centred(k, i, c);
            if (terms.dzs[k]) terms.dzs[k][i] = terms.weight(k, c) * d;
        }
    }
};

// partial[0] are the parts of dysum, partial[1 + k] those of z_k, each [split][width]. Reads dy and each z
// once and writes each gradient of a z once: the least possible, as long as there are at most MOST zs.
// Without a bound the compiler keeps so many addresses in registers that one block fills a multiprocessor.
__global__ void __launch_bounds__(THREADS, 3)
    add_planes(Terms terms, Shares shares, const float* dy, float* partial) {
    const int64_t c = blockIdx.x, split = blockIdx.y;
    const int64_t rows = terms.size / terms.channels;  // elements of the channel
    Sums sums;
    for (int64_t row = split * THREADS + threadIdx.x; row < rows; row += shares.splits * THREADS) {
        const int64_t image = quotient(row, terms.inner);
        sums.add(terms, dy, row + (image * (terms.channels - 1) + c) * terms.inner, c);
    }
    float* const part = partial + split * shares.width + c;
    const float sum = block_sum<THREADS>(sums.dy);
    if (threadIdx.x == 0) *part = sum;
#pragma unroll
    for (int k = 0; k < MOST; ++k) {
        if (k >= terms.count) break;
        const float product = block_sum<THREADS>(sums.products[k]);
        if (threadIdx.x == 0) part[(1 + k) * shares.parts()] = product;
    }
}

__global__ void __launch_bounds__(THREADS, 3)
    add_columns(Terms terms, Shares shares, const float* dy, float* partial) {
    __shared__ float others[ROWS][32];
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32;
    const int64_t column = int64_t{blockIdx.x} * 32 + lane, split = blockIdx.y;
    const int64_t c = terms.channel(column);
    Sums sums;
    if (column < shares.width)
        for (int64_t i = (split * ROWS + first) * shares.width + column; i < terms.size;
             i += shares.splits * ROWS * shares.width)
            sums.add(terms, dy, i, c);
    float* const part = partial + split * shares.width + column;
#pragma unroll
    for (int v = 0; v <= MOST; ++v) {
        if (v > terms.count) break;
        others[first][lane] = v == 0 ? sums.dy : sums.products[v - 1];
        __syncthreads();
        if (first == 0 && column < shares.width) {
            float sum = 0;
            for (int row = 0; row < ROWS; ++row) sum += others[row][lane];
            part[v * shares.parts()] = sum;
        }
        __syncthreads();
    }
}

// sums[v][c] of block (c, v); with whole the sum over all channels, sums[v].
__global__ void add_parts(Shares shares, int64_t channels, bool whole, const float* partial, float* sums) {
    const int64_t c = blockIdx.x, run = whole ? shares.width : shares.inner;
    const int64_t count = shares.splits * (whole ? run : shares.periods * run);
    const float* const parts = partial + blockIdx.y * shares.parts();
    float sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        const int64_t period = quotient(i, run);  // of any split: they lie one after the other
        sum += whole ? parts[i] : parts[(period * channels + c) * run + i - period * run];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + c] = sum;
}

}  // namespace

#ifndef __CUDACC_RTC__

namespace {

// The zs from number `begin` on, as many as go into a launch; `dzs` is empty for the way there.
Terms terms_from(int64_t begin, const WeightedSum& sum, const std::vector<float*>& dzs) {
    const int64_t step = sum.per_channel ? sum.channels : 1, inner = sum.channels == 1 ? sum.size : sum.inner;
    Terms terms{sum.size,
                sum.channels,
                inner,
                0,
                {},
                {},
                sum.weights + begin * step,
                step,
                sum.per_channel ? 1 : 0,
                sum.centres ? sum.centres + begin * sum.channels : nullptr};
    const int64_t count = dzs.empty() ? sum.zs.size() : dzs.size();
    for (int64_t k = begin; k < count && terms.count < MOST; ++k) {
        terms.zs[terms.count] = sum.zs.empty() ? Blocks{nullptr, 1, 1} : sum.zs[k];
        terms.dzs[terms.count++] = dzs.empty() ? nullptr : dzs[k];
    }
    return terms;
}

// Planar from runs on that a warp reads in one go. There are so many splits that a thread has 16 elements, or
// more where about 1024 blocks are at work without.
Shares shares_of(const WeightedSum& sum) {
    const bool planar = sum.channels == 1 || sum.inner >= 32;
    const int64_t period = planar ? 1 : sum.channels * sum.inner, periods = planar ? 1 : ceil_div(32, period);
    const int64_t width = planar ? sum.channels : periods * period,
                  blocks = planar ? width : ceil_div(width, 32);
    const int64_t rows = ceil_div(sum.size, width), together = planar ? THREADS : ROWS;
    const int64_t most = max(int64_t{1}, 1024 / blocks), least = ceil_div(rows, together * 16);
    return {planar, width, max(int64_t{1}, min(least, most)), periods, planar ? 1 : sum.inner};
}

}  // namespace

void weighted_sum(float* y, bool accumulate, const WeightedSum& sum, const float* shift, void* stream) {
    if (sum.size == 0) return;
    const int64_t count = sum.zs.size(), blocks = ceil_div(sum.size, THREADS * EACH);
    for (int64_t begin = 0; begin < count; begin += MOST) {
        const float* const added = begin == 0 ? shift : nullptr;
        LAUNCH(add_terms, blocks, THREADS, stream, terms_from(begin, sum, {}), added, y,
               accumulate || begin > 0);
    }
}

int64_t weighted_sum_backward_scratch(const WeightedSum& sum) { return (1 + MOST) * shares_of(sum).parts(); }

void weighted_sum_backward(const float* dy, const WeightedSum& sum, float* dweights, float* dysum,
                           const std::vector<float*>& dzs, float* scratch, void* stream) {
    const Shares shares = shares_of(sum);
    const dim3 grid(shares.planar ? shares.width : ceil_div(shares.width, 32), shares.splits);
    const int64_t count = dzs.size(), channels = sum.channels;
    for (int64_t begin = 0; begin < count; begin += MOST) {
        const Terms terms = terms_from(begin, sum, dzs);
        if (shares.planar)
            LAUNCH(add_planes, grid, THREADS, stream, terms, shares, dy, scratch);
        else
            LAUNCH(add_columns, grid, THREADS, stream, terms, shares, dy, scratch);
        if (begin == 0) LAUNCH(add_parts, channels, THREADS, stream, shares, channels, false, scratch, dysum);
        if (sum.zs.empty()) continue;
        const dim3 found(sum.per_channel ? channels : 1, terms.count);
        LAUNCH(add_parts, found, THREADS, stream, shares, channels, !sum.per_channel,
               scratch + shares.parts(), dweights + begin * (sum.per_channel ? channels : 1));
    }
}

#endif

}  // namespace srnas_fast_cuda
