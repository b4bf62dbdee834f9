// A tile of pixels of depthwise convolutions, by one block of threads through shared memory: the part that
// several kernels share.
#pragma once

#include "multi_depthwise.h"
#include "tensor.h"

namespace srnas_fast_cuda {

constexpr int THREADS = 256, WARPS = THREADS / 32;

// Channels that a block holds in shared memory at a time, at most.
constexpr int CHANNELS = 16;

// What a block reads of an image for CHANNELS channels: 16 KiB hold a tile of 8 x 16 pixels for kernels that
// reach two pixels far, and half of the channels for those that reach four.
constexpr int HALO_FLOATS = 4096;

// Through the read-only cache: before compute capability 7.0 the L1 cache holds nothing else of global
// memory.
__device__ inline float read(const float* address) {
#ifdef SRNAS_FAST_EMULATE
    return *address;
#else
    return __ldg(address);
#endif
}

// The depthwise kernels of one launch, (C, size, size) each. Null weights stand for ones, of size 1.
struct Candidates {
    static constexpr int MOST = 8;

    int count;
    int sizes[MOST], dilations[MOST];
    const float* weights[MOST];
};

// Images that are read, 0 outside. With a spacing s they are seen with s - 1 rows and columns of zeros
// between their own: height and width are of what is seen.
struct Images {
    Tensor<const float> tensor;
    int channels, height, width, spacing;

    __device__ float at(int64_t image, int channel, int y, int x) const {
        if (y < 0 || y >= height || x < 0 || x >= width) return 0.0f;
        if (spacing > 1) {
            if (y % spacing || x % spacing) return 0.0f;
            y /= spacing;
            x /= spacing;
        }
        return read(&tensor.at(image, channel, y, x));
    }
};

// How images of height x width pixels fall into tiles of ROWS x COLUMNS. Each lane of a warp has the pixels
// lane, lane + 32, ... of a tile, which lie in one column.
template <int ROWS_, int COLUMNS_>
struct Tiles {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, PIXELS = ROWS * COLUMNS;
    static constexpr int PER_LANE = PIXELS / 32, LANE_ROWS = 32 / COLUMNS;
    static_assert(PIXELS % 32 == 0 && 32 % COLUMNS == 0, "a warp takes whole rows");

    int64_t count;
    int height, width, down, across;

    struct Place {
        int64_t image;
        int top, left;
    };

    __device__ Place place(int64_t index) const {
        const int within = int(index % (int64_t(down) * across));
        return {index / (int64_t(down) * across), within / across * ROWS, within % across * COLUMNS};
    }
    __device__ bool inside(const Place& place, int pixel) const {
        return place.top + pixel / COLUMNS < height && place.left + pixel % COLUMNS < width;
    }
};

// The rows and columns of the input that a tile needs. A plane is odd, so that the same pixel of different
// channels lies in different banks. `channels` are held at a time, also where the planes are too large for
// shared memory.
struct Halo {
    int stride, reach, rows, columns, plane, channels;
    bool fits;

    template <class Tile>
    static Halo make(int stride, int reach, int channels, int room) {
        const int64_t rows = int64_t(Tile::ROWS - 1) * stride + 1 + 2 * int64_t(reach);
        const int64_t columns = int64_t(Tile::COLUMNS - 1) * stride + 1 + 2 * int64_t(reach);
        const int64_t plane = (rows * columns) | 1, held = room / plane;
        const int at_a_time = held == 0 || held >= CHANNELS ? CHANNELS : held >= WARPS ? WARPS : int(held);
        return {stride,       reach,      int(rows),
                int(columns), int(plane), at_a_time < channels ? at_a_time : channels,
                held > 0};
    }
};

// Where a tile's convolutions read: some channels of an image, in shared memory or, if not HALO, in the image
// itself.
template <bool HALO>
struct Source {
    const Images& images;
    const Halo& halo;
    float* shared;
    int64_t image;
    int first;      // channel
    int top, left;  // the place in the input of the tile's first pixel

    // Fills the shared memory. Neighbours in memory go to neighbouring threads. Two loads are on
    // their way at a time: more would take the registers that sums need.
    __device__ void load(int channels) const {
        if (!HALO) return;
        const int y = top - halo.reach, x = left - halo.reach;
        if (images.tensor.c == 1 && images.channels > 1) {
            const int c = threadIdx.x % CHANNELS;
#pragma unroll 2
            for (int p = threadIdx.x / CHANNELS; p < halo.rows * halo.columns; p += THREADS / CHANNELS) {
                if (c < channels) {
                    shared[c * halo.plane + p] =
                        images.at(image, first + c, y + p / halo.columns, x + p % halo.columns);
                }
            }
        } else {
            for (int line = threadIdx.x / 32; line < channels * halo.rows; line += WARPS) {
                const int c = line / halo.rows, row = line % halo.rows;
#pragma unroll 2
                for (int column = threadIdx.x % 32; column < halo.columns; column += 32) {
                    shared[c * halo.plane + row * halo.columns + column] =
                        images.at(image, first + c, y + row, x + column);
                }
            }
        }
    }

    // The input at (y, x) from the tile's first pixel.
    __device__ float at(int c, int y, int x) const {
        if (HALO) return shared[c * halo.plane + (y + halo.reach) * halo.columns + x + halo.reach];
        return images.at(image, first + c, top + y, left + x);
    }
};

// sums += the convolution at the lane's pixels of channel c, with a kernel of any size if SIZE is 0.
template <class Tile, int SIZE, bool FLIPPED, bool HALO>
__device__ void add_taps(const Source<HALO>& source, const float* weights, int any_size, int dilation, int c,
                         float (&sums)[Tile::PER_LANE]) {
    const int size = SIZE ? SIZE : any_size, half = size / 2, lane = threadIdx.x % 32;
    const int y = lane / Tile::COLUMNS * source.halo.stride, x = lane % Tile::COLUMNS * source.halo.stride;
#pragma unroll 1
    for (int i = 0; i < size; ++i) {  // all rows at once would take too many registers
#pragma unroll(SIZE ? SIZE : 1)
        for (int j = 0; j < size; ++j) {
            const int tap = i * size + j;
            const float weight = weights ? read(weights + (FLIPPED ? size * size - 1 - tap : tap)) : 1.0f;
#pragma unroll
            for (int q = 0; q < Tile::PER_LANE; ++q) {
                const int row = y + q * Tile::LANE_ROWS * source.halo.stride + (i - half) * dilation;
                sums[q] += weight * source.at(c, row, x + (j - half) * dilation);
            }
        }
    }
}

// sums += candidate k's convolution at the lane's pixels of channel c. FLIPPED: with its transposed kernel.
template <class Tile, bool FLIPPED, bool HALO>
__device__ void convolve(const Source<HALO>& source, const Candidates& candidates, int k, int c,
                         float (&sums)[Tile::PER_LANE]) {
    const int size = candidates.sizes[k], dilation = candidates.dilations[k];
    const float* const all = candidates.weights[k];
    const float* const weights = all ? all + int64_t(source.first + c) * size * size : nullptr;
    if (HALO && size == 3) {
        add_taps<Tile, 3, FLIPPED>(source, weights, size, dilation, c, sums);
    } else if (HALO && size == 5) {
        add_taps<Tile, 5, FLIPPED>(source, weights, size, dilation, c, sums);
    } else if (HALO && size == 7) {
        add_taps<Tile, 7, FLIPPED>(source, weights, size, dilation, c, sums);
    } else {
        add_taps<Tile, 0, FLIPPED>(source, weights, size, dilation, c, sums);
    }
}

// Fills a tile in shared memory with candidate k's convolution less its centre (null: 0), 0 outside of the
// image, or adds that. Pixel p of channel c lies at c * channel_step + p * pixel_step; each place is always
// the same thread's.
template <class Tile, bool FLIPPED, bool HALO>
__device__ void fill_tile(float* tile, int channel_step, int pixel_step, const Source<HALO>& source,
                          const Candidates& candidates, int k, int channels, const float* centres,
                          const Tile& tiles, const typename Tile::Place& place, bool accumulate) {
    for (int c = threadIdx.x / 32; c < channels; c += WARPS) {
        float sums[Tile::PER_LANE] = {};
        convolve<Tile, FLIPPED>(source, candidates, k, c, sums);
        const float centre = centres ? read(centres + source.first + c) : 0.0f;
#pragma unroll
        for (int q = 0; q < Tile::PER_LANE; ++q) {
            const int p = threadIdx.x % 32 + 32 * q;
            float& value = tile[c * channel_step + p * pixel_step];
            const float sum = tiles.inside(place, p) ? sums[q] - centre : 0.0f;
            value = accumulate ? value + sum : sum;
        }
    }
}

// Writes or adds a tile in shared memory, (CHANNELS, PIXELS + 1), to images. Neighbouring threads write
// neighbours.
template <class Tile>
__device__ void store_tile(const float* tile, const Tensor<float>& to, int first, int channels,
                           const Tile& tiles, const typename Tile::Place& place, bool accumulate) {
    const bool by_channel = to.c == 1;
    for (int i = threadIdx.x; i < CHANNELS * Tile::PIXELS; i += THREADS) {
        const int c = by_channel ? i % CHANNELS : i / Tile::PIXELS;
        const int p = by_channel ? i / CHANNELS : i % Tile::PIXELS;
        if (c >= channels || !tiles.inside(place, p)) continue;
        const int y = place.top + p / Tile::COLUMNS, x = place.left + p % Tile::COLUMNS;
        float& pixel = to.at(place.image, first + c, y, x);
        const float value = tile[c * (Tile::PIXELS + 1) + p];
        pixel = accumulate ? pixel + value : value;
    }
}

#ifndef __CUDACC_RTC__

// Candidates begin, begin + 1, ... as many as go into a launch; no weights stand for one candidate of ones.
inline Candidates candidates_from(int64_t begin, const DepthwiseShape& shape,
                                  const std::vector<const float*>& weights) {
    Candidates candidates{};
    for (int64_t k = begin; k < int64_t(weights.size()) && candidates.count < Candidates::MOST; ++k) {
        candidates.sizes[candidates.count] = int(shape.sizes[k]);
        candidates.dilations[candidates.count] = int(shape.dilation(k));
        candidates.weights[candidates.count++] = weights[k];
    }
    return candidates;
}

// A depthwise convolution that leaves the image as it is.
inline Candidates identity() { return {1, {1}, {1}, {nullptr}}; }

inline Images images_of(const Tensor<const float>& tensor, int64_t channels, int64_t height, int64_t width,
                        int64_t spacing = 1) {
    return {tensor, int(channels), int((height - 1) * spacing + 1), int((width - 1) * spacing + 1),
            int(spacing)};
}

template <class Tile>
Tile tiles_of(int64_t images, int64_t height, int64_t width) {
    const int64_t down = ceil_div(height, Tile::ROWS), across = ceil_div(width, Tile::COLUMNS);
    return {images * down * across, int(height), int(width), int(down), int(across)};
}

// How many blocks share the tiles of a sum, of which there are `sums`: 512 blocks in all keep a GPU busy, and
// more would only leave more parts to add up.
inline int64_t shares(int64_t tiles, int64_t sums) {
    return std::min(tiles, std::max<int64_t>(1, ceil_div(512, std::max<int64_t>(1, sums))));
}

#endif

}  // namespace srnas_fast_cuda
