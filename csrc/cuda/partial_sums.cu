#include "partial_sums.h"

namespace srnas_fast_cuda {
namespace {

constexpr int SUMS = 32, ROWS = 8;  // a block has a warp of sums, and ROWS warps that share the sets

// Reads the parts once, along the rows, and writes each sum once.
__global__ void __launch_bounds__(SUMS* ROWS)
    add_sets(const float* partial, int64_t sets, int64_t step, int64_t size, double scale, float* sums) {
    __shared__ double shared[ROWS][SUMS];
    const int lane = threadIdx.x % SUMS, row = threadIdx.x / SUMS;
    const int64_t i = int64_t(blockIdx.x) * SUMS + lane;
    double sum = 0;
    if (i < size)
        for (int64_t set = row; set < sets; set += ROWS) sum += partial[set * step + i];
    shared[row][lane] = sum;
    __syncthreads();
    if (row == 0 && i < size) {
        for (int other = 1; other < ROWS; ++other) sum += shared[other][lane];
        sums[i] = float(sum * scale);
    }
}

}  // namespace

#ifndef __CUDACC_RTC__

void add_partial(const float* partial, int64_t sets, int64_t step, int64_t size, double scale, float* sums,
                 void* stream) {
    if (size == 0) return;
    LAUNCH(add_sets, ceil_div(size, SUMS), SUMS * ROWS, stream, partial, sets, step, size, scale, sums);
}

#endif

}  // namespace srnas_fast_cuda
