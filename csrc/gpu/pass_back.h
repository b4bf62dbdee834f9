// Going back: from sums to the coefficients of dz = a g + b z + c and the gradients of weights and norms;
// through the second stages to the gradients of what the first ones' norms make.
#pragma once

#include "pass_made.h"
#include "transposed.h"

namespace srnas_fast_gpu {

template <int SLOT>
__device__ inline void give(const Arguments& call, int index, double value) {
    if constexpr (SLOT >= 0) {
        Parameter* const gradient = call.gradients[SLOT < 0 ? 0 : SLOT];
        if (gradient) put(gradient + index, real(value));
    }
}

// The sum of the tiles' shares, in every lane.
__device__ inline double total_of(const Arguments& call, int channel, int which, int64_t tiles,
                                  int64_t shares) {
    double total = 0;
    for (int64_t t = lane_index(); t < shares; t += 32)
        total += double(partial_sum(call, channel, which, t, tiles));
    return warp_sum_wide(total);
}

// The sum of what the first lanes of a block's warps give, in the first thread.
__device__ inline double sum_of_warps(double* of_warps, double value) {
    const int warps = int(blockDim.x) / 32;
    if (lane_index() == 0) of_warps[warp_index()] = value;
    __syncthreads();
    double sum = 0;
    for (int warp = 0; warp < warps && threadIdx.x == 0; ++warp) sum += of_warps[warp];
    return sum;
}

// From the sums of g and of g times the normalised z, where g is the gradient of what the norm makes and
// comes with the factor `weight`: the gradients of the norm and of the bias, and the coefficients. Returns
// what the channel adds to the gradient of that factor.
template <int S>
__device__ double finish_channel(const Arguments& call, int channel, double weight, double total,
                                 double product) {
    constexpr Stage s = STAGE[S];
    const double bias = double(parameter<s.bias>(call, channel));
    double a = weight, b = 0, c = 0, of_factor = product + bias * total;
    if constexpr (s.norm != Norm::none) {
        const double gamma = double(parameter<s.gamma>(call, channel, 1));
        const double beta = double(parameter<s.beta>(call, channel));
        const double mean = double(call.kept[S][channel]);
        const double rstd = double(call.kept[S][2 * s.outputs + channel]);
        a = weight * gamma * rstd;
        of_factor = gamma * product + beta * total;
        give<s.gamma>(call, channel, weight * product);
        give<s.beta>(call, channel, weight * total);
        if constexpr (s.norm == Norm::batch) {
            const double pixels = double(call.pixels());
            b = -a * rstd * product / pixels;
            c = -a * total / pixels - b * mean;
        }
    }
    // The batch's mean takes the bias away again.
    give<s.bias>(call, channel, s.norm == Norm::batch ? 0.0 : a * total);
    if constexpr (s.norm == Norm::batch) {
        real* const three = call.coefficients + 3 * (s.sums + channel);
        three[0] = real(a);
        three[1] = real(b);
        three[2] = real(c);
    }
    return of_factor;
}

// Of the last stages (phase 0: the gradient is dy times the candidate's weight) or of the first of two (phase
// 1); of all of them (phase 2).
template <int S>
__device__ void finish_stage(const Arguments& call) {
    constexpr Stage s = STAGE[S];
    constexpr bool last = s.last;
    if (call.phase == (last ? 1 : 0) || !call.alive(s.candidate)) return;
    SHARED(double, of_warps, FINISHERS);
    // Torch's own convolutions leave one share.
    const int64_t tiles = call.tiles(), shares = s.outside ? 1 : tiles;
    const double weight = last ? double(call.weights[s.candidate]) : 1.0;
    double of_factor = 0, slopes = 0;  // the warp's
    for (int channel = warp_index(); channel < s.outputs; channel += FINISHERS) {
        const double total = total_of(call, s.sums + channel, 0, tiles, shares);
        const double product = total_of(call, s.sums + channel, 1, tiles, shares);
        if (lane_index() == 0) of_factor += finish_channel<S>(call, channel, weight, total, product);
        if constexpr (!s.last) {
            // Of the activation between the stages.
            constexpr Stage second = STAGE[s.other];
            if constexpr (second.activation == Activation::prelu) {
                const double slope = total_of(call, s.sums + channel, 2, tiles, shares);
                if (second.slopes > 1) {
                    if (lane_index() == 0) give<second.slope_slot>(call, channel, slope);
                } else {
                    slopes += slope;
                }
            }
        }
    }
    if constexpr (last) {
        const double sum = sum_of_warps(of_warps, of_factor);
        if (threadIdx.x == 0 && call.dweights) call.dweights[s.candidate] = real(sum);
    }
    if constexpr (!s.last) {
        constexpr Stage second = STAGE[s.other];
        if constexpr (second.activation == Activation::prelu && second.slopes == 1) {
            const double sum = sum_of_warps(of_warps, slopes);
            if (threadIdx.x == 0) give<second.slope_slot>(call, 0, sum);
        }
    }
}

// The gradients of the weights of candidates without stages.
__device__ inline void finish_plain(const Arguments& call) {
    if (call.phase == 1 || !call.dweights) return;
    SHARED(double, of_warps, FINISHERS);
    const int64_t tiles = call.tiles();
    double product = 0;
    for (int channel = warp_index(); IDENTITIES && channel < CHANNELS; channel += FINISHERS)
        product += total_of(call, IDENTITY_SUMS + channel, 1, tiles, tiles);
    const double sum = sum_of_warps(of_warps, product);
    if (threadIdx.x != 0) return;
    for (int k = 0; k < CANDIDATES; ++k) {
        const bool same = IDENTITIES >> k & 1, staged = STAGED >> k & 1;
        if (!call.alive(k) || !staged) call.dweights[k] = same && call.alive(k) ? real(sum) : real(0);
    }
}

// A block for each stage, and one more.
__device__ inline void finish_gradients(const Arguments& call) {
    if (int(blockIdx.x) == STAGES) return finish_plain(call);
    with_stage<Stages::all>(int(blockIdx.x), [&](auto s) { finish_stage<s.value>(call); });
}

// ---- through the second stages

template <int S>
__device__ void return_second(const Arguments& call, int64_t index, int64_t tiles, int chunk, real* room,
                              real* affine, real* coefficients) {
    constexpr Stage s = STAGE[S];
    constexpr Stage f = STAGE[s.other];
    if (!call.alive(s.candidate) || chunk >= chunks_of(s.inputs)) return;
    const Tile tile = Tile::make(index, call.out_height, call.out_width);
    Sums sums;
    clear(sums);
    add_transposed<S>(call, tile, chunk, room, coefficients, sums);
    const Between<S> between(call, tile.image, affine);
#pragma unroll 1
    for (int k = 0; k < CHANNELS_PER_WARP; ++k) {
        real returned[COLUMN];
        take(sums, k, returned);
        const int channel = channel_of(chunk, k);
        const bool there = channel < f.outputs;
        real mean = 0, rstd = 1;
        if constexpr (f.norm != Norm::none) {
            mean = there ? call.kept[s.other][channel] : real(0);
            rstd = there ? call.kept[s.other][2 * f.outputs + channel] : real(0);
        }
        const real slope = there ? slope_of<S>(call, channel) : real(0);
        real total = 0, product = 0, slopes = 0;
#pragma unroll
        for (int q = 0; q < COLUMN; ++q) {
            if (!there || !inside(tile, q)) continue;
            const int row = tile.top + lane_y() + q, column = tile.left + lane_x();
            const int place = row * int(call.out_width) + column;
            const real z = plane_of(call, call.made[s.other], f.outputs, tile.image, channel)[place];
            const real normed = between.normed(channel, row, column);
            const real g = returned[q] * activation_slope<S>(normed, slope);
            plane_of(call, call.returned[s.other], f.outputs, tile.image, channel)[place] = g;
            total += g;
            product += g * (z - mean);
            if constexpr (s.activation == Activation::prelu)
                slopes += normed > 0 ? real(0) : returned[q] * normed;
        }
        total = warp_sum(total);
        product = warp_sum(product) * rstd;
        if constexpr (s.activation == Activation::prelu) slopes = warp_sum(slopes);
        if (lane_index() == 0 && there) {
            partial_sum(call, f.sums + channel, 0, index, tiles) = total;
            partial_sum(call, f.sums + channel, 1, index, tiles) = product;
            partial_sum(call, f.sums + channel, 2, index, tiles) = slopes;
        }
    }
}

// blockIdx.x counts the tiles, and for each its jobs: a chunk of a second stage's inputs.
__device__ inline void return_seconds(const Arguments& call, real* room, real* affine, real* coefficients) {
    const int jobs = SECOND_STAGES * CHUNKS;
    const int64_t tile = blockIdx.x / jobs, tiles = gridDim.x / jobs;
    const int job = int(blockIdx.x % jobs);
    with_stage<Stages::second>(job / CHUNKS, [&](auto s) {
        return_second<s.value>(call, tile, tiles, job % CHUNKS, room, affine, coefficients);
    });
}

}  // namespace srnas_fast_gpu
