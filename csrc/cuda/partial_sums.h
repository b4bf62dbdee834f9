// The second stage of sums that many blocks share.
#pragma once

#include "device.h"

namespace srnas_fast_cuda {

// sums[i] = scale times the sum over sets of partial[set * step + i] for i < size, always in the same order;
// 0 without a set.
void add_partial(const float* partial, int64_t sets, int64_t step, int64_t size, double scale, float* sums,
                 void* stream);

}  // namespace srnas_fast_cuda
