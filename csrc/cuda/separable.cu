// Where a reduction runs over all pixels, blocks share the tiles and leave their parts in the scratch; each
// adds up a tile first, so that a long sum loses no more digits than two short ones.
#include "depthwise_tile.h"
#include "partial_sums.h"
#include "separable.h"

namespace srnas_fast_cuda {
namespace {

// Depthwise convolutions of images, less centres (count, C) or null. No weights: the images themselves.
struct Convolved {
    Images images;
    Candidates candidates;
    const float* centres;
    Halo halo;

    __device__ const float* centres_of(int k) const {
        return centres ? centres + int64_t(k) * images.channels : nullptr;
    }
};

// ---- separable_sum

using SumTile = Tiles<8, 16>;

// Matrices (O, C), one for each candidate.
struct Terms {
    Convolved convolved;
    const float* matrices[Candidates::MOST];
};

// A warp has OUTPUTS / WARPS of the block's outputs, each lane its pixels of the tile.
template <int OUTPUTS>
struct Sums {
    static constexpr int EACH = OUTPUTS / WARPS, PITCH = OUTPUTS + 4;  // EACH floats are read at once
    float values[EACH][SumTile::PER_LANE];
};

// sums += the terms; matrix and tile are shared memory.
template <int OUTPUTS, bool HALO>
__device__ void add_terms(Sums<OUTPUTS>& sums, const Terms& terms, int first_output, int outputs,
                          const SumTile& tiles, const SumTile::Place& place, float* patch, float* tile,
                          float* matrix) {
    using Of = Sums<OUTPUTS>;
    const Convolved& all = terms.convolved;
    const int stride = all.halo.stride, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (all.candidates.count == 0) return;
    for (int first = 0; first < all.images.channels; first += all.halo.channels) {
        const int channels = min(all.halo.channels, all.images.channels - first);
        const Source<HALO> source{all.images,         all.halo,           patch, place.image, first,
                                  place.top * stride, place.left * stride};
        source.load(channels);
        __syncthreads();
        for (int k = 0; k < all.candidates.count; ++k) {
            fill_tile<SumTile, false>(tile, SumTile::PIXELS, 1, source, all.candidates, k, channels,
                                      all.centres_of(k), tiles, place, false);
            const int c = threadIdx.x % CHANNELS;
            for (int o = threadIdx.x / CHANNELS; o < OUTPUTS; o += THREADS / CHANNELS) {
                const bool inside = c < channels && first_output + o < outputs;
                const int64_t at = int64_t(first_output + o) * all.images.channels + first + c;
                matrix[c * Of::PITCH + o] = inside ? read(terms.matrices[k] + at) : 0.0f;
            }
            __syncthreads();
#pragma unroll 2
            for (int c = 0; c < channels; ++c) {  // more at a time would take too many registers
                float pixels[SumTile::PER_LANE];
#pragma unroll
                for (int q = 0; q < SumTile::PER_LANE; ++q)
                    pixels[q] = tile[c * SumTile::PIXELS + lane + 32 * q];
#pragma unroll
                for (int o = 0; o < Of::EACH; ++o) {
                    const float weight = matrix[c * Of::PITCH + warp * Of::EACH + o];
#pragma unroll
                    for (int q = 0; q < SumTile::PER_LANE; ++q) sums.values[o][q] += weight * pixels[q];
                }
            }
            __syncthreads();
        }
    }
}

// y = shift + both terms, or y += that. Reads each term's images once for every OUTPUTS channels of y, but
// for the rims of the tiles, and writes y once; with accumulate y is read too.
template <int OUTPUTS, bool HALO>
__global__ void __launch_bounds__(THREADS, 2) sum_terms(Terms a, Terms b, const float* shift, Tensor<float> y,
                                                        int outputs, bool accumulate, SumTile tiles) {
    __shared__ float patch[HALO ? HALO_FLOATS : 1];
    __shared__ float tile[CHANNELS * SumTile::PIXELS];
    alignas(16) __shared__ float matrix[CHANNELS * Sums<OUTPUTS>::PITCH];
    const SumTile::Place place = tiles.place(blockIdx.x);
    const int first = blockIdx.y * OUTPUTS;
    Sums<OUTPUTS> sums = {};
    add_terms<OUTPUTS, HALO>(sums, a, first, outputs, tiles, place, patch, tile, matrix);
    add_terms<OUTPUTS, HALO>(sums, b, first, outputs, tiles, place, patch, tile, matrix);
#pragma unroll
    for (int i = 0; i < Sums<OUTPUTS>::EACH; ++i) {
        const int o = first + threadIdx.x / 32 * Sums<OUTPUTS>::EACH + i;
        if (o >= outputs) continue;
        const float added = shift ? shift[o] : 0.0f;
#pragma unroll
        for (int q = 0; q < SumTile::PER_LANE; ++q) {
            const int p = threadIdx.x % 32 + 32 * q;
            if (!tiles.inside(place, p)) continue;
            float& pixel =
                y.at(place.image, o, place.top + p / SumTile::COLUMNS, place.left + p % SumTile::COLUMNS);
            const float value = sums.values[i][q] + added;
            pixel = accumulate ? pixel + value : value;
        }
    }
}

// ---- sums over pixels

// partial (shares, K, C) = sums of the convolved images over the tiles of a share. Reads the images once but
// for the rims of the tiles.
template <bool HALO>
__global__ void __launch_bounds__(THREADS, 2) sum_pixels(Convolved all, SumTile tiles, float* partial) {
    __shared__ float patch[HALO ? HALO_FLOATS : 1];
    __shared__ float sums[Candidates::MOST * CHANNELS];
    const int first = blockIdx.y * all.halo.channels, lane = threadIdx.x % 32, count = all.candidates.count;
    const int channels = min(all.halo.channels, all.images.channels - first);
    for (int i = threadIdx.x; i < Candidates::MOST * CHANNELS; i += THREADS) sums[i] = 0;
    for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
        const SumTile::Place place = tiles.place(index);
        const int stride = all.halo.stride;
        const Source<HALO> source{all.images,         all.halo,           patch, place.image, first,
                                  place.top * stride, place.left * stride};
        source.load(channels);
        __syncthreads();
        for (int k = 0; k < count; ++k) {
            for (int c = threadIdx.x / 32; c < channels; c += WARPS) {
                float values[SumTile::PER_LANE] = {}, sum = 0;
                convolve<SumTile, false>(source, all.candidates, k, c, values);
#pragma unroll
                for (int q = 0; q < SumTile::PER_LANE; ++q)
                    if (tiles.inside(place, lane + 32 * q)) sum += values[q];
                for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(WHOLE_WARP, sum, step);
                if (lane == 0) sums[k * CHANNELS + c] += sum;
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < count * CHANNELS; i += THREADS) {
        const int k = i / CHANNELS, c = i % CHANNELS;
        if (c < channels)
            partial[(int64_t(blockIdx.x) * count + k) * all.images.channels + first + c] = sums[i];
    }
}

// The products of two blocks of SIDE channels, over tiles of fewer pixels: both lie in shared memory,
// [pixel][channel].
using ProductTile = Tiles<8, 8>;
constexpr int SIDE = 64, EACH = 4,
              PITCH = SIDE + 4;  // a thread has EACH x EACH products, and reads EACH floats at once
constexpr int PRODUCT_HALO_FLOATS = 3072;
static_assert(SIDE / EACH * (SIDE / EACH) == THREADS, "a thread for each square");

// One block of channels of candidate k, in shared memory.
template <bool HALO>
__device__ void fill_block(float* block, const Convolved& all, int k, int first, const ProductTile& tiles,
                           const ProductTile::Place& place, float* patch) {
    const int end = min(first + SIDE, all.images.channels), stride = all.halo.stride;
    for (int begin = first; begin < end; begin += all.halo.channels) {
        const int channels = min(all.halo.channels, end - begin);
        const Source<HALO> source{all.images,         all.halo,           patch, place.image, begin,
                                  place.top * stride, place.left * stride};
        source.load(channels);
        __syncthreads();
        fill_tile<ProductTile, false>(block + begin - first, 1, PITCH, source, all.candidates, k, channels,
                                      all.centres_of(k), tiles, place, false);
        __syncthreads();
    }
}

// partial (shares, K, A, B) = sums of a b_k^T over the tiles of a share, for the A channels of a and B of b;
// `symmetric`: of b_k b_k^T, and the half below the diagonal is mirrored. Reads a and b once for every SIDE
// channels of the other and every candidate, but for the rims of the tiles.
template <bool HALO>
__global__ void __launch_bounds__(THREADS, 2)
    sum_products(Convolved a, Convolved b, bool symmetric, ProductTile tiles, float* partial) {
    __shared__ float patch[HALO ? PRODUCT_HALO_FLOATS : 1];
    alignas(16) __shared__ float left[ProductTile::PIXELS * PITCH];
    alignas(16) __shared__ float right[ProductTile::PIXELS * PITCH];
    const int columns = int(ceil_div(b.images.channels, SIDE)), k = blockIdx.z;
    const int first_row = blockIdx.y / columns * SIDE, first_column = blockIdx.y % columns * SIDE;
    const bool diagonal = symmetric && first_row == first_column;
    const int row = threadIdx.x / (SIDE / EACH) * EACH, column = threadIdx.x % (SIDE / EACH) * EACH;
    const float* const rows = diagonal ? right : left;
    float totals[EACH][EACH] = {};
    const int64_t end = symmetric && first_row > first_column ? 0 : tiles.count;
    for (int64_t index = blockIdx.x; index < end; index += gridDim.x) {
        const ProductTile::Place place = tiles.place(index);
        fill_block<HALO>(right, b, k, first_column, tiles, place, patch);
        if (!diagonal) fill_block<HALO>(left, a, symmetric ? k : 0, first_row, tiles, place, patch);
        float sums[EACH][EACH] = {};
        for (int p = 0; p < ProductTile::PIXELS; ++p) {
            float of_row[EACH], of_column[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                of_row[i] = rows[p * PITCH + row + i];
                of_column[i] = right[p * PITCH + column + i];
            }
#pragma unroll
            for (int i = 0; i < EACH; ++i)
#pragma unroll
                for (int j = 0; j < EACH; ++j) sums[i][j] += of_row[i] * of_column[j];
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int j = 0; j < EACH; ++j) totals[i][j] += sums[i][j];
        __syncthreads();
    }
    const int height = a.images.channels, width = b.images.channels;
    float* const out = partial + (int64_t(blockIdx.x) * gridDim.z + k) * height * width;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int y = first_row + row + i, x = first_column + column + j;
            if (end == 0 || y >= height || x >= width) continue;
            out[int64_t(y) * width + x] = totals[i][j];
            if (symmetric && !diagonal) out[int64_t(x) * width + y] = totals[i][j];
        }
    }
}

#define INSTANTIATE_SUM(OUTPUTS, HALO)                                                                      \
    template __global__ void sum_terms<OUTPUTS, HALO>(Terms, Terms, const float*, Tensor<float>, int, bool, \
                                                      SumTile);
#define INSTANTIATE(HALO)                                                  \
    INSTANTIATE_SUM(16, HALO)                                              \
    INSTANTIATE_SUM(32, HALO)                                              \
    INSTANTIATE_SUM(64, HALO)                                              \
    template __global__ void sum_pixels<HALO>(Convolved, SumTile, float*); \
    template __global__ void sum_products<HALO>(Convolved, Convolved, bool, ProductTile, float*);
INSTANTIATE(true)
INSTANTIATE(false)
#undef INSTANTIATE
#undef INSTANTIATE_SUM

#ifndef __CUDACC_RTC__

// Candidates of x from number `begin` on, as many as go into a launch.
template <class Tile>
Convolved convolved(const DepthwiseShape& shape, const Tensor<const float>& x,
                    const std::vector<const float*>& depthwise, const float* centres, int64_t begin,
                    int room) {
    return {images_of(x, shape.channels, shape.height, shape.width), candidates_from(begin, shape, depthwise),
            centres ? centres + begin * shape.channels : nullptr,
            Halo::make<Tile>(shape.stride, shape.reach(), shape.channels, room)};
}

// dy as it is.
template <class Tile>
Convolved unchanged(const DepthwiseShape& shape, const Tensor<const float>& dy, int64_t channels, int room) {
    return {images_of(dy, channels, shape.out_height(), shape.out_width()), identity(), nullptr,
            Halo::make<Tile>(1, 0, channels, room)};
}

// No term at all.
Terms nothing() {
    Terms terms{};
    terms.convolved.halo.fits = true;
    return terms;
}

Terms terms_of(const Convolved& convolved, const std::vector<const float*>& matrices, int64_t begin) {
    Terms terms{convolved, {}};
    std::copy_n(matrices.begin() + begin, convolved.candidates.count, terms.matrices);
    return terms;
}

template <class Tile>
Tile output_tiles(const DepthwiseShape& shape) {
    return tiles_of<Tile>(shape.images, shape.out_height(), shape.out_width());
}

template <int OUTPUTS>
void sum_in_blocks(const DepthwiseShape& shape, const Terms& a, const Terms& b, const float* shift,
                   Tensor<float> y, int64_t outputs, bool accumulate, void* stream) {
    const SumTile tiles = output_tiles<SumTile>(shape);
    const dim3 grid(unsigned(tiles.count), unsigned(ceil_div(outputs, OUTPUTS)));
    const bool fits = a.convolved.halo.fits && b.convolved.halo.fits;
    LAUNCH((fits ? sum_terms<OUTPUTS, true> : sum_terms<OUTPUTS, false>), grid, THREADS, stream, a, b, shift,
           y, int(outputs), accumulate, tiles);
}

// y = shift + both terms, or y += that, in blocks of not many more outputs than there are.
void sum_both(const DepthwiseShape& shape, const Terms& a, const Terms& b, const float* shift,
              Tensor<float> y, int64_t outputs, bool accumulate, void* stream) {
    const auto sum = outputs <= 16   ? sum_in_blocks<16>
                     : outputs <= 32 ? sum_in_blocks<32>
                                     : sum_in_blocks<64>;
    sum(shape, a, b, shift, y, outputs, accumulate, stream);
}

// The most candidates of a launch.
int64_t at_once(const DepthwiseShape& shape) { return std::min<int64_t>(shape.count(), Candidates::MOST); }

// The blocks that share a sum over pixels, and what they leave in the scratch: as many in each launch.

int64_t pixel_shares(const DepthwiseShape& shape, int64_t groups) {
    return shares(output_tiles<SumTile>(shape).count, groups);
}

int64_t pixel_scratch(const DepthwiseShape& shape, int64_t count, int64_t channels) {
    return pixel_shares(shape, 1) * count * channels;
}

int64_t product_blocks(int64_t rows, int64_t columns) {
    return ceil_div(rows, SIDE) * ceil_div(columns, SIDE);
}

int64_t product_shares(const DepthwiseShape& shape, int64_t rows) {
    return shares(output_tiles<ProductTile>(shape).count,
                  at_once(shape) * product_blocks(rows, shape.channels));
}

int64_t product_scratch(const DepthwiseShape& shape, int64_t rows) {
    return product_shares(shape, rows) * at_once(shape) * rows * shape.channels;
}

// sums (K, C) = scale times the sums of the convolved images.
void add_pixels(const DepthwiseShape& shape, const Convolved& all, double scale, float* sums, float* scratch,
                void* stream) {
    const int64_t groups = ceil_div(all.images.channels, all.halo.channels),
                  parts = pixel_shares(shape, groups);
    const int64_t size = int64_t(all.candidates.count) * all.images.channels;
    LAUNCH((all.halo.fits ? sum_pixels<true> : sum_pixels<false>), dim3(unsigned(parts), unsigned(groups)),
           THREADS, stream, all, output_tiles<SumTile>(shape), scratch);
    add_partial(scratch, parts, size, size, scale, sums, stream);
}

// scratch (shares, K, A, C) = parts of the products of a and b; the number of shares.
int64_t multiply_pixels(const DepthwiseShape& shape, const Convolved& a, const Convolved& b, bool symmetric,
                        float* scratch, void* stream) {
    const int64_t count = b.candidates.count, rows = a.images.channels, parts = product_shares(shape, rows);
    const dim3 grid(unsigned(parts), unsigned(product_blocks(rows, shape.channels)), unsigned(count));
    const bool fits = a.halo.fits && b.halo.fits;
    LAUNCH((fits ? sum_products<true> : sum_products<false>), grid, THREADS, stream, a, b, symmetric,
           output_tiles<ProductTile>(shape), scratch);
    return parts;
}

#endif

}  // namespace

#ifndef __CUDACC_RTC__

void separable_sum(const DepthwiseShape& shape, Tensor<const float> x,
                   const std::vector<const float*>& depthwise, const std::vector<const float*>& pointwise,
                   const float* shift, const float* centres, int64_t outputs, Tensor<float> y,
                   bool accumulate, void* stream) {
    if (shape.empty()) return;
    for (int64_t begin = 0; begin < shape.count(); begin += Candidates::MOST) {
        const Convolved some = convolved<SumTile>(shape, x, depthwise, centres, begin, HALO_FLOATS);
        sum_both(shape, terms_of(some, pointwise, begin), nothing(), begin ? nullptr : shift, y, outputs,
                 accumulate || begin > 0, stream);
    }
}

int64_t separable_moments_scratch(const DepthwiseShape& shape) {
    return std::max(pixel_scratch(shape, at_once(shape), shape.channels),
                    product_scratch(shape, shape.channels));
}

void separable_moments(const DepthwiseShape& shape, Tensor<const float> x,
                       const std::vector<const float*>& depthwise, float* means, float* covariances,
                       float* scratch, void* stream) {
    const int64_t channels = shape.channels;
    const double scale = 1.0 / double(shape.images * shape.out_height() * shape.out_width());
    for (int64_t begin = 0; begin < shape.count(); begin += Candidates::MOST) {
        const Convolved whole = convolved<SumTile>(shape, x, depthwise, nullptr, begin, HALO_FLOATS);
        add_pixels(shape, whole, scale, means + begin * channels, scratch, stream);
        const Convolved centred =
            convolved<ProductTile>(shape, x, depthwise, means, begin, PRODUCT_HALO_FLOATS);
        const int64_t size = whole.candidates.count * channels * channels;
        const int64_t parts = multiply_pixels(shape, centred, centred, true, scratch, stream);
        add_partial(scratch, parts, size, size, scale, covariances + begin * channels * channels, stream);
    }
}

// dd_k, then the parts of one sum at a time.
int64_t separable_gradient_scratch(const DepthwiseShape& shape, int64_t outputs) {
    if (shape.empty()) return 0;
    const int64_t parts = std::max({pixel_scratch(shape, 1, outputs), multi_depthwise_backward_scratch(shape),
                                    product_scratch(shape, outputs)});
    return shape.images * shape.channels * shape.out_height() * shape.out_width() + parts;
}

void separable_gradient(const DepthwiseShape& shape, const GradientInput& in, const GradientOutput& out,
                        float* scratch, void* stream) {
    const int64_t channels = shape.channels, height = shape.out_height(), width = shape.out_width();
    const int64_t matrix = in.outputs * channels;
    if (shape.empty()) {
        if (out.dysum) add_partial(nullptr, 0, 0, in.outputs, 1.0, out.dysum, stream);
        for (float* const product : out.products) add_partial(nullptr, 0, 0, matrix, 1.0, product, stream);
        multi_depthwise_backward(shape, in.x, {}, {}, {}, out.ddepthwise, nullptr, stream);
        return;
    }
    float* const parts = scratch + shape.images * channels * height * width;
    if (out.dysum) {
        add_pixels(shape, unchanged<SumTile>(shape, in.dy, in.outputs, HALO_FLOATS), 1.0, out.dysum, parts,
                   stream);
    }
    for (int64_t begin = 0; begin < int64_t(out.products.size()); begin += Candidates::MOST) {
        const Convolved dy = unchanged<ProductTile>(shape, in.dy, in.outputs, PRODUCT_HALO_FLOATS);
        const Convolved d =
            convolved<ProductTile>(shape, in.x, in.depthwise, in.centres, begin, PRODUCT_HALO_FLOATS);
        const int64_t count = d.candidates.count, sets = multiply_pixels(shape, dy, d, false, parts, stream);
        for (int64_t k = 0; k < count; ++k) {
            add_partial(parts + k * matrix, sets, count * matrix, matrix, 1.0, out.products[begin + k],
                        stream);
        }
    }
    if (!out.dx.data && out.ddepthwise.empty()) return;
    const bool by_channel = in.x.c == 1;  // dd lies as x does
    const Tensor<float> dd{scratch, channels * height * width, by_channel ? 1 : height * width,
                           by_channel ? width * channels : width, by_channel ? channels : 1};
    const Tensor<const float> done{scratch, dd.n, dd.c, dd.h, dd.w};
    for (int64_t k = 0; k < shape.count(); ++k) {
        const DepthwiseShape one = shape.only(k);
        Terms of_d = nothing(), of_dy = nothing();
        if (!in.right.empty()) {
            const float* const centres = in.centres ? in.centres + k * channels : nullptr;
            of_d = terms_of(convolved<SumTile>(one, in.x, {in.depthwise[k]}, centres, 0, HALO_FLOATS),
                            in.right, k);
        }
        if (in.dy.data) {
            of_dy = terms_of(unchanged<SumTile>(one, in.dy, in.outputs, HALO_FLOATS), in.left, k);
        }
        const float* const offsets = in.offsets ? in.offsets + k * channels : nullptr;
        sum_both(one, of_d, of_dy, offsets, dd, channels, false, stream);
        if (out.dx.data) {
            depthwise_input_gradient(one, {done}, {in.depthwise[k]}, out.dx, out.accumulate || k > 0, stream);
        }
        if (!out.ddepthwise.empty())
            multi_depthwise_backward(one, in.x, {done}, {}, {}, {out.ddepthwise[k]}, parts, stream);
    }
}

#endif

}  // namespace srnas_fast_cuda
