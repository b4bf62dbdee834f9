#include "multi_depthwise.h"

#include "parallel.h"

namespace srnas_fast {
namespace {

// A piece of work is one image and a group of channels: one channel where the tensors lie in planes, which
// keeps it in the L1 cache; else as many as a vector transposes at once. Results do not depend on the
// grouping.
template <class T>
constexpr int64_t kGroup = std::max(Lanes<T>, 16);

template <class T>
struct Scratch {
    int64_t x, dz, dx, line, thread, sums;

    explicit Scratch(const DepthwiseShape& shape) {
        const int64_t group = std::min<int64_t>(kGroup<T>, shape.channels);
        x = shape.x_planes<T>().template size<T>(group);
        dz = shape.dz_planes<T>().template size<T>(group);
        dx = std::max(shape.dx_planes<T>().template size<T>(group),
                      shape.z_planes<T>().template size<T>(group));
        line = group * shape.width;
        thread = spread<T>(x + dz + dx + line);
        sums = shape.images * shape.channels * shape.taps();
    }
};

template <class T>
bool planar(const Tensor<T>& tensor, int64_t width) {
    return tensor.w == 1 || width == 1;
}

}  // namespace

template <class T>
int64_t multi_depthwise_scratch(const DepthwiseShape& shape, int threads) {
    const Scratch<T> sizes(shape);
    return threads * sizes.thread + sizes.sums;
}

template <class T>
void multi_depthwise(const DepthwiseShape& shape, Tensor<const T> x, const std::vector<const T*>& weights,
                     const std::vector<Tensor<T>>& outputs, T* scratch, int threads) {
    const Scratch<T> sizes(shape);
    const Planes in = shape.x_planes<T>(), out = shape.z_planes<T>();
    const auto kernels = shape.kernels<T>(weights);
    bool planes = planar(x, shape.width);
    for (const auto& output : outputs) planes = planes && planar(output, out.width);
    const bool direct = planes && out.width % Lanes<T> == 0;
    const int64_t group = planes ? 1 : std::min<int64_t>(kGroup<T>, shape.channels);
    const int64_t groups = divide_up(shape.channels, group);
    Cleared<T> cleared(scratch, sizes.thread, threads);
    for_pieces(shape.images * groups, threads, 0, [&](int64_t piece, int thread) {
        const int64_t image = piece / groups, first = piece % groups * group;
        const int64_t channels = std::min(group, shape.channels - first);
        T* const x_in = cleared.of(thread, in.template size<T>(group));
        T *const z = x_in + sizes.x + sizes.dz, *const line = z + sizes.dx;
        copy_rows<T, true>(x.part(image, first), in, x_in, channels, 0, in.height, line);
        for (size_t k = 0; k < kernels.size(); ++k) {
            const Tensor<T> to = outputs[k].part(image, first);
            if (direct) {
                convolve(kernels[k], first, in, x_in, T(0), 0, out.height, to.data, to.h, out.width);
                continue;
            }
            for (int64_t c = 0; c < channels; ++c) {
                const T* const plane = x_in + c * in.plane;
                convolve(kernels[k], first + c, in, plane, T(0), 0, out.height, z + c * out.plane, out.row,
                         out.row);
            }
            copy_rows<T, false>(to, out, z, channels, 0, out.height, line);
        }
    });
}

template <class T>
void multi_depthwise_backward(const DepthwiseShape& shape, Tensor<const T> x,
                              const std::vector<Tensor<const T>>& dys, const std::vector<const T*>& weights,
                              Tensor<T> dx, const std::vector<T*>& dweights, T* scratch, int threads) {
    const Scratch<T> sizes(shape);
    const Planes x_planes = shape.x_planes<T>(), dz_planes = shape.dz_planes<T>(),
                 dx_planes = shape.dx_planes<T>();
    const auto kernels = shape.kernels<T>(weights);
    bool planes = planar(x, shape.width) && (!dx.data || planar(dx, shape.width));
    for (const auto& dy : dys) planes = planes && planar(dy, dz_planes.width);
    const bool direct = planes && shape.stride == 1 && shape.width % Lanes<T> == 0;
    const int64_t group = planes ? 1 : std::min<int64_t>(kGroup<T>, shape.channels);
    const int64_t groups = divide_up(shape.channels, group);
    Planes outside = dx_planes;  // a plane of dx, seen as it lies in the tensor
    outside.row = dx.h;
    T* const sums = scratch + threads * sizes.thread;  // (images, channels, taps of all kernels)
    Cleared<T> cleared(scratch, sizes.thread, threads);
    for_pieces(shape.images * groups, threads, 0, [&](int64_t piece, int thread) {
        const int64_t image = piece / groups, first = piece % groups * group;
        const int64_t channels = std::min(group, shape.channels - first);
        const int64_t x_size = x_planes.template size<T>(group);
        T* const x_in = cleared.of(thread, x_size + dz_planes.template size<T>(group));
        T *const dz = x_in + x_size, *const sum = x_in + sizes.x + sizes.dz;
        T *const line = sum + sizes.dx, *totals = sums + (image * shape.channels + first) * shape.taps();
        const Tensor<T> to = dx.data ? dx.part(image, first) : dx;
        if (!dweights.empty())
            copy_rows<T, true>(x.part(image, first), x_planes, x_in, channels, 0, x_planes.height, line);
        for (size_t k = 0; k < kernels.size(); ++k) {
            const Kernel<T>& kernel = kernels[k];
            copy_rows<T, true>(dys[k].part(image, first), dz_planes, dz, channels, 0, dz_planes.height, line);
            for (int64_t c = 0; c < channels; ++c) {
                const T* plane = dz + c * dz_planes.plane;
                if (!dweights.empty()) {
                    correlate(kernel, dz_planes, plane, x_planes, x_in + c * x_planes.plane,
                              totals + c * shape.taps());
                }
                if (dx.data && direct) {
                    convolve_transposed(kernel, first, dz_planes, plane, outside, to.data, k > 0);
                } else if (dx.data) {
                    T* const dx_plane = sum + c * dx_planes.plane;
                    convolve_transposed(kernel, first + c, dz_planes, plane, dx_planes, dx_plane, k > 0);
                }
            }
            totals += kernel.taps();
        }
        if (dx.data && !direct) copy_rows<T, false>(to, dx_planes, sum, channels, 0, dx_planes.height, line);
    });
    if (dweights.empty()) return;
    for_pieces(shape.channels, threads, 0, [&](int64_t c, int) {
        int64_t first = 0;
        for (size_t k = 0; k < kernels.size(); ++k) {
            for (int64_t t = 0; t < kernels[k].taps(); ++t) {
                double total = 0;
                for (int64_t image = 0; image < shape.images; ++image) {
                    total += sums[(image * shape.channels + c) * shape.taps() + first + t];
                }
                dweights[k][c * kernels[k].taps() + t] = T(total);
            }
            first += kernels[k].taps();
        }
    });
}

template int64_t multi_depthwise_scratch<float>(const DepthwiseShape&, int);
template int64_t multi_depthwise_scratch<double>(const DepthwiseShape&, int);
template void multi_depthwise<float>(const DepthwiseShape&, Tensor<const float>,
                                     const std::vector<const float*>&, const std::vector<Tensor<float>>&,
                                     float*, int);
template void multi_depthwise<double>(const DepthwiseShape&, Tensor<const double>,
                                      const std::vector<const double*>&, const std::vector<Tensor<double>>&,
                                      double*, int);
template void multi_depthwise_backward<float>(const DepthwiseShape&, Tensor<const float>,
                                              const std::vector<Tensor<const float>>&,
                                              const std::vector<const float*>&, Tensor<float>,
                                              const std::vector<float*>&, float*, int);
template void multi_depthwise_backward<double>(const DepthwiseShape&, Tensor<const double>,
                                               const std::vector<Tensor<const double>>&,
                                               const std::vector<const double*>&, Tensor<double>,
                                               const std::vector<double*>&, double*, int);

}  // namespace srnas_fast
