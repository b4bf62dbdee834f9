#include "block_sum.h"
#include "merge_kernels.h"
#include "partial_sums.h"

namespace srnas_fast_cuda {
namespace {

constexpr int MOST = 16;      // kernels per launch
constexpr int THREADS = 256;  // per block
constexpr int BLOCKS = 64;    // at most, for each kernel's gradient

// A kernel (O, I, size, size) of any strides; its first tap is at row and column `first` of the merged one.
struct Kernel {
    const float* data;
    float* gradient;  // contiguous
    int size, dilation, first;
    int64_t strides[4];
};

// Some of the K kernels, beginning with the one to which `weights` points.
struct Group {
    int64_t planes, inputs;  // O * I and I
    int size, count;         // S, and the number of kernels
    const float* weights;
    Kernel kernels[MOST];
};

__device__ int64_t place(const Kernel& kernel, int64_t plane, int64_t inputs, int row, int column) {
    const int64_t output = quotient(plane, inputs), input = plane - output * inputs;
    return output * kernel.strides[0] + input * kernel.strides[1] + row * kernel.strides[2] +
           column * kernel.strides[3];
}

// Whether a kernel has a tap at this row or column of the merged one, and which.
__device__ bool find_tap(const Kernel& kernel, int at, int& tap) {
    const int distance = at - kernel.first;
    tap = distance / kernel.dilation;
    return distance >= 0 && tap < kernel.size && tap * kernel.dilation == distance;
}

// One thread per entry of merged. Reads each kernel once and writes merged once, the least possible.
__global__ void merge(Group group, float* merged, bool accumulate) {
    const int64_t index = int64_t{blockIdx.x} * THREADS + threadIdx.x;
    const int area = group.size * group.size;
    if (index >= group.planes * area) return;
    const int64_t plane = quotient(index, area);
    const int at = int(index - plane * area), row = at / group.size, column = at % group.size;
    float sum = accumulate ? merged[index] : 0;
    for (int k = 0; k < group.count; ++k) {
        const Kernel& kernel = group.kernels[k];
        int i, j;
        if (find_tap(kernel, row, i) && find_tap(kernel, column, j))
            sum += group.weights[k] * kernel.data[place(kernel, plane, group.inputs, i, j)];
    }
    merged[index] = sum;
}

// Blocks (x, k) share the taps of kernel k; each leaves its part of <kernel_k, dmerged> in partial[x][k].
// Reads the kernels once and dmerged once for each of them, and writes their gradients: the least possible
// but for dmerged, which the cache holds.
__global__ void unmerge(Group group, const float* dmerged, float* partial) {
    const Kernel& kernel = group.kernels[blockIdx.y];
    const float weight = group.weights[blockIdx.y];
    const int area = kernel.size * kernel.size;
    float product = 0;
    for (int64_t index = int64_t{blockIdx.x} * THREADS + threadIdx.x; index < group.planes * area;
         index += int64_t{gridDim.x} * THREADS) {
        const int64_t plane = quotient(index, area);
        const int at = int(index - plane * area), i = at / kernel.size, j = at % kernel.size;
        const int row = kernel.first + i * kernel.dilation, column = kernel.first + j * kernel.dilation;
        const float gradient = dmerged[(plane * group.size + row) * group.size + column];
        product += gradient * kernel.data[place(kernel, plane, group.inputs, i, j)];
        kernel.gradient[index] = weight * gradient;
    }
    product = block_sum<THREADS>(product);
    if (threadIdx.x == 0) partial[blockIdx.x * gridDim.y + blockIdx.y] = product;
}

}  // namespace

#ifndef __CUDACC_RTC__

namespace {

// Kernels from number `begin` on, as many as go into a launch; without gradients for the way there.
Group group_from(size_t begin, const MergeShape& shape, const float* weights,
                 const std::vector<const float*>& kernels, const std::vector<float*>& gradients) {
    Group group{shape.outputs * shape.inputs, shape.inputs, int(shape.size), 0, weights + begin, {}};
    for (size_t k = begin; k < kernels.size() && group.count < MOST; ++k) {
        Kernel& kernel = group.kernels[group.count++];
        kernel.data = kernels[k];
        kernel.gradient = gradients.empty() ? nullptr : gradients[k];
        kernel.size = int(shape.sizes[k]);
        kernel.dilation = int(shape.dilations[k]);
        kernel.first = int(shape.size - 1 - shape.dilations[k] * (shape.sizes[k] - 1)) / 2;
        for (int d = 0; d < 4; ++d) kernel.strides[d] = shape.strides[k][d];
    }
    return group;
}

// Blocks for each kernel's gradient: some elements for every thread, as long as there are not too many.
int64_t blocks_of(const MergeShape& shape) {
    int64_t largest = 1;
    for (const int64_t size : shape.sizes) largest = max(largest, size);
    const int64_t taps = shape.outputs * shape.inputs * largest * largest;
    return max(int64_t{1}, min(int64_t{BLOCKS}, ceil_div(taps, 4 * THREADS)));
}

}  // namespace

void merge_kernels(float* merged, const MergeShape& shape, const float* weights,
                   const std::vector<const float*>& kernels, void* stream) {
    const int64_t size = shape.outputs * shape.inputs * shape.size * shape.size;
    if (size == 0) return;
    for (size_t begin = 0; begin < kernels.size(); begin += MOST) {
        const Group group = group_from(begin, shape, weights, kernels, {});
        LAUNCH(merge, ceil_div(size, THREADS), THREADS, stream, group, merged, begin > 0);
    }
}

int64_t merge_kernels_backward_scratch(const MergeShape& shape) {
    return shape.sizes.size() * blocks_of(shape);
}

void merge_kernels_backward(const float* dmerged, const MergeShape& shape, const float* weights,
                            const std::vector<const float*>& kernels, float* dweights,
                            const std::vector<float*>& dkernels, float* scratch, void* stream) {
    const int64_t blocks = blocks_of(shape);
    for (size_t begin = 0; begin < kernels.size(); begin += MOST) {
        const Group group = group_from(begin, shape, weights, kernels, dkernels);
        const dim3 grid(blocks, group.count);
        float* const partial = scratch + begin * blocks;
        LAUNCH(unmerge, grid, THREADS, stream, group, dmerged, partial);
        add_partial(partial, blocks, group.count, group.count, 1, dweights + begin, stream);
    }
}

#endif

}  // namespace srnas_fast_cuda
