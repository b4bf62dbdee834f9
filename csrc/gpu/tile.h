// A tile of 16 x 16 pixels by a block: each warp has four channels of the whole tile, each lane a column of
// eight pixels of them. What is read is staged in shared memory, with as many pixels around as kernels reach.
#pragma once

#include "room.h"

namespace srnas_fast_gpu {

constexpr int COLUMN = 8;  // pixels of a lane, one below the other

// Where a tile lies in images of a given height and width.
struct Tile {
    int image, top, left, height, width;

    __device__ static Tile make(int64_t index, int64_t height, int64_t width) {
        const int across = int((width + SIDE - 1) / SIDE), down = int((height + SIDE - 1) / SIDE);
        const int per_image = across * down, within = int(index % per_image);
        return {int(index / per_image), within / across * SIDE, within % across * SIDE, int(height),
                int(width)};
    }
    // Of the tile that is so many behind an image's first.
    __device__ static int count(uint32_t within, uint32_t across, int height, int width) {
        const int top = int(within / across) * SIDE, left = int(within % across) * SIDE;
        return min(SIDE, height - top) * min(SIDE, width - left);
    }
    __device__ int rows() const { return min(SIDE, height - top); }
    __device__ int columns() const { return min(SIDE, width - left); }
    __device__ int count() const { return rows() * columns(); }
};

__device__ inline int lane_x() { return lane_index() % SIDE; }
__device__ inline int lane_y() { return lane_index() / SIDE * COLUMN; }
__device__ inline bool inside(const Tile& tile, int q) {
    return lane_y() + q < tile.rows() && lane_x() < tile.columns();
}

// The channel that a warp has as its k-th.
__device__ inline int channel_of(int chunk, int k) {
    return chunk * CHUNK + warp_index() * CHANNELS_PER_WARP + k;
}

// What a lane holds: eight pixels of four channels.
using Sums = real[COLUMN][CHANNELS_PER_WARP];

__device__ inline void clear(Sums& sums) {
#pragma unroll
    for (int q = 0; q < COLUMN; ++q)
#pragma unroll
        for (int k = 0; k < CHANNELS_PER_WARP; ++k) sums[q][k] = 0;
}

// For loops over a lane's channels that are not unrolled: what it has of the k-th.
__device__ inline void take(const Sums& sums, int k, real (&values)[COLUMN]) {
#pragma unroll
    for (int q = 0; q < COLUMN; ++q) {
        values[q] = sums[q][0];
#pragma unroll
        for (int other = 1; other < CHANNELS_PER_WARP; ++other)
            if (k == other) values[q] = sums[q][other];
    }
}
__device__ inline void add_to(Sums& sums, int k, const real (&values)[COLUMN]) {
#pragma unroll
    for (int own = 0; own < CHANNELS_PER_WARP; ++own) {
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) sums[q][own] += own == k ? values[q] : real(0);
    }
}

// Fills `channels` planes of shared memory, up to PLANES of them, with load(c, y, x), and `outside` outside
// of the image. (y, x) of the first: top, left. A thread takes a pixel of one plane after the other;
// by_channel: neighbouring threads take neighbouring channels, which suits channels_last.
template <class Shape, int PLANES, class Load>
__device__ void fill(real* shared, const Load& load, int channels, int top, int left, int height, int width,
                     bool by_channel, real outside = 0) {
    constexpr int AREA = Shape::ROWS * Shape::ROWS, SHIFT = PLANES >= 8 ? 3 : PLANES >= 4 ? 2 : PLANES / 2;
    const int shift = by_channel ? SHIFT : 0, step = 1 << shift;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < AREA << shift; i += THREADS) {
        const int p = i >> shift, row = p / Shape::ROWS, column = p % Shape::ROWS;
        const int y = top + row, x = left + column;
        const bool within = y >= 0 && y < height && x >= 0 && x < width;
        real* const to = shared + Shape::place(row, column);
#pragma unroll 4
        for (int c = i & (step - 1); c < channels; c += step)
            to[c * Shape::PLANE] = within ? load(c, y, x) : outside;
    }
}

// The sum over a warp, in every lane.
__device__ inline real warp_sum(real value) {
#pragma unroll
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
__device__ inline double warp_sum_wide(double value) {
#pragma unroll
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

}  // namespace srnas_fast_gpu
