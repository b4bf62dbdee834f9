// Maximum and average over a window around every stride-th pixel, and their input gradients.
#pragma once

#include <cstdint>

namespace srnas_fast {

// Tensors (planes, height, width, unit), where neighbours in a row are `unit` elements apart: an image
// in channels_last is one plane of pixels of C elements, in NCHW it is C planes of single elements. Windows
// are size x size, size 3, 5 or 7, around every stride-th pixel; outside the image nothing counts.
struct PoolShape {
    int64_t planes, height, width, unit, size, stride;

    int64_t out_height() const { return (height - 1) / stride + 1; }
    int64_t out_width() const { return (width - 1) / stride + 1; }
    int64_t row() const { return width * unit; }
    int64_t out_row() const { return out_width() * unit; }
};

// Where the rows of such planes are in a tensor that need not be dense, `parts` planes an image. Pixels are
// `pixel` elements apart: the unit, or more where x is a slice of the channels of a larger image.
template <class T>
struct PoolInput {
    const T* data;
    int64_t parts, image, part, line, pixel;  // from one to the next

    const T* row(int64_t plane, int64_t y) const {
        return data + plane / parts * image + plane % parts * part + y * line;
    }
};

// A NaN in a window wins.
template <class T>
void max_pool(const PoolShape& shape, const PoolInput<T>& x, T* y, int threads);

// Each element of dy goes to the first maximum of its window, row by row; to the last NaN where there is one.
template <class T>
void max_pool_backward(const PoolShape& shape, const T* dy, const PoolInput<T>& x, T* dx, int threads);

// The sum over a window, divided by the number of its pixels inside the image; with count_padding, of all.
template <class T>
void average_pool(const PoolShape& shape, bool count_padding, const PoolInput<T>& x, T* y, int threads);

template <class T>
void average_pool_backward(const PoolShape& shape, bool count_padding, const T* dy, T* dx, int threads);

}  // namespace srnas_fast
