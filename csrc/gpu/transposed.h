// The transposed maps of stages: from the gradient of what one makes to that of what it reads. The tile and
// the chunk are of what it reads.
#pragma once

#include "maps.h"

namespace srnas_fast_gpu {

// Of an average each pixel gets its share from every window that it is in.
template <int S>
__device__ void add_average_transposed(const Arguments& call, const Tile& tile, const Returned<S>& source,
                                       int chunk, real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    constexpr int reach = s.reach();
    using Shape = Halo<1, reach>;
    const int height = int(call.height), width = int(call.width);
    const auto share = [&](int channel, int row, int column) {
        const Window down(row, reach, height), across(column, reach, width);
        return source(channel, row, column) * averaged<S>(down.count(), across.count());
    };
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        fill_own<Shape>(room, share, chunk, k, s.inputs, tile.top - reach, tile.left - reach, source.height(),
                        source.width());
        __syncthreads();
        real results[COLUMN] = {};
#pragma unroll
        for (int j = 0; j < s.size; ++j) {
            Taps<s.size, 1, 1> taps;
            taps.template load<Shape::PITCH>(room + warp_index() * Shape::PLANE, j);
#pragma unroll
            for (int i = 0; i < s.size; ++i)
#pragma unroll
                for (int q = 0; q < COLUMN; ++q) results[q] += taps.at(q, i);
        }
        add_to(sums, k, results);
        __syncthreads();
    }
}

// Of a maximum the pixel that was taken gets all: of equal ones the first, as in torch.
template <int S>
__device__ void add_maximum_transposed(const Arguments& call, const Tile& tile, const Returned<S>& source,
                                       int chunk, real* room, Sums& sums) {
    constexpr Stage s = STAGE[S];
    constexpr int reach = s.reach(), size = s.size;
    using Shape = typename PoolRoom<S, true>::Shape;
    using Wide = typename PoolRoom<S, true>::Wide;
    const int height = int(call.height), width = int(call.width);
    const Activated<S> read_by_pool(call, tile.image);
    real* const values = room;
    real* const given = values + WARPS * Wide::PLANE;
    real* const taken = given + WARPS * Shape::PLANE;  // which pixel of the window, -1: there is no window
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        fill_own<Wide>(values, read_by_pool, chunk, k, s.inputs, tile.top - 2 * reach, tile.left - 2 * reach,
                       height, width);
        fill_own<Shape>(given, source, chunk, k, s.inputs, tile.top - reach, tile.left - reach,
                        source.height(), source.width());
        __syncthreads();
        const int own = warp_index();
        for (int i = lane_index(); i < Shape::ROWS * Shape::ROWS; i += 32) {
            const int row = i / Shape::ROWS, column = i % Shape::ROWS;
            const int y = tile.top - reach + row, x = tile.left - reach + column;
            int place = -1;
            if (y >= 0 && y < source.height() && x >= 0 && x < source.width() && y % s.stride == 0 &&
                x % s.stride == 0) {
                const Window down(y, reach, height), across(x, reach, width);
                real largest = -infinity();
                place = down.from * size + across.from;
                for (int a = down.from; a < down.to; ++a) {
                    for (int b = across.from; b < across.to; ++b) {
                        const real value = values[own * Wide::PLANE + (row + a) * Wide::PITCH + column + b];
                        if (value > largest || value != value) largest = value, place = a * size + b;
                    }
                }
            }
            taken[own * Shape::PLANE + row * Shape::PITCH + column] = real(place);
        }
        __syncthreads();
        real results[COLUMN] = {};
#pragma unroll 1
        for (int i = 0; i < size; ++i) {
#pragma unroll 1
            for (int j = 0; j < size; ++j) {
                const int at = own * Shape::PLANE + (lane_y() + i) * Shape::PITCH + lane_x() + j;
                const real place = real((size - 1 - i) * size + size - 1 - j);
#pragma unroll
                for (int q = 0; q < COLUMN; ++q) {
                    if (taken[at + q * Shape::PITCH] == place) results[q] += given[at + q * Shape::PITCH];
                }
            }
        }
        add_to(sums, k, results);
        __syncthreads();
    }
}

// sums += the transposed map of stage S, of the gradient of what it made before its norm.
template <int S>
__device__ void add_transposed(const Arguments& call, const Tile& tile, int chunk, real* room,
                               real* coefficients, Sums& sums) {
    constexpr Stage s = STAGE[S];
    const Returned<S> source(call, tile.image, coefficients);
    if constexpr (s.kind == Kind::max_pool) {
        add_maximum_transposed<S>(call, tile, source, chunk, room, sums);
    } else if constexpr (s.kind == Kind::average_pool) {
        add_average_transposed<S>(call, tile, source, chunk, room, sums);
    } else if constexpr (s.kind == Kind::separable) {
        add_separable_transposed<S>(call, tile, source, chunk, room, sums);
    } else {
        constexpr int area = s.size * s.size;
        const auto weight = [&](int c, int o, int tap) {
            return parameter<s.conv>(call, (o * s.inputs + c) * area + area - 1 - tap);
        };
        const auto one = [](int) { return real(1); };
        add_dense<s.outputs, s.inputs, s.size, s.dilation, 1>(tile, source, chunk, weight, one,
                                                              source.height(), source.width(), room, sums);
    }
}

}  // namespace srnas_fast_gpu
