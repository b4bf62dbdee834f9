// Dense convolutions of one activated input. Those without a norm, or with a frozen one, are linear maps:
// what fits into one another runs as one convolution with the weighted sum of the kernels. A norm that uses
// its batch needs the convolution's output, which is made, used and forgotten, one candidate at a time.
#include "call.h"
#include "merge_kernels.h"
#include "narrow_convolution.h"

namespace srnas_fast {
namespace {

template <class T>
NarrowShape shape_of(const Frame<T>& frame, int64_t size, int64_t dilation) {
    const ImageSize& in = frame.in;
    return {in.images, in.channels, frame.program.outputs, in.height, in.width, size, dilation};
}

template <class T>
T* scratch_of(const Frame<T>& frame, const NarrowShape& shape, bool backward) {
    return frame.arena.template take<T>(narrow_convolution_scratch<T>(shape, backward, frame.threads));
}

// The members' maps, and their weighted sum.
template <class T>
struct MergedMap {
    std::vector<Affine> affines;
    T *kernel, *shift;

    MergedMap(const Frame<T>& frame, const Merged& merged) {
        const Program& program = frame.program;
        MergeShape shape{program.outputs, program.channels, merged.size, {}, merged.steps, {}};
        std::vector<T> weights;
        std::vector<const T*> kernels;
        std::vector<double> shifts;
        for (const int64_t k : merged.members) {
            const Stage& stage = program.first(k);
            affines.push_back(frame.affine(stage));
            const double w = frame.weight(k);
            const int64_t area = stage.size * stage.size;
            shape.sizes.push_back(stage.size);
            shape.strides.push_back({program.channels * area, area, stage.size, 1});
            weights.push_back(T(w));
            kernels.push_back(stage.norm == NormKind::none ? frame.parameter(stage.slots.conv)
                                                           : frame.matrix(stage, affines.back(), 1));
            shifts.resize(affines.back().shift.empty() ? shifts.size() : program.outputs);
            for (size_t o = 0; o < affines.back().shift.size(); ++o) shifts[o] += w * affines.back().shift[o];
        }
        shift = frame.numbers(shifts);
        kernel = frame.arena.template take<T>(program.outputs * program.channels * merged.size * merged.size);
        merge_kernels(kernel, shape, weights.data(), kernels, 1);
    }
};

template <class T>
void merged_backward(const BackFrame<T>& frame, const Merged& merged, const Source<T>& a, Sum<T>* da) {
    const Program& program = frame.program;
    bool kernel_wanted = frame.weights_wanted();
    for (const int64_t k : merged.members) kernel_wanted |= frame.map_gradients(program.first(k)).any();
    if (!kernel_wanted && !da) return;
    const Temporary temporary(frame.arena);
    const MergedMap<T> map(frame, merged);
    const NarrowShape shape = shape_of(frame, merged.size, merged.dilation);
    const int64_t area = merged.size * merged.size, count = program.outputs * program.channels;
    T* const dkernel = kernel_wanted ? frame.arena.template take<T>(count * area) : nullptr;
    narrow_convolution_backward<T>(shape, {frame.dy, {}, nullptr, nullptr, nullptr, nullptr}, a, map.kernel,
                                   da ? da->image : Tensor<T>{}, da && da->written, dkernel,
                                   scratch_of(frame, shape, true), frame.threads);
    if (da) da->written = true;
    if (!kernel_wanted) return;
    for (size_t m = 0; m < merged.members.size(); ++m) {
        const int64_t k = merged.members[m], step = merged.steps[m];
        const Stage& stage = program.first(k);
        const int64_t size = stage.size, first = (merged.size - 1 - step * (size - 1)) / 2;
        T* const products = frame.arena.template take<T>(count * size * size);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t t = 0; t < size * size; ++t) {
                const int64_t row = first + t / size * step, column = first + t % size * step;
                products[i * size * size + t] = dkernel[i * area + row * merged.size + column];
            }
        }
        frame.give_weight(
            k, unfold(stage, frame.weight(k), frame.map(stage), frame.kept(stage), products,
                      frame.total.data(), frame.out.pixels(), frame.map_gradients(stage), nullptr));
    }
}

template <class T>
void normed_forward(const Frame<T>& frame, int64_t k, const Source<T>& a, Sum<T>& sum) {
    const Temporary temporary(frame.arena);
    const Stage& stage = frame.program.first(k);
    const NarrowShape shape = shape_of(frame, stage.size, stage.dilation);
    const Tensor<T> z = frame.image(frame.out);
    std::vector<T> mean(stage.outputs), variance(stage.outputs);
    narrow_convolution<T>(shape, a, frame.parameter(stage.slots.conv), frame.parameter(stage.slots.bias), z,
                          false, mean.data(), variance.data(), scratch_of(frame, shape, false),
                          frame.threads);
    keep_moments(stage, mean.data(), variance.data(), frame.kept(stage));
    const Affine affine = frame.affine(stage);
    const double w = frame.weight(k);
    combine<T>(frame.out, sum.image, sum.written,
               {{z.read_only(), frame.numbers(affine.scale, w), frame.kept(stage) + stage.kept.mean}},
               frame.numbers(affine.shift, w), frame.threads);
    sum.written = true;
}

template <class T>
void normed_backward(const BackFrame<T>& frame, int64_t k, const Source<T>& a, Sum<T>* da) {
    const Stage& stage = frame.program.first(k);
    const MapGradients<T> wanted = frame.map_gradients(stage);
    const int64_t outputs = stage.outputs;
    if (wanted.bias) std::fill_n(wanted.bias, outputs, T(0));  // the batch's mean takes the bias away again
    if (!(frame.weights_wanted() || wanted.gamma || wanted.beta || wanted.weight || da)) return;
    const Temporary temporary(frame.arena);
    const MapParameters<T> p = frame.map(stage);
    const NarrowShape shape = shape_of(frame, stage.size, stage.dilation);
    const T *const mean = frame.kept(stage) + stage.kept.mean, *const rstd =
                                                                   frame.kept(stage) + stage.kept.rstd;
    const Tensor<T> z = frame.image(frame.out);
    {
        const Temporary inner(frame.arena);
        narrow_convolution<T>(shape, a, p.weight, p.bias, z, false, nullptr, nullptr,
                              scratch_of(frame, shape, false), frame.threads);
    }
    std::vector<double> products(outputs);
    channel_products<T>(frame.out, frame.dy, z.read_only(), mean, products.data(), frame.partial,
                        frame.threads);
    const double w = frame.weight(k), pixels = double(frame.out.pixels());
    T* const coefficients = frame.arena.template take<T>(3 * outputs);
    T *const scale = coefficients, *const right = scale + outputs, *const offset = right + outputs;
    double dw = 0;
    for (int64_t o = 0; o < outputs; ++o) {
        const double q = double(rstd[o]) * products[o];  // the sum of dy times the normalised z
        const double gamma = p.gamma ? double(p.gamma[o]) : 1.0, s = w * gamma * double(rstd[o]);
        dw += gamma * q + (p.beta ? double(p.beta[o]) * frame.total[o] : 0.0);
        if (wanted.gamma) wanted.gamma[o] = T(w * q);
        if (wanted.beta) wanted.beta[o] = T(w * frame.total[o]);
        scale[o] = T(s);
        right[o] = T(-s * q * double(rstd[o]) / pixels);
        offset[o] = T(-s * frame.total[o] / pixels);
    }
    frame.give_weight(k, dw);
    if (!(wanted.weight || da)) return;
    narrow_convolution_backward<T>(shape, {frame.dy, z.read_only(), scale, right, mean, offset}, a, p.weight,
                                   da ? da->image : Tensor<T>{}, da && da->written, wanted.weight,
                                   scratch_of(frame, shape, true), frame.threads);
    if (da) da->written = true;
}

template <class T>
std::vector<int64_t> normed(const Frame<T>& frame, int64_t group) {
    std::vector<int64_t> found;
    for (const int64_t k : frame.program.members(group, frame.call.live, StageKind::dense, 1)) {
        if (frame.program.first(k).norm == NormKind::batch) found.push_back(k);
    }
    return found;
}

}  // namespace

template <class T>
void dense_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum) {
    for (const Merged& merged : frame.program.merged(group, frame.call.live)) {
        const Temporary temporary(frame.arena);
        for (const int64_t k : merged.members) frame.freeze(frame.program.first(k));
        const MergedMap<T> map(frame, merged);
        const NarrowShape shape = shape_of(frame, merged.size, merged.dilation);
        narrow_convolution<T>(shape, a, map.kernel, map.shift, sum.image, sum.written, nullptr, nullptr,
                              scratch_of(frame, shape, false), frame.threads);
        sum.written = true;
    }
    for (const int64_t k : normed(frame, group)) normed_forward(frame, k, a, sum);
}

template <class T>
void dense_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da) {
    for (const Merged& merged : frame.program.merged(group, frame.call.live))
        merged_backward(frame, merged, a, da);
    for (const int64_t k : normed(frame, group)) normed_backward(frame, k, a, da);
}

#define INSTANTIATE(T)                                                                \
    template void dense_forward(const Frame<T>&, int64_t, const Source<T>&, Sum<T>&); \
    template void dense_backward(const BackFrame<T>&, int64_t, const Source<T>&, Sum<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
