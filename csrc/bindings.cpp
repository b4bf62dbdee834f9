// What Python sees of the C++ kernels, one section per primitive. Python has checked types, shapes and
// strides by now: a tensor arrives as the address of its first element, sizes and strides are counted in
// elements. Kernels run without Python's lock.
#include "cpu/channel_moments.h"
#include "cpu/merge_kernels.h"
#include "cpu/multi_depthwise.h"
#include "cpu/narrow_convolution.h"
#include "cpu/pool.h"
#include "cpu/separable.h"
#include "cpu/shuffle_concat.h"
#include "cpu/simplex_project.h"
#include "cpu/weighted_sum.h"
#include "python.h"

using namespace srnas_fast_python;
using srnas_fast::Tensor;
using Unlocked = py::gil_scoped_release;
using Make = py::function;

namespace {

// An image that is read as it is.
template <class T>
srnas_fast::Source<T> source_at(Address address, const Sizes& strides) {
    return {tensor_at<Tensor<const T>>(address, strides), {}};
}

// ---- weighted_sum

// sizes: size, channels, inner; blocks: for each z how many of its elements lie together, and how far apart
// such blocks begin
template <class T>
srnas_fast::WeightedSum<T> sum_of(const Sizes& sizes, Address weights, bool per_channel, const Addresses& zs,
                                  const Sizes& blocks, Address centres) {
    srnas_fast::WeightedSum<T> sum{sizes[0],       sizes[1],    sizes[2],      {},
                                   at<T>(weights), per_channel, at<T>(centres)};
    for (size_t k = 0; k < zs.size(); ++k)
        sum.zs.push_back({at<const T>(zs[k]), blocks[2 * k], blocks[2 * k + 1]});
    return sum;
}

template <class T>
void weighted_sum(int threads, const Make&, Address y, bool accumulate, Address weights, bool per_channel,
                  const Addresses& zs, const Sizes& blocks, Address shift, Address centres,
                  const Sizes& sizes) {
    const Unlocked unlocked;
    srnas_fast::weighted_sum<T>(at<T>(y), accumulate,
                                sum_of<T>(sizes, weights, per_channel, zs, blocks, centres), at<T>(shift),
                                threads);
}

template <class T>
void weighted_sum_backward(int threads, const Make&, Address dy, Address weights, bool per_channel,
                           const Addresses& zs, const Sizes& blocks, Address centres, const Sizes& sizes,
                           Address dweights, Address dysum, const Addresses& dzs) {
    const Unlocked unlocked;
    srnas_fast::weighted_sum_backward<T>(at<T>(dy),
                                         sum_of<T>(sizes, weights, per_channel, zs, blocks, centres),
                                         at<T>(dweights), at<T>(dysum), all_at<T>(dzs), threads);
}

// ---- channel_moments

template <class T>
void channel_moments(int threads, const Make&, Address z, const Sizes& sizes, Address mean,
                     Address variance) {
    const Unlocked unlocked;
    srnas_fast::channel_moments<T>(at<T>(z), sizes[0], sizes[1], sizes[2], at<T>(mean), at<T>(variance),
                                   threads);
}

// ---- merge_kernels

// merged: O, I, S; four strides for each kernel
srnas_fast::MergeShape merge_shape(const Sizes& merged, const Sizes& sizes, const Sizes& strides,
                                   const Sizes& dilations) {
    srnas_fast::MergeShape shape{merged[0], merged[1], merged[2], sizes, dilations, {}};
    for (size_t i = 0; i < strides.size(); i += 4)
        shape.strides.push_back({strides[i], strides[i + 1], strides[i + 2], strides[i + 3]});
    return shape;
}

template <class T>
void merge_kernels(int threads, const Make&, Address merged, const Sizes& merged_sizes, Address weights,
                   const Addresses& kernels, const Sizes& sizes, const Sizes& strides,
                   const Sizes& dilations) {
    const Unlocked unlocked;
    srnas_fast::merge_kernels<T>(at<T>(merged), merge_shape(merged_sizes, sizes, strides, dilations),
                                 at<T>(weights), all_at<const T>(kernels), threads);
}

template <class T>
void merge_kernels_backward(int threads, const Make&, Address dmerged, const Sizes& merged_sizes,
                            Address weights, const Addresses& kernels, const Sizes& sizes,
                            const Sizes& strides, const Sizes& dilations, Address dweights,
                            const Addresses& dkernels) {
    const Unlocked unlocked;
    srnas_fast::merge_kernels_backward<T>(
        at<T>(dmerged), merge_shape(merged_sizes, sizes, strides, dilations), at<T>(weights),
        all_at<const T>(kernels), at<T>(dweights), all_at<T>(dkernels), threads);
}

// ---- multi_depthwise

srnas_fast::DepthwiseShape depthwise_shape(const Sizes& x, const Sizes& sizes, const Sizes& dilations,
                                           int64_t stride) {
    return {x[0], x[1], x[2], x[3], sizes, dilations, stride};
}

template <class T>
void multi_depthwise(int threads, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
                     const Addresses& kernels, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                     const Addresses& outputs, const Sizes& output_strides) {
    const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
    const Scratch<T> scratch(make, srnas_fast::multi_depthwise_scratch<T>(shape, threads));
    const Unlocked unlocked;
    std::vector<Tensor<T>> zs;
    for (const Address output : outputs) zs.push_back(tensor_at<Tensor<T>>(output, output_strides));
    srnas_fast::multi_depthwise<T>(shape, tensor_at<Tensor<const T>>(x, x_strides), all_at<const T>(kernels),
                                   zs, scratch.data(), threads);
}

template <class T>
void multi_depthwise_backward(int threads, const Make& make, Address x, const Sizes& x_sizes,
                              const Sizes& x_strides, const Addresses& dys,
                              const std::vector<Sizes>& dy_strides, const Addresses& kernels,
                              const Sizes& sizes, const Sizes& dilations, int64_t stride, Address dx,
                              const Sizes& dx_strides, const Addresses& dkernels) {
    const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
    const Scratch<T> scratch(make, srnas_fast::multi_depthwise_scratch<T>(shape, threads));
    const Unlocked unlocked;
    std::vector<Tensor<const T>> dzs;
    for (size_t k = 0; k < dys.size(); ++k) dzs.push_back(tensor_at<Tensor<const T>>(dys[k], dy_strides[k]));
    srnas_fast::multi_depthwise_backward<T>(shape, tensor_at<Tensor<const T>>(x, x_strides), dzs,
                                            all_at<const T>(kernels), tensor_at<Tensor<T>>(dx, dx_strides),
                                            all_at<T>(dkernels), scratch.data(), threads);
}

// ---- narrow_convolution

// sizes: images, channels, outputs, height, width, size of the kernel, dilation
srnas_fast::NarrowShape narrow_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

template <class T>
void narrow_convolution(int threads, const Make& make, const Sizes& sizes, Address x, const Sizes& x_strides,
                        Address kernel, Address bias, Address z, const Sizes& z_strides, Address mean,
                        Address variance) {
    const auto shape = narrow_shape(sizes);
    const Scratch<T> scratch(make, srnas_fast::narrow_convolution_scratch<T>(shape, false, threads));
    const Unlocked unlocked;
    srnas_fast::narrow_convolution<T>(shape, source_at<T>(x, x_strides), at<const T>(kernel),
                                      at<const T>(bias), tensor_at<Tensor<T>>(z, z_strides), false,
                                      at<T>(mean), at<T>(variance), scratch.data(), threads);
}

template <class T>
void narrow_convolution_backward(int threads, const Make& make, const Sizes& sizes, Address dz,
                                 const Sizes& dz_strides, Address x, const Sizes& x_strides, Address kernel,
                                 Address dx, const Sizes& dx_strides, Address dkernel) {
    const auto shape = narrow_shape(sizes);
    const Scratch<T> scratch(make, srnas_fast::narrow_convolution_scratch<T>(shape, true, threads));
    const Unlocked unlocked;
    srnas_fast::narrow_convolution_backward<T>(
        shape, {tensor_at<Tensor<const T>>(dz, dz_strides), {}, nullptr, nullptr, nullptr, nullptr},
        source_at<T>(x, x_strides), at<const T>(kernel), tensor_at<Tensor<T>>(dx, dx_strides), false,
        at<T>(dkernel), scratch.data(), threads);
}

// ---- separable_sum, separable_moments, separable_gradient

template <class T>
void separable_sum(int threads, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
                   const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                   const Addresses& pointwise, Address shift, Address centres, Address y, int64_t outputs,
                   const Sizes& y_strides, bool accumulate) {
    const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
    const Scratch<T> scratch(make, srnas_fast::separable_sum_scratch<T>(shape, outputs, threads));
    const Unlocked unlocked;
    srnas_fast::separable_sum<T>(shape, source_at<T>(x, x_strides), all_at<const T>(depthwise),
                                 all_at<const T>(pointwise), at<const T>(shift), at<const T>(centres),
                                 outputs, tensor_at<Tensor<T>>(y, y_strides), accumulate, scratch.data(),
                                 threads);
}

template <class T>
void separable_moments(int threads, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
                       const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
                       Address means, Address covariances) {
    const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
    const Scratch<T> scratch(make, srnas_fast::separable_moments_scratch<T>(shape, threads));
    const Unlocked unlocked;
    srnas_fast::separable_moments<T>(shape, source_at<T>(x, x_strides), all_at<const T>(depthwise),
                                     at<T>(means), at<T>(covariances), scratch.data(), threads);
}

template <class T>
void separable_gradient(int threads, const Make& make, Address x, const Sizes& x_sizes,
                        const Sizes& x_strides, Address dy, int64_t outputs, const Sizes& dy_strides,
                        const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations,
                        int64_t stride, const Addresses& left, const Addresses& right, Address offsets,
                        Address centres, Address dx, const Sizes& dx_strides, bool accumulate, Address dysum,
                        const Addresses& ddepthwise, const Addresses& products) {
    const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
    const Scratch<T> scratch(make, srnas_fast::separable_gradient_scratch<T>(shape, outputs, threads));
    const Unlocked unlocked;
    const srnas_fast::GradientInput<T> in{source_at<T>(x, x_strides),
                                          tensor_at<Tensor<const T>>(dy, dy_strides),
                                          outputs,
                                          all_at<const T>(depthwise),
                                          all_at<const T>(left),
                                          all_at<const T>(right),
                                          at<const T>(offsets),
                                          at<const T>(centres)};
    const srnas_fast::GradientOutput<T> out{tensor_at<Tensor<T>>(dx, dx_strides), accumulate, at<T>(dysum),
                                            all_at<T>(ddepthwise), all_at<T>(products)};
    srnas_fast::separable_gradient<T>(shape, in, out, scratch.data(), threads);
}

// ---- pool

srnas_fast::PoolShape pool_shape(const Sizes& shape) {
    return {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
}

// places: how many planes an image has; how far apart images, planes, rows and pixels are.
template <class T>
srnas_fast::PoolInput<T> pool_input(Address x, const Sizes& places) {
    return {at<const T>(x), places[0], places[1], places[2], places[3], places[4]};
}

template <class T>
void max_pool(int threads, const Make&, const Sizes& shape, Address x, const Sizes& places, Address y) {
    const Unlocked unlocked;
    srnas_fast::max_pool<T>(pool_shape(shape), pool_input<T>(x, places), at<T>(y), threads);
}

template <class T>
void max_pool_backward(int threads, const Make&, const Sizes& shape, Address dy, Address x,
                       const Sizes& places, Address dx) {
    const Unlocked unlocked;
    srnas_fast::max_pool_backward<T>(pool_shape(shape), at<T>(dy), pool_input<T>(x, places), at<T>(dx),
                                     threads);
}

template <class T>
void average_pool(int threads, const Make&, const Sizes& shape, bool count_padding, Address x,
                  const Sizes& places, Address y) {
    const Unlocked unlocked;
    srnas_fast::average_pool<T>(pool_shape(shape), count_padding, pool_input<T>(x, places), at<T>(y),
                                threads);
}

template <class T>
void average_pool_backward(int threads, const Make&, const Sizes& shape, bool count_padding, Address dy,
                           Address dx) {
    const Unlocked unlocked;
    srnas_fast::average_pool_backward<T>(pool_shape(shape), count_padding, at<T>(dy), at<T>(dx), threads);
}

// ---- shuffle_concat

// sizes: images, channels of a part, groups, height and width of the output, stride
srnas_fast::ShuffleShape shuffle_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
}

template <class T>
T scale_at(Address scale) {
    return scale ? *at<const T>(scale) : T(1);
}

template <class T>
void shuffle_concat(int threads, const Make&, const Sizes& sizes, Address y, const Sizes& y_strides,
                    Address x, const Sizes& x_strides, Address scale, Address out, const Sizes& out_strides) {
    const Unlocked unlocked;
    srnas_fast::shuffle_concat<T>(shuffle_shape(sizes), tensor_at<Tensor<const T>>(y, y_strides),
                                  tensor_at<Tensor<const T>>(x, x_strides), scale_at<T>(scale),
                                  tensor_at<Tensor<T>>(out, out_strides), threads);
}

template <class T>
void shuffle_concat_backward(int threads, const Make&, const Sizes& sizes, Address dout,
                             const Sizes& dout_strides, Address x, const Sizes& x_strides, Address scale,
                             Address dy, const Sizes& dy_strides, Address dx, const Sizes& dx_strides,
                             Address dscale) {
    const Unlocked unlocked;
    srnas_fast::shuffle_concat_backward<T>(
        shuffle_shape(sizes), tensor_at<Tensor<const T>>(dout, dout_strides),
        tensor_at<Tensor<const T>>(x, x_strides), scale_at<T>(scale), tensor_at<Tensor<T>>(dy, dy_strides),
        tensor_at<Tensor<T>>(dx, dx_strides), at<T>(dscale), threads);
}

// ---- simplex_project

// sizes: rows, choices, step of the radius
template <class T>
srnas_fast::SimplexRows<T> simplex_rows(const Sizes& sizes, Address logits, Address radius,
                                        bool as_published) {
    return {sizes[0], sizes[1], at<const T>(logits), at<const double>(radius), sizes[2], as_published};
}

template <class T>
void simplex_project(int threads, const Make&, const Sizes& sizes, Address logits, Address radius,
                     bool as_published, Address weights) {
    const Unlocked unlocked;
    srnas_fast::simplex_project<T>(simplex_rows<T>(sizes, logits, radius, as_published), at<T>(weights),
                                   threads);
}

template <class T>
void simplex_project_backward(int threads, const Make&, const Sizes& sizes, Address logits, Address radius,
                              bool as_published, Address dweights, Address dlogits) {
    const Unlocked unlocked;
    srnas_fast::simplex_project_backward<T>(simplex_rows<T>(sizes, logits, radius, as_published),
                                            at<const T>(dweights), at<T>(dlogits), threads);
}

template <class T>
void bind(py::module_ m) {
    m.def("weighted_sum", weighted_sum<T>);
    m.def("weighted_sum_backward", weighted_sum_backward<T>);
    m.def("channel_moments", channel_moments<T>);
    m.def("merge_kernels", merge_kernels<T>);
    m.def("merge_kernels_backward", merge_kernels_backward<T>);
    m.def("multi_depthwise", multi_depthwise<T>);
    m.def("multi_depthwise_backward", multi_depthwise_backward<T>);
    m.def("narrow_convolution", narrow_convolution<T>);
    m.def("narrow_convolution_backward", narrow_convolution_backward<T>);
    m.def("separable_sum", separable_sum<T>);
    m.def("separable_moments", separable_moments<T>);
    m.def("separable_gradient", separable_gradient<T>);
    m.def("shuffle_concat", shuffle_concat<T>);
    m.def("shuffle_concat_backward", shuffle_concat_backward<T>);
    m.def("max_pool", max_pool<T>);
    m.def("max_pool_backward", max_pool_backward<T>);
    m.def("average_pool", average_pool<T>);
    m.def("average_pool_backward", average_pool_backward<T>);
    m.def("simplex_project", simplex_project<T>);
    m.def("simplex_project_backward", simplex_project_backward<T>);
}

}  // namespace

void bind_programs(py::module_& m);  // program_bindings.cpp
void bind_watch(py::module_& m);     // watch_bindings.cpp
void bind_gpu(py::module_& m);       // gpu_bindings.cpp

PYBIND11_MODULE(_srnas_fast_cpu, m) {
    m.doc() = "C++ kernels of srnas_fast for the CPU";
    bind<float>(m.def_submodule("float32"));
    bind<double>(m.def_submodule("float64"));
    bind_programs(m);
    bind_watch(m);
    bind_gpu(m);
}
