// How much shared memory a kernel's maps stage at a time, in numbers: so little that enough warps fit on a
// multiprocessor, and never more than a block may have.
#pragma once

#include "call.h"

namespace srnas_fast_gpu {

constexpr int SIDE = 16, PIXELS = SIDE * SIDE;  // of a tile
constexpr int CHANNELS_PER_WARP = 4;            // k = 0..3: channel 4 * warp + k of the block's

constexpr int TABLES = 128 + 192;     // what stands beside what is staged: scales and shifts, coefficients
constexpr int MOST = 12288 - TABLES;  // 48 KiB a block

// Of a multiprocessor; those that have more are not asked for it.
#ifdef __CUDA_ARCH__
constexpr int SHARED_KIB = __CUDA_ARCH__ == 750 ? 64 : __CUDA_ARCH__ < 750 ? 96 : 100;
#else
constexpr int SHARED_KIB = 100;
#endif

// Blocks of a kernel that are to fit on a multiprocessor, so that it has so many warps; and what each of them
// may then stage. A KiB of each is the driver's.
constexpr int blocks_for(int warps) { return ceil_div(warps, WARPS); }
constexpr int aim_for(int blocks) {
    return larger(1600, smaller(MOST, (SHARED_KIB / blocks - 1) * 256 - TABLES));
}
constexpr int MANY = blocks_for(15), FEWER = blocks_for(12);
constexpr int AIM = aim_for(MANY);

// The pixels that kernels of a reach see of a tile, for outputs that are STEP input pixels apart. The pitch
// keeps the two halves of a warp, eight rows apart, in different banks where STEP is 1.
template <int STEP, int REACH>
struct Halo {
    static constexpr int ROWS = (SIDE - 1) * STEP + 1 + 2 * REACH;
    static constexpr int PITCH = ROWS + (ROWS % 4 == 2 ? 0 : ROWS % 4 == 3 ? 3 : 2 - ROWS % 4);
    static constexpr int PLANE = ROWS * PITCH;

    __device__ static int place(int row, int column) { return row * PITCH + column; }
};

// The same, row after row, for threads that read one pixel after the other.
template <class Shape>
struct InARow {
    static constexpr int ROWS = Shape::ROWS, PLANE = ROWS * ROWS;

    __device__ static int place(int row, int column) { return row * ROWS + column; }
};

constexpr int padded(int count) { return ceil_div(count, 4) * 4; }

// How many channels are staged at once where each takes so much beside what is fixed: up to eight, and full
// rounds of all warps where they fit.
constexpr int at_once(int channels, int each, int aim) {
    const int fits = larger(1, smaller(channels, smaller(8, aim / each)));
    return fits < WARPS || fits == channels ? fits : fits / WARPS * WARPS;
}

// A dense convolution: weights (C, taps, O) and planes.
template <int INPUTS, int SIZE, int DILATION, int STEP>
struct DenseRoom {
    using Shape = Halo<STEP, DILATION*(SIZE / 2)>;
    static constexpr int AREA = SIZE * SIZE, EACH = AREA * CHUNK + Shape::PLANE;
    static constexpr int AT_ONCE = smaller(INPUTS, larger(1, smaller(8, AIM / EACH)));
    static constexpr int NUMBERS = AT_ONCE * EACH;
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};

// A separable one: pointwise weights (C, O), depthwise kernels, what these make of the tile, planes.
template <int S>
struct SeparableRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<s.stride, s.reach()>;
    static constexpr int AREA = s.size * s.size, EACH = CHUNK + padded(AREA) + PIXELS + Shape::PLANE;
    static constexpr int AT_ONCE = at_once(s.inputs, EACH, AIM);
    static constexpr int NUMBERS = AT_ONCE * EACH;
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};

// A transposed separable one: the depthwise kernels; pointwise weights and planes, and when they have been
// read, in their place, K of the four channels of each warp that they make.
template <int S>
struct TransposedRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<1, s.reach()>;
    using Flat = InARow<Shape>;
    static constexpr int AREA = s.size * s.size, KERNELS = CHUNK * padded(AREA), EACH = CHUNK + Flat::PLANE;
    static constexpr int HALF = KERNELS + CHUNK / 2 * Shape::PLANE;
    static constexpr int K = KERNELS + CHUNK * Shape::PLANE <= AIM ? 4
                             : HALF <= larger(AIM, MOST / 2)       ? 2
                                                                   : 1;
    static constexpr int MADE = K * WARPS * Shape::PLANE;
    static constexpr int AT_ONCE =
        smaller(s.outputs, larger(1, smaller(8, (AIM - KERNELS - THREADS) / EACH)));
    static constexpr int NUMBERS = KERNELS + larger(MADE, AT_ONCE* EACH + THREADS);
    static_assert(NUMBERS <= MOST, "a kernel that does not fit into shared memory is not served");
};

// A pool: a plane for each warp. Transposed also the pixels that windows see, and which of them they take.
template <int S, bool TRANSPOSED>
struct PoolRoom {
    static constexpr Stage s = STAGE[S];
    using Shape = Halo<TRANSPOSED ? 1 : s.stride, s.reach()>;
    using Wide = Halo<1, 2 * s.reach()>;
    static constexpr bool TAKEN = TRANSPOSED && s.kind == Kind::max_pool;
    static constexpr int NUMBERS = WARPS * (TAKEN ? Wide::PLANE + 2 * Shape::PLANE : Shape::PLANE);
    static_assert(NUMBERS <= MOST, "a pool that does not fit is not served");
};

template <int S>
constexpr int map_room() {
    constexpr Stage s = STAGE[S];
    if constexpr (s.pools())
        return PoolRoom<S, false>::NUMBERS;
    else if constexpr (s.kind == Kind::separable)
        return SeparableRoom<S>::NUMBERS;
    else
        return DenseRoom<s.inputs, s.size, s.dilation, s.stride>::NUMBERS;
}

template <int S>
constexpr int transposed_room() {
    constexpr Stage s = STAGE[S];
    if constexpr (s.pools())
        return PoolRoom<S, true>::NUMBERS;
    else if constexpr (s.kind == Kind::separable)
        return TransposedRoom<S>::NUMBERS;
    else
        return DenseRoom<s.outputs, s.size, s.dilation, 1>::NUMBERS;
}

// What a kernel's own stages stage at most.
enum class Of { first, second, sum, back, input };
template <Of KERNEL, int S = 0>
constexpr int room_of() {
    if constexpr (S >= STAGES) {
        return 4;
    } else {
        constexpr Stage s = STAGE[S];
        constexpr int others = room_of<KERNEL, S + 1>();
        if constexpr (s.outside)
            return others;
        else if constexpr (s.first ? KERNEL == Of::first : KERNEL == Of::second)
            return larger(others, map_room<S>());
        else if constexpr (KERNEL == Of::sum && !s.stored())
            return larger(others, map_room<S>());
        else if constexpr (s.first ? KERNEL == Of::input : KERNEL == Of::back)
            return larger(others, transposed_room<S>());
        else
            return others;
    }
}

}  // namespace srnas_fast_gpu
