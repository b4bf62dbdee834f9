// The store of partial channels: a part y of the channels beside those of x that passed by, shuffled.
#pragma once

#include <cstdint>

#include "planes.h"

namespace srnas_fast {

// x has part * groups channels and `stride` (1 or 2) times the height and width given here, those of y and of
// the output. Channel j * groups of the output is channel j of y; channel j * groups + i, i >= 1, is channel
// i * part + j of x times `scale`, at stride 2 the maximum of each of its 2 x 2 windows.
struct ShuffleShape {
    int64_t images, part, groups, height, width, stride;

    int64_t channels() const { return part * groups; }
};

// A NaN in a window is its maximum.
template <class T>
void shuffle_concat(const ShuffleShape& shape, Tensor<const T> y, Tensor<const T> x, T scale, Tensor<T> out,
                    int threads);

// dy and the channels of dx from `part` on, each element of dout to the first maximum of its window (to the
// last NaN where there is one); dscale (a single number). dx and dscale may be null.
template <class T>
void shuffle_concat_backward(const ShuffleShape& shape, Tensor<const T> dout, Tensor<const T> x, T scale,
                             Tensor<T> dy, Tensor<T> dx, T* dscale, int threads);

}  // namespace srnas_fast
