// Forward and input gradient are one thing: at the stride 1 the gradient is the convolution of dy with the
// transposed kernel, and at larger strides so too, of dy with zeros between its pixels.
#include "depthwise_tile.h"
#include "multi_depthwise.h"
#include "partial_sums.h"

namespace srnas_fast_cuda {
namespace {

using Tile = Tiles<8, 16>;
constexpr int PITCH =
    Tile::PIXELS + 1;  // of a channel in shared memory: the channels of a pixel in different banks

struct Outputs {
    Tensor<float> tensors[Candidates::MOST];
};
struct Inputs {
    Tensor<const float> tensors[Candidates::MOST];
};

// Reads x once for all candidates but for the rims of the tiles, and writes each output once.
template <bool HALO>
__global__ void __launch_bounds__(THREADS, 2)
    convolve_all(Images x, Candidates candidates, Outputs outputs, Tile tiles, Halo halo) {
    __shared__ float patch[HALO ? HALO_FLOATS : 1];
    __shared__ float tile[CHANNELS * PITCH];
    const Tile::Place place = tiles.place(blockIdx.x);
    const int first = blockIdx.y * halo.channels, channels = min(halo.channels, x.channels - first);
    const Source<HALO> source{
        x, halo, patch, place.image, first, place.top * halo.stride, place.left * halo.stride};
    source.load(channels);
    __syncthreads();
    for (int k = 0; k < candidates.count; ++k) {
        fill_tile<Tile, false>(tile, PITCH, 1, source, candidates, k, channels, nullptr, tiles, place, false);
        __syncthreads();
        store_tile(tile, outputs.tensors[k], first, channels, tiles, place, false);
        __syncthreads();
    }
}

// Reads each dy once but for the rims of the tiles, and writes dx once; with accumulate dx is read too.
// `like` is what the dys have in common.
template <bool HALO>
__global__ void __launch_bounds__(THREADS, 2)
    convolve_transposed(Images like, Inputs dys, Candidates candidates, Tensor<float> dx, bool accumulate,
                        Tile tiles, Halo halo) {
    __shared__ float patch[HALO ? HALO_FLOATS : 1];
    __shared__ float tile[CHANNELS * PITCH];
    const Tile::Place place = tiles.place(blockIdx.x);
    const int first = blockIdx.y * halo.channels, channels = min(halo.channels, like.channels - first);
    for (int k = 0; k < candidates.count; ++k) {
        const Images dy{dys.tensors[k], like.channels, like.height, like.width, like.spacing};
        const Source<HALO> source{dy, halo, patch, place.image, first, place.top, place.left};
        source.load(channels);
        __syncthreads();
        fill_tile<Tile, true>(tile, PITCH, 1, source, candidates, k, channels, nullptr, tiles, place, k > 0);
        __syncthreads();
    }
    store_tile(tile, dx, first, channels, tiles, place, accumulate);
}

// The taps of a block: PER_THREAD for each thread.
constexpr int PER_THREAD = 4, TAPS = PER_THREAD * THREADS;

// partial (shares, C, size, size): each thread sums up some taps of one candidate over the tiles of its
// share. Reads x and dy once but for the rims of the tiles.
template <bool HALO>
__global__ void __launch_bounds__(THREADS, 2)
    weight_gradient(Images x, Images dy, int size, int dilation, int taps_at_a_time, Tile tiles, Halo halo,
                    Halo dy_halo, float* partial) {
    __shared__ float patch[HALO ? HALO_FLOATS : 1];
    __shared__ float dy_patch[CHANNELS * PITCH];
    const int first = blockIdx.y * halo.channels, channels = min(halo.channels, x.channels - first);
    const int first_tap = blockIdx.z * taps_at_a_time, taps = min(taps_at_a_time, size * size - first_tap);
    float totals[PER_THREAD] = {};
    for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
        const Tile::Place place = tiles.place(index);
        const Source<HALO> source{
            x, halo, patch, place.image, first, place.top * halo.stride, place.left * halo.stride};
        const Source<true> gradient{dy, dy_halo, dy_patch, place.image, first, place.top, place.left};
        source.load(channels);
        gradient.load(channels);
        __syncthreads();
#pragma unroll
        for (int t = 0; t < PER_THREAD; ++t) {
            const int item = threadIdx.x + t * THREADS;
            if (item >= channels * taps) continue;
            const int c = item / taps, tap = first_tap + item % taps;
            const int y = (tap / size - size / 2) * dilation, x = (tap % size - size / 2) * dilation;
            float sum = 0;
            for (int row = 0; row < Tile::ROWS; ++row) {
#pragma unroll
                for (int column = 0; column < Tile::COLUMNS; ++column) {
                    sum += gradient.at(c, row, column) *
                           source.at(c, row * halo.stride + y, column * halo.stride + x);
                }
            }
            totals[t] += sum;
        }
        __syncthreads();
    }
    float* const out = partial + (int64_t(blockIdx.x) * x.channels + first) * size * size;
#pragma unroll
    for (int t = 0; t < PER_THREAD; ++t) {
        const int item = threadIdx.x + t * THREADS;
        if (item < channels * taps)
            out[int64_t(item / taps) * size * size + first_tap + item % taps] = totals[t];
    }
}

#define INSTANTIATE(HALO)                                                                               \
    template __global__ void convolve_all<HALO>(Images, Candidates, Outputs, Tile, Halo);               \
    template __global__ void convolve_transposed<HALO>(Images, Inputs, Candidates, Tensor<float>, bool, \
                                                       Tile, Halo);                                     \
    template __global__ void weight_gradient<HALO>(Images, Images, int, int, int, Tile, Halo, Halo, float*);
INSTANTIATE(true)
INSTANTIATE(false)
#undef INSTANTIATE

#ifndef __CUDACC_RTC__

// How the weight gradient of one candidate is shared among blocks.
struct GradientPlan {
    Tile tiles;
    Halo halo;
    int64_t taps, taps_at_a_time, groups, chunks, shares;

    GradientPlan(const DepthwiseShape& shape, int64_t k)
        : tiles(tiles_of<Tile>(shape.images, shape.out_height(), shape.out_width())),
          halo(Halo::make<Tile>(shape.stride, shape.only(k).reach(), shape.channels, HALO_FLOATS)),
          taps(shape.sizes[k] * shape.sizes[k]),
          taps_at_a_time(std::min<int64_t>(taps, TAPS)) {
        halo.channels = int(std::min<int64_t>(halo.channels, TAPS / taps_at_a_time));
        groups = ceil_div(shape.channels, halo.channels);
        chunks = ceil_div(taps, taps_at_a_time);
        shares = srnas_fast_cuda::shares(tiles.count, groups * chunks);
    }
    dim3 grid() const { return dim3(unsigned(shares), unsigned(groups), unsigned(chunks)); }
};

#endif

}  // namespace

#ifndef __CUDACC_RTC__

void multi_depthwise(const DepthwiseShape& shape, Tensor<const float> x,
                     const std::vector<const float*>& weights, const std::vector<Tensor<float>>& outputs,
                     void* stream) {
    if (shape.empty()) return;
    const Tile tiles = tiles_of<Tile>(shape.images, shape.out_height(), shape.out_width());
    const Halo halo = Halo::make<Tile>(shape.stride, shape.reach(), shape.channels, HALO_FLOATS);
    const dim3 grid(unsigned(tiles.count), unsigned(ceil_div(shape.channels, halo.channels)));
    for (int64_t begin = 0; begin < shape.count(); begin += Candidates::MOST) {
        const Candidates candidates = candidates_from(begin, shape, weights);
        Outputs some{};
        std::copy_n(outputs.begin() + begin, candidates.count, some.tensors);
        LAUNCH((halo.fits ? convolve_all<true> : convolve_all<false>), grid, THREADS, stream,
               images_of(x, shape.channels, shape.height, shape.width), candidates, some, tiles, halo);
    }
}

void depthwise_input_gradient(const DepthwiseShape& shape, const std::vector<Tensor<const float>>& dys,
                              const std::vector<const float*>& weights, Tensor<float> dx, bool accumulate,
                              void* stream) {
    if (shape.empty()) return;
    const Tile tiles = tiles_of<Tile>(shape.images, shape.height, shape.width);
    const Halo halo = Halo::make<Tile>(1, shape.reach(), shape.channels, HALO_FLOATS);
    const dim3 grid(unsigned(tiles.count), unsigned(ceil_div(shape.channels, halo.channels)));
    for (int64_t begin = 0; begin < shape.count(); begin += Candidates::MOST) {
        const Candidates candidates = candidates_from(begin, shape, weights);
        Inputs some{};
        std::copy_n(dys.begin() + begin, candidates.count, some.tensors);
        const Images like =
            images_of(dys[begin], shape.channels, shape.out_height(), shape.out_width(), shape.stride);
        LAUNCH((halo.fits ? convolve_transposed<true> : convolve_transposed<false>), grid, THREADS, stream,
               like, some, candidates, dx, accumulate || begin > 0, tiles, halo);
    }
}

int64_t multi_depthwise_backward_scratch(const DepthwiseShape& shape) {
    if (shape.empty()) return 0;
    int64_t most = 0;
    for (int64_t k = 0; k < shape.count(); ++k) {
        const GradientPlan plan(shape, k);
        most = std::max(most, plan.shares * shape.channels * plan.taps);
    }
    return most;
}

void multi_depthwise_backward(const DepthwiseShape& shape, Tensor<const float> x,
                              const std::vector<Tensor<const float>>& dys,
                              const std::vector<const float*>& weights, Tensor<float> dx,
                              const std::vector<float*>& dweights, float* scratch, void* stream) {
    if (dx.data) depthwise_input_gradient(shape, dys, weights, dx, false, stream);
    const int64_t channels = shape.channels;
    for (int64_t k = 0; k < int64_t(dweights.size()); ++k) {
        int64_t shares = 0;
        const int64_t size = channels * shape.sizes[k] * shape.sizes[k];
        if (!shape.empty()) {
            const GradientPlan plan(shape, k);
            const Halo dy_halo = Halo::make<Tile>(1, 0, int(channels), CHANNELS * PITCH);
            shares = plan.shares;
            LAUNCH((plan.halo.fits ? weight_gradient<true> : weight_gradient<false>), plan.grid(), THREADS,
                   stream, images_of(x, channels, shape.height, shape.width),
                   images_of(dys[k], channels, shape.out_height(), shape.out_width()), int(shape.sizes[k]),
                   int(shape.dilation(k)), int(plan.taps_at_a_time), plan.tiles, plan.halo, dy_halo, scratch);
        }
        add_partial(scratch, shares, size, size, 1.0, dweights[k], stream);
    }
}

#endif

}  // namespace srnas_fast_cuda
