// What Python sees of the CUDA kernels, one section per primitive. Python has checked types, shapes and
// strides by now: a tensor arrives as the address of its first element, sizes and strides are counted in
// elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "merge_kernels.h"
#include "multi_depthwise.h"
#include "separable.h"
#include "shuffle_concat.h"
#include "simplex_project.h"
#include "weighted_sum.h"

namespace py = pybind11;
using namespace srnas_fast_cuda;

namespace {

using Address = std::uintptr_t;  // 0 for a tensor that is not wanted
using Addresses = std::vector<Address>;
using Sizes = std::vector<int64_t>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> all_at(const Addresses& addresses) {
    std::vector<T*> pointers;
    for (const Address address : addresses) pointers.push_back(at<T>(address));
    return pointers;
}

template <class T>
Tensor<T> tensor_at(Address address, const Sizes& strides) {
    return {at<T>(address), strides[0], strides[1], strides[2], strides[3]};
}

// Calls work(T{}) with T = double or float. In work: using T = decltype(number).
template <class Work>
void dispatch(bool is_double, Work work) {
    is_double ? work(double{}) : work(float{});
}

// ---- simplex_project

// sizes: rows, choices, step of the radius
template <class T>
SimplexRows<T> simplex_rows(const Sizes& sizes, Address logits, Address radius, bool as_published) {
    return {sizes[0], sizes[1], at<const T>(logits), at<const double>(radius), sizes[2], as_published};
}

void bind_simplex_project(py::module_& m) {
    m.def("simplex_project", [](bool is_double, const Sizes& sizes, Address logits, Address radius,
                                bool as_published, Address weights, Address stream) {
        dispatch(is_double, [&](auto number) {
            using T = decltype(number);
            simplex_project<T>(simplex_rows<T>(sizes, logits, radius, as_published), at<T>(weights),
                               at<void>(stream));
        });
    });
    m.def("simplex_project_backward",
          [](bool is_double, const Sizes& sizes, Address logits, Address radius, bool as_published,
             Address dweights, Address dlogits, Address stream) {
              dispatch(is_double, [&](auto number) {
                  using T = decltype(number);
                  simplex_project_backward<T>(simplex_rows<T>(sizes, logits, radius, as_published),
                                              at<const T>(dweights), at<T>(dlogits), at<void>(stream));
              });
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
          [](Address merged, const Sizes& merged_sizes, Address weights, const Addresses& kernels,
             const Sizes& sizes, const Sizes& strides, const Sizes& dilations, Address stream) {
              merge_kernels(at<float>(merged), merge_shape(merged_sizes, sizes, strides, dilations),
                            at<const float>(weights), all_at<const float>(kernels), at<void>(stream));
          });
    m.def("merge_kernels_backward_scratch",
          [](const Sizes& merged_sizes, const Sizes& sizes, const Sizes& strides, const Sizes& dilations) {
              return merge_kernels_backward_scratch(merge_shape(merged_sizes, sizes, strides, dilations));
          });
    m.def("merge_kernels_backward", [](Address dmerged, const Sizes& merged_sizes, Address weights,
                                       const Addresses& kernels, const Sizes& sizes, const Sizes& strides,
                                       const Sizes& dilations, Address dweights, const Addresses& dkernels,
                                       Address scratch, Address stream) {
        merge_kernels_backward(at<const float>(dmerged), merge_shape(merged_sizes, sizes, strides, dilations),
                               at<const float>(weights), all_at<const float>(kernels), at<float>(dweights),
                               all_at<float>(dkernels), at<float>(scratch), at<void>(stream));
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
          [](Address y, bool accumulate, Address weights, bool per_channel, const Addresses& zs,
             const Sizes& blocks, Address shift, Address centres, const Sizes& sizes, Address stream) {
              weighted_sum(at<float>(y), accumulate, sum_of(sizes, weights, per_channel, zs, blocks, centres),
                           at<const float>(shift), at<void>(stream));
          });
    m.def("weighted_sum_backward_scratch", [](const Sizes& sizes) {
        return weighted_sum_backward_scratch(sum_of(sizes, 0, false, {}, {}, 0));
    });
    m.def("weighted_sum_backward", [](Address dy, Address weights, bool per_channel, const Addresses& zs,
                                      const Sizes& blocks, Address centres, const Sizes& sizes,
                                      Address dweights, Address dysum, const Addresses& dzs, Address scratch,
                                      Address stream) {
        weighted_sum_backward(at<const float>(dy), sum_of(sizes, weights, per_channel, zs, blocks, centres),
                              at<float>(dweights), at<float>(dysum), all_at<float>(dzs), at<float>(scratch),
                              at<void>(stream));
    });
}

// ---- shuffle_concat

// sizes: images, part, groups, height, width, stride
ShuffleShape shuffle_shape(const Sizes& sizes) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
}

void bind_shuffle_concat(py::module_& m) {
    m.def("shuffle_concat",
          [](const Sizes& sizes, Address y, const Sizes& y_strides, Address x, const Sizes& x_strides,
             Address scale, Address out, const Sizes& out_strides, Address stream) {
              shuffle_concat(shuffle_shape(sizes), tensor_at<const float>(y, y_strides),
                             tensor_at<const float>(x, x_strides), at<const float>(scale),
                             tensor_at<float>(out, out_strides), at<void>(stream));
          });
    m.def("shuffle_concat_backward_scratch",
          [](const Sizes& sizes) { return shuffle_concat_backward_scratch(shuffle_shape(sizes)); });
    m.def("shuffle_concat_backward",
          [](const Sizes& sizes, Address dout, const Sizes& dout_strides, Address x, const Sizes& x_strides,
             Address scale, Address dy, const Sizes& dy_strides, Address dx, const Sizes& dx_strides,
             Address dscale, Address scratch, Address stream) {
              shuffle_concat_backward(shuffle_shape(sizes), tensor_at<const float>(dout, dout_strides),
                                      tensor_at<const float>(x, x_strides), at<const float>(scale),
                                      tensor_at<float>(dy, dy_strides), tensor_at<float>(dx, dx_strides),
                                      at<float>(dscale), at<float>(scratch), at<void>(stream));
          });
}

// ---- multi_depthwise

DepthwiseShape depthwise_shape(const Sizes& x, const Sizes& sizes, const Sizes& dilations, int64_t stride) {
    return {x[0], x[1], x[2], x[3], sizes, dilations, stride};
}

void bind_multi_depthwise(py::module_& m) {
    m.def("multi_depthwise",
          [](Address x, const Sizes& x_sizes, const Sizes& x_strides, const Addresses& kernels,
             const Sizes& sizes, const Sizes& dilations, int64_t stride, const Addresses& outputs,
             const Sizes& output_strides, Address stream) {
              std::vector<Tensor<float>> zs;
              for (const Address output : outputs) zs.push_back(tensor_at<float>(output, output_strides));
              multi_depthwise(depthwise_shape(x_sizes, sizes, dilations, stride),
                              tensor_at<const float>(x, x_strides), all_at<const float>(kernels), zs,
                              at<void>(stream));
          });
    m.def("multi_depthwise_backward_scratch",
          [](const Sizes& x_sizes, const Sizes& sizes, const Sizes& dilations, int64_t stride) {
              return multi_depthwise_backward_scratch(depthwise_shape(x_sizes, sizes, dilations, stride));
          });
    m.def("multi_depthwise_backward",
          [](Address x, const Sizes& x_sizes, const Sizes& x_strides, const Addresses& dys,
             const std::vector<Sizes>& dy_strides, const Addresses& kernels, const Sizes& sizes,
             const Sizes& dilations, int64_t stride, Address dx, const Sizes& dx_strides,
             const Addresses& dkernels, Address scratch, Address stream) {
              std::vector<Tensor<const float>> dzs;
              for (size_t k = 0; k < dys.size(); ++k)
                  dzs.push_back(tensor_at<const float>(dys[k], dy_strides[k]));
              multi_depthwise_backward(depthwise_shape(x_sizes, sizes, dilations, stride),
                                       tensor_at<const float>(x, x_strides), dzs,
                                       all_at<const float>(kernels), tensor_at<float>(dx, dx_strides),
                                       all_at<float>(dkernels), at<float>(scratch), at<void>(stream));
          });
}

// ---- separable_sum, separable_moments, separable_gradient

void bind_separable(py::module_& m) {
    m.def("separable_sum",
          [](Address x, const Sizes& x_sizes, const Sizes& x_strides, const Addresses& depthwise,
             const Sizes& sizes, const Sizes& dilations, int64_t stride, const Addresses& pointwise,
             Address shift, Address centres, Address y, int64_t outputs, const Sizes& y_strides,
             bool accumulate, Address stream) {
              separable_sum(depthwise_shape(x_sizes, sizes, dilations, stride),
                            tensor_at<const float>(x, x_strides), all_at<const float>(depthwise),
                            all_at<const float>(pointwise), at<const float>(shift), at<const float>(centres),
                            outputs, tensor_at<float>(y, y_strides), accumulate, at<void>(stream));
          });
    m.def("separable_moments_scratch",
          [](const Sizes& x_sizes, const Sizes& sizes, const Sizes& dilations, int64_t stride) {
              return separable_moments_scratch(depthwise_shape(x_sizes, sizes, dilations, stride));
          });
    m.def("separable_moments", [](Address x, const Sizes& x_sizes, const Sizes& x_strides,
                                  const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations,
                                  int64_t stride, Address means, Address covariances, Address scratch,
                                  Address stream) {
        separable_moments(depthwise_shape(x_sizes, sizes, dilations, stride),
                          tensor_at<const float>(x, x_strides), all_at<const float>(depthwise),
                          at<float>(means), at<float>(covariances), at<float>(scratch), at<void>(stream));
    });
    m.def("separable_gradient_scratch", [](const Sizes& x_sizes, int64_t outputs, const Sizes& sizes,
                                           const Sizes& dilations, int64_t stride) {
        return separable_gradient_scratch(depthwise_shape(x_sizes, sizes, dilations, stride), outputs);
    });
    m.def("separable_gradient",
          [](Address x, const Sizes& x_sizes, const Sizes& x_strides, Address dy, int64_t outputs,
             const Sizes& dy_strides, const Addresses& depthwise, const Sizes& sizes, const Sizes& dilations,
             int64_t stride, const Addresses& left, const Addresses& right, Address offsets, Address centres,
             Address dx, const Sizes& dx_strides, bool accumulate, Address dysum, const Addresses& ddepthwise,
             const Addresses& products, Address scratch, Address stream) {
              const GradientInput in{tensor_at<const float>(x, x_strides),
                                     tensor_at<const float>(dy, dy_strides),
                                     outputs,
                                     all_at<const float>(depthwise),
                                     all_at<const float>(left),
                                     all_at<const float>(right),
                                     at<const float>(offsets),
                                     at<const float>(centres)};
              const GradientOutput out{tensor_at<float>(dx, dx_strides), accumulate, at<float>(dysum),
                                       all_at<float>(ddepthwise), all_at<float>(products)};
              separable_gradient(depthwise_shape(x_sizes, sizes, dilations, stride), in, out,
                                 at<float>(scratch), at<void>(stream));
          });
}

}  // namespace

PYBIND11_MODULE(_srnas_fast_cuda, m) {
    m.doc() = "CUDA kernels of srnas_fast";
    bind_simplex_project(m);
    bind_merge_kernels(m);
    bind_weighted_sum(m);
    bind_shuffle_concat(m);
    bind_multi_depthwise(m);
    bind_separable(m);
}
