// A tile of 16 x 16 pixels by a block: each warp has four channels of the whole tile, each lane a column of
// eight pixels of them. What is read is staged in shared memory, with as many pixels around as kernels reach.
#pragma once

#include "call.h"

namespace srnas_fast_gpu {

constexpr int SIDE = 16, PIXELS = SIDE * SIDE;
constexpr int COLUMN = 8;             // pixels of a lane, one below the other
constexpr int CHANNELS_PER_WARP = 4;  // k = 0..3: channel 4 * warp + k of the block's
constexpr int ROOM = 11800;           // numbers in shared memory for everything staged at a time

// Where a tile lies in images of a given height and width.
struct Tile {
    int image, top, left, height, width;

    __device__ static Tile make(int64_t index, int64_t height, int64_t width) {
        const int across = int((width + SIDE - 1) / SIDE), down = int((height + SIDE - 1) / SIDE);
        const int per_image = across * down, within = int(index % per_image);
        return {int(index / per_image), within / across * SIDE, within % across * SIDE, int(height),
                int(width)};
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

// What a lane holds: eight pixels of four channels.
using Sums = real[COLUMN][CHANNELS_PER_WARP];

__device__ inline void clear(Sums& sums) {
#pragma unroll
    for (int q = 0; q < COLUMN; ++q)
#pragma unroll
        for (int k = 0; k < CHANNELS_PER_WARP; ++k) sums[q][k] = 0;
}

// The pixels that kernels of a reach see of a tile, for outputs that are STEP input pixels apart. The pitch
// keeps the two halves of a warp, eight rows apart, in different banks where STEP is 1.
template <int STEP, int REACH>
struct Halo {
    static constexpr int ROWS = (SIDE - 1) * STEP + 1 + 2 * REACH;
    static constexpr int PITCH = ROWS + (ROWS % 4 == 2 ? 0 : ROWS % 4 == 3 ? 3 : 2 - ROWS % 4);
    static constexpr int PLANE = ROWS * PITCH;
};

// Fills `channels` planes of shared memory with load(c, y, x), and `outside` outside of the image. (y, x) of
// the first: top, left. by_channel: neighbouring threads read neighbouring channels, which suits
// channels_last.
template <class Shape, class Load>
__device__ void fill(real* shared, const Load& load, int channels, int top, int left, int height, int width,
                     bool by_channel, real outside = 0) {
    constexpr int AREA = Shape::ROWS * Shape::ROWS;
    const int all = channels * AREA;
    for (int i = int(threadIdx.x); i < all; i += THREADS) {
        const int c = by_channel ? i % channels : i / AREA, p = by_channel ? i / channels : i % AREA;
        const int row = p / Shape::ROWS, column = p % Shape::ROWS, y = top + row, x = left + column;
        const bool within = y >= 0 && y < height && x >= 0 && x < width;
        shared[c * Shape::PLANE + row * Shape::PITCH + column] = within ? load(c, y, x) : outside;
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
