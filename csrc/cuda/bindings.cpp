// What Python sees of the CUDA kernels, one section per primitive: the same functions as those of the C++
// kernels (../bindings.cpp), whose first argument is a stream. A call returns once the kernels are in it, and
// the memory of its intermediate results may go to what is put into the stream next.
#include "../python.h"
#include "merge_kernels.h"
#include "multi_depthwise.h"
#include "separable.h"
#include "shuffle_concat.h"
#include "simplex_project.h"
#include "weighted_sum.h"

using namespace srnas_fast_cuda;
using namespace srnas_fast_python;
using In = Tensor<const float>;
using Out = Tensor<float>;
using Make = py::function;

namespace {

// ---- simplex_project

// sizes: rows, choices, step of the radius
template <class T>
SimplexRows<T> simplex_rows(const Sizes& sizes, Address logits, Address radius, bool as_published) {
    return {sizes[0], sizes[1], at<const T>(logits), at<const double>(radius), sizes[2], as_published};
}

template <class T>
void bind_simplex_project(py::module_& m) {
    m.def("simplex_project", [](Address stream, const Make&, const Sizes& sizes, Address logits,
                                Address radius, bool as_published, Address weights) {
        simplex_project<T>(simplex_rows<T>(sizes, logits, radius, as_published), at<T>(weights),
                           at<void>(stream));
    });
    m.def("simplex_project_backward",
          [](Address stream, const Make&, const Sizes& sizes, Address logits, Address radius,
             bool as_published, Address dweights, Address dlogits) {
              simplex_project_backward<T>(simplex_rows<T>(sizes, logits, radius, as_published),
                                          at<const T>(dweights), at<T>(dlogits), at<void>(stream));
          });
}

// ---- merge_kernels

// merged: O, I, S; four strides for each kernel
MergeShape merge_shape(const Sizes& merged, const Sizes& sizes, const Sizes& strides,
                       const Sizes& dilations) {
    MergeShape shape{merged[0], merged[1], merged[2], sizes, dilations, {}};
    for (size_t i = 0; i < strides.size(); i += 4)
        shape.strides.push_back({strides[i], strides[i + 1], strides[i + 2], strides[i + 3]});
    return shape;
}

void bind_merge_kernels(py::module_& m) {
    m.def("merge_kernels",
          [](Address stream, const Make&, Address merged, const Sizes& merged_sizes, Address weights,
             const Addresses& kernels, const Sizes& sizes, const Sizes& strides, const Sizes& dilations) {
              merge_kernels(at<float>(merged), merge_shape(merged_sizes, sizes, strides, dilations),
                            at<const float>(weights), all_at<const float>(kernels), at<void>(stream));
          });
    m.def("merge_kernels_backward",
          [](Address stream, const Make& make, Address dmerged, const Sizes& merged_sizes, Address weights,
             const Addresses& kernels, const Sizes& sizes, const Sizes& strides, const Sizes& dilations,
             Address dweights, const Addresses& dkernels) {
              const auto shape = merge_shape(merged_sizes, sizes, strides, dilations);
              const Scratch<float> scratch(make, merge_kernels_backward_scratch(shape));
              merge_kernels_backward(at<const float>(dmerged), shape, at<const float>(weights),
                                     all_at<const float>(kernels), at<float>(dweights),
                                     all_at<float>(dkernels), scratch.data(), at<void>(stream));
          });
}

// ---- weighted_sum

// sizes: size, channels, inner; blocks: for each z how many of its elements lie together, and how far apart
// such blocks begin
WeightedSum sum_of(const Sizes& sizes, Address weights, bool per_channel, const Addresses& zs,
                   const Sizes& blocks, Address centres) {
    WeightedSum sum{
        sizes[0], sizes[1], sizes[2], {}, at<const float>(weights), per_channel, at<const float>(centres)};
    for (size_t k = 0; k < zs.size(); ++k)
        sum.zs.push_back({at<const float>(zs[k]), blocks[2 * k], blocks[2 * k + 1]});
    return sum;
}

void bind_weighted_sum(py::module_& m) {
    m.def("weighted_sum",
          [](Address stream, const Make&, Address y, bool accumulate, Address weights, bool per_channel,
             const Addresses& zs, const Sizes& blocks, Address shift, Address centres, const Sizes& sizes) {
              weighted_sum(at<float>(y), accumulate, sum_of(sizes, weights, per_channel, zs, blocks, centres),
                           at<const float>(shift), at<void>(stream));
          });
    m.def("weighted_sum_backward",
          [](Address stream, const Make& make, Address dy, Address weights, bool per_channel,
             const Addresses& zs, const Sizes& blocks, Address centres, const Sizes& sizes, Address dweights,
             Address dysum, const Addresses& dzs) {
              const auto sum = sum_of(sizes, weights, per_channel, zs, blocks, centres);
              const Scratch<float> scratch(make, weighted_sum_backward_scratch(sum));
              weighted_sum_backward(at<const float>(dy), sum, at<float>(dweights), at<float>(dysum),
                                    all_at<float>(dzs), scratch.data(), at<void>(stream));
          });
}

// ---- shuffle_concat

// sizes: images, part, groups, height, width, stride
ShuffleShape shuffle_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
}

void bind_shuffle_concat(py::module_& m) {
    m.def("shuffle_concat",
          [](Address stream, const Make&, const Sizes& sizes, Address y, const Sizes& y_strides, Address x,
             const Sizes& x_strides, Address scale, Address out, const Sizes& out_strides) {
              shuffle_concat(shuffle_shape(sizes), tensor_at<In>(y, y_strides), tensor_at<In>(x, x_strides),
                             at<const float>(scale), tensor_at<Out>(out, out_strides), at<void>(stream));
          });
    m.def("shuffle_concat_backward",
          [](Address stream, const Make& make, const Sizes& sizes, Address dout, const Sizes& dout_strides,
             Address x, const Sizes& x_strides, Address scale, Address dy, const Sizes& dy_strides,
             Address dx, const Sizes& dx_strides, Address dscale) {
              const auto shape = shuffle_shape(sizes);
              const Scratch<float> scratch(make, shuffle_concat_backward_scratch(shape));
              shuffle_concat_backward(shape, tensor_at<In>(dout, dout_strides), tensor_at<In>(x, x_strides),
                                      at<const float>(scale), tensor_at<Out>(dy, dy_strides),
                                      tensor_at<Out>(dx, dx_strides), at<float>(dscale), scratch.data(),
                                      at<void>(stream));
          });
}

// ---- multi_depthwise

DepthwiseShape depthwise_shape(const Sizes& x, const Sizes& sizes, const Sizes& dilations, int64_t stride) {
    return {x[0], x[1], x[2], x[3], sizes, dilations, stride};
}

void bind_multi_depthwise(py::module_& m) {
    m.def("multi_depthwise",
          [](Address stream, const Make&, Address x, const Sizes& x_sizes, const Sizes& x_strides,
             const Addresses& kernels, const Sizes& sizes, const Sizes& dilations, int64_t stride,
             const Addresses& outputs, const Sizes& output_strides) {
              std::vector<Out> zs;
              for (const Address output : outputs) zs.push_back(tensor_at<Out>(output, output_strides));
              multi_depthwise(depthwise_shape(x_sizes, sizes, dilations, stride), tensor_at<In>(x, x_strides),
                              all_at<const float>(kernels), zs, at<void>(stream));
          });
    m.def("multi_depthwise_backward",
          [](Address stream, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
             const Addresses& dys, const std::vector<Sizes>& dy_strides, const Addresses& kernels,
             const Sizes& sizes, const Sizes& dilations, int64_t stride, Address dx, const Sizes& dx_strides,
             const Addresses& dkernels) {
              const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
              const Scratch<float> scratch(make, multi_depthwise_backward_scratch(shape));
              std::vector<In> dzs;
              for (size_t k = 0; k < dys.size(); ++k) dzs.push_back(tensor_at<In>(dys[k], dy_strides[k]));
              multi_depthwise_backward(shape, tensor_at<In>(x, x_strides), dzs, all_at<const float>(kernels),
                                       tensor_at<Out>(dx, dx_strides), all_at<float>(dkernels),
                                       scratch.data(), at<void>(stream));
          });
}

// ---- separable_sum, separable_moments, separable_gradient

void bind_separable(py::module_& m) {
    m.def("separable_sum",
          [](Address stream, const Make&, Address x, const Sizes& x_sizes, const Sizes& x_strides,
             const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
             const Addresses& pointwise, Address shift, Address centres, Address y, int64_t outputs,
             const Sizes& y_strides, bool accumulate) {
              separable_sum(depthwise_shape(x_sizes, sizes, dilations, stride), tensor_at<In>(x, x_strides),
                            all_at<const float>(depthwise), all_at<const float>(pointwise),
                            at<const float>(shift), at<const float>(centres), outputs,
                            tensor_at<Out>(y, y_strides), accumulate, at<void>(stream));
          });
    m.def("separable_moments",
          [](Address stream, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
             const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations, int64_t stride,
             Address means, Address covariances) {
              const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
              const Scratch<float> scratch(make, separable_moments_scratch(shape));
              separable_moments(shape, tensor_at<In>(x, x_strides), all_at<const float>(depthwise),
                                at<float>(means), at<float>(covariances), scratch.data(), at<void>(stream));
          });
    m.def("separable_gradient",
          [](Address stream, const Make& make, Address x, const Sizes& x_sizes, const Sizes& x_strides,
             Address dy, int64_t outputs, const Sizes& dy_strides, const Addresses& depthwise,
             const Sizes& sizes, const Sizes& dilations, int64_t stride, const Addresses& left,
             const Addresses& right, Address offsets, Address centres, Address dx, const Sizes& dx_strides,
             bool accumulate, Address dysum, const Addresses& ddepthwise, const Addresses& products) {
              const auto shape = depthwise_shape(x_sizes, sizes, dilations, stride);
              const Scratch<float> scratch(make, separable_gradient_scratch(shape, outputs));
              const GradientInput in{
                  tensor_at<In>(x, x_strides),    tensor_at<In>(dy, dy_strides), outputs,
                  all_at<const float>(depthwise), all_at<const float>(left),     all_at<const float>(right),
                  at<const float>(offsets),       at<const float>(centres)};
              const GradientOutput out{tensor_at<Out>(dx, dx_strides), accumulate, at<float>(dysum),
                                       all_at<float>(ddepthwise), all_at<float>(products)};
              separable_gradient(shape, in, out, scratch.data(), at<void>(stream));
          });
}

}  // namespace

PYBIND11_MODULE(_srnas_fast_cuda, m) {
    m.doc() = "CUDA kernels of srnas_fast";
    auto single = m.def_submodule("float32"), twofold = m.def_submodule("float64");
    bind_simplex_project<float>(single);
    bind_simplex_project<double>(twofold);
    bind_merge_kernels(single);
    bind_weighted_sum(single);
    bind_shuffle_concat(single);
    bind_multi_depthwise(single);
    bind_separable(single);
}
