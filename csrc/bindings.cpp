// What Python sees of the C++ kernels, one section per primitive. Python has checked types, shapes and
// strides by now: a tensor arrives as the address of its first element, sizes and strides are counted in
// elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "cpu/channel_moments.h"
#include "cpu/merge_kernels.h"
#include "cpu/multi_depthwise.h"
#include "cpu/narrow_convolution.h"
#include "cpu/pool.h"
#include "cpu/separable.h"
#include "cpu/shuffle_concat.h"
#include "cpu/simplex_project.h"
#include "cpu/weighted_sum.h"

namespace py = pybind11;

namespace {

// The elements at an address that Python took from tensor.data_ptr(); 0 (a tensor that is not wanted) gives
// nullptr.
template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Calls work(T{}) with T = double or float, without holding Python's lock. In work: using T =
// decltype(number).
template <class Work>
auto dispatch(bool is_double, Work work) {
    py::gil_scoped_release release;
    return is_double ? work(double{}) : work(float{});
}

// ---- lists of tensors: their addresses as pointers

template <class T>
std::vector<T*> all_at(const std::vector<std::uintptr_t>& addresses) {
    std::vector<T*> pointers;
    for (const std::uintptr_t address : addresses) pointers.push_back(at<T>(address));
    return pointers;
}

// ---- weighted_sum

using Addresses = std::vector<std::uintptr_t>;

// blocks: for each tensor how many of its elements lie together, and how far apart such blocks begin.
template <class T>
std::vector<srnas_fast::Blocks<T>> all_blocks(const Addresses& zs, const std::vector<int64_t>& blocks) {
    std::vector<srnas_fast::Blocks<T>> found;
    for (size_t k = 0; k < zs.size(); ++k)
        found.push_back({at<const T>(zs[k]), blocks[2 * k], blocks[2 * k + 1]});
    return found;
}

void weighted_sum(bool is_double, std::uintptr_t y, bool accumulate, std::uintptr_t weights, bool per_channel,
                  const Addresses& zs, const std::vector<int64_t>& blocks, std::uintptr_t shift,
                  std::uintptr_t centres, int64_t size, int64_t channels, int64_t inner, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        const srnas_fast::WeightedSum<T> sum{
            size, channels, inner, all_blocks<T>(zs, blocks), at<T>(weights), per_channel, at<T>(centres)};
        srnas_fast::weighted_sum<T>(at<T>(y), accumulate, sum, at<T>(shift), threads);
    });
}

void weighted_sum_backward(bool is_double, std::uintptr_t dy, std::uintptr_t weights, bool per_channel,
                           const Addresses& zs, const std::vector<int64_t>& blocks, std::uintptr_t centres,
                           int64_t size, int64_t channels, int64_t inner, std::uintptr_t dweights,
                           std::uintptr_t dysum, const Addresses& dzs, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        const srnas_fast::WeightedSum<T> sum{
            size, channels, inner, all_blocks<T>(zs, blocks), at<T>(weights), per_channel, at<T>(centres)};
        srnas_fast::weighted_sum_backward<T>(at<T>(dy), sum, at<T>(dweights), at<T>(dysum), all_at<T>(dzs),
                                             threads);
    });
}

// ---- channel_moments

void channel_moments(bool is_double, std::uintptr_t z, int64_t size, int64_t channels, int64_t inner,
                     std::uintptr_t mean, std::uintptr_t variance, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::channel_moments<T>(at<T>(z), size, channels, inner, at<T>(mean), at<T>(variance),
                                       threads);
    });
}

// ---- merge_kernels

srnas_fast::MergeShape merge_shape(const std::vector<int64_t>& merged, const std::vector<int64_t>& sizes,
                                   const std::vector<int64_t>& strides,
                                   const std::vector<int64_t>& dilations) {
    srnas_fast::MergeShape shape{merged[0], merged[1], merged[2], sizes, dilations, {}};
    for (size_t i = 0; i < strides.size(); i += 4) {
        shape.strides.push_back({strides[i], strides[i + 1], strides[i + 2], strides[i + 3]});
    }
    return shape;
}

void merge_kernels(bool is_double, std::uintptr_t merged, const std::vector<int64_t>& merged_sizes,
                   std::uintptr_t weights, const Addresses& kernels, const std::vector<int64_t>& sizes,
                   const std::vector<int64_t>& strides, const std::vector<int64_t>& dilations, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        const auto shape = merge_shape(merged_sizes, sizes, strides, dilations);
        srnas_fast::merge_kernels<T>(at<T>(merged), shape, at<T>(weights), all_at<const T>(kernels), threads);
    });
}

void merge_kernels_backward(bool is_double, std::uintptr_t dmerged, const std::vector<int64_t>& merged_sizes,
                            std::uintptr_t weights, const Addresses& kernels,
                            const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                            const std::vector<int64_t>& dilations, std::uintptr_t dweights,
                            const Addresses& dkernels, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        const auto shape = merge_shape(merged_sizes, sizes, strides, dilations);
        srnas_fast::merge_kernels_backward<T>(at<T>(dmerged), shape, at<T>(weights), all_at<const T>(kernels),
                                              at<T>(dweights), all_at<T>(dkernels), threads);
    });
}

// ---- multi_depthwise

using Sizes = std::vector<int64_t>;

srnas_fast::DepthwiseShape depthwise_shape(const Sizes& x, const Sizes& sizes, const Sizes& dilations,
                                           int64_t stride) {
    return {x[0], x[1], x[2], x[3], sizes, dilations, stride};
}

template <class T>
srnas_fast::Tensor<T> tensor_at(std::uintptr_t address, const Sizes& strides) {
    return {at<T>(address), strides[0], strides[1], strides[2], strides[3]};
}

int64_t multi_depthwise_scratch(bool is_double, const Sizes& x, const Sizes& sizes, const Sizes& dilations,
                                int64_t stride, int threads) {
    return dispatch(is_double, [&](auto number) {
        return srnas_fast::multi_depthwise_scratch<decltype(number)>(
            depthwise_shape(x, sizes, dilations, stride), threads);
    });
}

void multi_depthwise(bool is_double, std::uintptr_t x, const Sizes& x_sizes, const Sizes& x_strides,
                     const Addresses& kernels, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                     const Addresses& outputs, const Sizes& output_strides, std::uintptr_t scratch,
                     int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        std::vector<srnas_fast::Tensor<T>> zs;
        for (const auto output : outputs) zs.push_back(tensor_at<T>(output, output_strides));
        srnas_fast::multi_depthwise<T>(depthwise_shape(x_sizes, sizes, dilations, stride),
                                       tensor_at<const T>(x, x_strides), all_at<const T>(kernels), zs,
                                       at<T>(scratch), threads);
    });
}

void multi_depthwise_backward(bool is_double, std::uintptr_t x, const Sizes& x_sizes, const Sizes& x_strides,
                              const Addresses& dys, const std::vector<Sizes>& dy_strides,
                              const Addresses& kernels, const Sizes& sizes, const Sizes& dilations,
                              int64_t stride, std::uintptr_t dx, const Sizes& dx_strides,
                              const Addresses& dkernels, std::uintptr_t scratch, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        std::vector<srnas_fast::Tensor<const T>> dzs;
        for (size_t k = 0; k < dys.size(); ++k) dzs.push_back(tensor_at<const T>(dys[k], dy_strides[k]));
        srnas_fast::multi_depthwise_backward<T>(depthwise_shape(x_sizes, sizes, dilations, stride),
                                                tensor_at<const T>(x, x_strides), dzs,
                                                all_at<const T>(kernels), tensor_at<T>(dx, dx_strides),
                                                all_at<T>(dkernels), at<T>(scratch), threads);
    });
}

// ---- narrow_convolution

// sizes: images, channels, outputs, height, width, size of the kernel, dilation
srnas_fast::NarrowShape narrow_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

int64_t narrow_convolution_scratch(bool is_double, const Sizes& sizes, bool backward, int threads) {
    return dispatch(is_double, [&](auto number) {
        return srnas_fast::narrow_convolution_scratch<decltype(number)>(narrow_shape(sizes), backward,
                                                                        threads);
    });
}

void narrow_convolution(bool is_double, const Sizes& sizes, std::uintptr_t x, const Sizes& x_strides,
                        std::uintptr_t kernel, std::uintptr_t bias, std::uintptr_t z, const Sizes& z_strides,
                        std::uintptr_t mean, std::uintptr_t variance, std::uintptr_t scratch, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::narrow_convolution<T>(narrow_shape(sizes), tensor_at<const T>(x, x_strides),
                                          at<const T>(kernel), at<const T>(bias), tensor_at<T>(z, z_strides),
                                          at<T>(mean), at<T>(variance), at<T>(scratch), threads);
    });
}

void narrow_convolution_backward(bool is_double, const Sizes& sizes, std::uintptr_t dz,
                                 const Sizes& dz_strides, std::uintptr_t x, const Sizes& x_strides,
                                 std::uintptr_t kernel, std::uintptr_t dx, const Sizes& dx_strides,
                                 std::uintptr_t dkernel, std::uintptr_t scratch, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::narrow_convolution_backward<T>(
            narrow_shape(sizes), tensor_at<const T>(dz, dz_strides), tensor_at<const T>(x, x_strides),
            at<const T>(kernel), tensor_at<T>(dx, dx_strides), at<T>(dkernel), at<T>(scratch), threads);
    });
}

// ---- separable_sum, separable_moments, separable_gradient

int64_t separable_sum_scratch(bool is_double, const Sizes& x, int64_t outputs, const Sizes& sizes,
                              const Sizes& dilations, int64_t stride, int threads) {
    return dispatch(is_double, [&](auto number) {
        const auto shape = depthwise_shape(x, sizes, dilations, stride);
        return srnas_fast::separable_sum_scratch<decltype(number)>(shape, outputs, threads);
    });
}

void separable_sum(bool is_double, std::uintptr_t x, const Sizes& x_sizes, const Sizes& x_strides,
                   const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                   const Addresses& pointwise, std::uintptr_t shift, std::uintptr_t centres, std::uintptr_t y,
                   int64_t outputs, const Sizes& y_strides, bool accumulate, std::uintptr_t scratch,
                   int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::separable_sum<T>(
            depthwise_shape(x_sizes, sizes, dilations, stride), tensor_at<const T>(x, x_strides),
            all_at<const T>(depthwise), all_at<const T>(pointwise), at<const T>(shift), at<const T>(centres),
            outputs, tensor_at<T>(y, y_strides), accumulate, at<T>(scratch), threads);
    });
}

int64_t separable_moments_scratch(bool is_double, const Sizes& x, const Sizes& sizes, const Sizes& dilations,
                                  int64_t stride, int threads) {
    return dispatch(is_double, [&](auto number) {
        const auto shape = depthwise_shape(x, sizes, dilations, stride);
        return srnas_fast::separable_moments_scratch<decltype(number)>(shape, threads);
    });
}

void separable_moments(bool is_double, std::uintptr_t x, const Sizes& x_sizes, const Sizes& x_strides,
                       const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                       std::uintptr_t means, std::uintptr_t covariances, std::uintptr_t scratch,
                       int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::separable_moments<T>(depthwise_shape(x_sizes, sizes, dilations, stride),
                                         tensor_at<const T>(x, x_strides), all_at<const T>(depthwise),
                                         at<T>(means), at<T>(covariances), at<T>(scratch), threads);
    });
}

int64_t separable_gradient_scratch(bool is_double, const Sizes& x, int64_t outputs, const Sizes& sizes,
                                   const Sizes& dilations, int64_t stride, int threads) {
    return dispatch(is_double, [&](auto number) {
        const auto shape = depthwise_shape(x, sizes, dilations, stride);
        return srnas_fast::separable_gradient_scratch<decltype(number)>(shape, outputs, threads);
    });
}

void separable_gradient(bool is_double, std::uintptr_t x, const Sizes& x_sizes, const Sizes& x_strides,
                        std::uintptr_t dy, int64_t outputs, const Sizes& dy_strides,
                        const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations,
                        int64_t stride, const Addresses& left, const Addresses& right, std::uintptr_t offsets,
                        std::uintptr_t centres, std::uintptr_t dx, const Sizes& dx_strides, bool accumulate,
                        std::uintptr_t dysum, const Addresses& ddepthwise, const Addresses& products,
                        std::uintptr_t scratch, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        const srnas_fast::GradientInput<T> in{tensor_at<const T>(x, x_strides),
                                              tensor_at<const T>(dy, dy_strides),
                                              outputs,
                                              all_at<const T>(depthwise),
                                              all_at<const T>(left),
                                              all_at<const T>(right),
                                              at<const T>(offsets),
                                              at<const T>(centres)};
        const srnas_fast::GradientOutput<T> out{tensor_at<T>(dx, dx_strides), accumulate, at<T>(dysum),
                                                all_at<T>(ddepthwise), all_at<T>(products)};
        srnas_fast::separable_gradient<T>(depthwise_shape(x_sizes, sizes, dilations, stride), in, out,
                                          at<T>(scratch), threads);
    });
}

// ---- pool

srnas_fast::PoolShape pool_shape(const Sizes& shape) {
    return {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
}

// places: how many planes an image has; how far apart images, planes, rows and pixels are.
template <class T>
srnas_fast::PoolInput<T> pool_input(std::uintptr_t x, const Sizes& places) {
    return {at<const T>(x), places[0], places[1], places[2], places[3], places[4]};
}

void max_pool(bool is_double, const Sizes& shape, std::uintptr_t x, const Sizes& places, std::uintptr_t y,
              int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::max_pool<T>(pool_shape(shape), pool_input<T>(x, places), at<T>(y), threads);
    });
}

void max_pool_backward(bool is_double, const Sizes& shape, std::uintptr_t dy, std::uintptr_t x,
                       const Sizes& places, std::uintptr_t dx, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::max_pool_backward<T>(pool_shape(shape), at<T>(dy), pool_input<T>(x, places), at<T>(dx),
                                         threads);
    });
}

void average_pool(bool is_double, const Sizes& shape, bool count_padding, std::uintptr_t x,
                  const Sizes& places, std::uintptr_t y, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::average_pool<T>(pool_shape(shape), count_padding, pool_input<T>(x, places), at<T>(y),
                                    threads);
    });
}

void average_pool_backward(bool is_double, const Sizes& shape, bool count_padding, std::uintptr_t dy,
                           std::uintptr_t dx, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::average_pool_backward<T>(pool_shape(shape), count_padding, at<T>(dy), at<T>(dx), threads);
    });
}

// ---- shuffle_concat

// sizes: images, channels of a part, groups, height and width of the output, stride
srnas_fast::ShuffleShape shuffle_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
}

void shuffle_concat(bool is_double, const Sizes& sizes, std::uintptr_t y, const Sizes& y_strides,
                    std::uintptr_t x, const Sizes& x_strides, double scale, std::uintptr_t out,
                    const Sizes& out_strides, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::shuffle_concat<T>(shuffle_shape(sizes), tensor_at<const T>(y, y_strides),
                                      tensor_at<const T>(x, x_strides), T(scale),
                                      tensor_at<T>(out, out_strides), threads);
    });
}

void shuffle_concat_backward(bool is_double, const Sizes& sizes, std::uintptr_t dout,
                             const Sizes& dout_strides, std::uintptr_t x, const Sizes& x_strides,
                             double scale, std::uintptr_t dy, const Sizes& dy_strides, std::uintptr_t dx,
                             const Sizes& dx_strides, std::uintptr_t dscale, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::shuffle_concat_backward<T>(
            shuffle_shape(sizes), tensor_at<const T>(dout, dout_strides), tensor_at<const T>(x, x_strides),
            T(scale), tensor_at<T>(dy, dy_strides), tensor_at<T>(dx, dx_strides), at<T>(dscale), threads);
    });
}

// ---- simplex_project

// sizes: rows, choices, step of the radius
template <class T>
srnas_fast::SimplexRows<T> simplex_rows(const Sizes& sizes, std::uintptr_t logits, std::uintptr_t radius,
                                        bool as_published) {
    return {sizes[0], sizes[1], at<const T>(logits), at<const double>(radius), sizes[2], as_published};
}

void simplex_project(bool is_double, const Sizes& sizes, std::uintptr_t logits, std::uintptr_t radius,
                     bool as_published, std::uintptr_t weights, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::simplex_project<T>(simplex_rows<T>(sizes, logits, radius, as_published), at<T>(weights),
                                       threads);
    });
}

void simplex_project_backward(bool is_double, const Sizes& sizes, std::uintptr_t logits,
                              std::uintptr_t radius, bool as_published, std::uintptr_t dweights,
                              std::uintptr_t dlogits, int threads) {
    dispatch(is_double, [&](auto number) {
        using T = decltype(number);
        srnas_fast::simplex_project_backward<T>(simplex_rows<T>(sizes, logits, radius, as_published),
                                                at<const T>(dweights), at<T>(dlogits), threads);
    });
}

}  // namespace

PYBIND11_MODULE(_srnas_fast_cpu, m) {
    m.doc() = "C++ kernels of srnas_fast for the CPU";
    m.def("weighted_sum", weighted_sum);
    m.def("weighted_sum_backward", weighted_sum_backward);
    m.def("channel_moments", channel_moments);
    m.def("merge_kernels", merge_kernels);
    m.def("merge_kernels_backward", merge_kernels_backward);
    m.def("multi_depthwise_scratch", multi_depthwise_scratch);
    m.def("multi_depthwise", multi_depthwise);
    m.def("multi_depthwise_backward", multi_depthwise_backward);
    m.def("narrow_convolution_scratch", narrow_convolution_scratch);
    m.def("narrow_convolution", narrow_convolution);
    m.def("narrow_convolution_backward", narrow_convolution_backward);
    m.def("separable_sum_scratch", separable_sum_scratch);
    m.def("separable_sum", separable_sum);
    m.def("separable_moments_scratch", separable_moments_scratch);
    m.def("separable_moments", separable_moments);
    m.def("separable_gradient_scratch", separable_gradient_scratch);
    m.def("separable_gradient", separable_gradient);
    m.def("shuffle_concat", shuffle_concat);
    m.def("shuffle_concat_backward", shuffle_concat_backward);
    m.def("max_pool", max_pool);
    m.def("max_pool_backward", max_pool_backward);
    m.def("average_pool", average_pool);
    m.def("average_pool_backward", average_pool_backward);
    m.def("simplex_project", simplex_project);
    m.def("simplex_project_backward", simplex_project_backward);
}
