#include "merge_kernels.h"

#include <algorithm>

namespace srnas_fast {
namespace {

// Calls visit(offset in the merged S x S plane, offset in the kernel's plane (its strides), index of the
// tap).
template <class Visit>
void taps(const MergeShape& shape, size_t k, Visit visit) {
    const int64_t size = shape.sizes[k], dilation = shape.dilations[k];
    const int64_t first = (shape.size - 1 - dilation * (size - 1)) / 2;
    for (int64_t row = 0; row < size; ++row) {
        for (int64_t column = 0; column < size; ++column) {
            visit((first + row * dilation) * shape.size + first + column * dilation,
                  row * shape.strides[k][2] + column * shape.strides[k][3], row * size + column);
        }
    }
}

template <class T>
const T* plane(const T* kernel, const std::array<int64_t, 4>& strides, int64_t index, int64_t inputs) {
    return kernel + index / inputs * strides[0] + index % inputs * strides[1];
}

}  // namespace

template <class T>
void merge_kernels(T* merged, const MergeShape& shape, const T* weights, const std::vector<const T*>& kernels,
                   int threads) {
    const int64_t area = shape.size * shape.size;
#pragma omp parallel for schedule(static) num_threads(threads) if (shape.outputs > 1)
    for (int64_t o = 0; o < shape.outputs; ++o) {
        for (int64_t index = o * shape.inputs; index < (o + 1) * shape.inputs; ++index) {
            T* const out = merged + index * area;
            std::fill(out, out + area, T(0));
            for (size_t k = 0; k < kernels.size(); ++k) {
                const T* const kernel = plane(kernels[k], shape.strides[k], index, shape.inputs);
                taps(shape, k,
                     [&](int64_t at, int64_t from, int64_t) { out[at] += weights[k] * kernel[from]; });
            }
        }
    }
}

template <class T>
void merge_kernels_backward(const T* dmerged, const MergeShape& shape, const T* weights,
                            const std::vector<const T*>& kernels, T* dweights,
                            const std::vector<T*>& dkernels, int threads) {
    const int64_t area = shape.size * shape.size, count = kernels.size();
    std::vector<double> products(shape.outputs * count);  // per output channel, added in order below
#pragma omp parallel for schedule(static) num_threads(threads) if (shape.outputs > 1)
    for (int64_t o = 0; o < shape.outputs; ++o) {
        for (int64_t index = o * shape.inputs; index < (o + 1) * shape.inputs; ++index) {
            const T* const gradient = dmerged + index * area;
            for (int64_t k = 0; k < count; ++k) {
                const T* const kernel = plane(kernels[k], shape.strides[k], index, shape.inputs);
                T* const dkernel = dkernels[k] + index * shape.sizes[k] * shape.sizes[k];
                double product = 0;
                taps(shape, k, [&](int64_t at, int64_t from, int64_t tap) {
                    product += static_cast<double>(gradient[at]) * kernel[from];
                    dkernel[tap] = weights[k] * gradient[at];
                });
                products[o * count + k] += product;
            }
        }
    }
    for (int64_t k = 0; k < count; ++k) {
        double sum = 0;
        for (int64_t o = 0; o < shape.outputs; ++o) sum += products[o * count + k];
        dweights[k] = static_cast<T>(sum);
    }
}

#define INSTANTIATE(T)                                                                               \
    template void merge_kernels(T*, const MergeShape&, const T*, const std::vector<const T*>&, int); \
    template void merge_kernels_backward(const T*, const MergeShape&, const T*,                      \
                                         const std::vector<const T*>&, T*, const std::vector<T*>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
