// Pools of one activated input, with a norm or without, one at a time.
#include "call.h"
#include "channel_moments.h"
#include "pool.h"

namespace srnas_fast {
namespace {

template <class T>
struct PoolPass {
    const Frame<T>& frame;
    const Stage& stage;
    PoolShape shape;
    PoolInput<T> input;

    PoolPass(const Frame<T>& frame, const Stage& stage, const Tensor<const T>& a)
        : frame(frame),
          stage(stage),
          shape{frame.in.planes(), frame.in.height, frame.in.width, 1, stage.size, stage.stride},
          input{a.data, frame.in.channels, a.n, a.c, a.h, 1} {}

    Tensor<T> forward() const {
        const Tensor<T> z = frame.image(frame.out);
        if (stage.kind == StageKind::max_pool) {
            max_pool(shape, input, z.data, frame.threads);
        } else {
            average_pool(shape, stage.counts_padding, input, z.data, frame.threads);
        }
        return z;
    }

    void backward(const Tensor<T>& dz, const Tensor<T>& da) const {
        if (stage.kind == StageKind::max_pool) {
            max_pool_backward(shape, dz.data, input, da.data, frame.threads);
        } else {
            average_pool_backward(shape, stage.counts_padding, dz.data, da.data, frame.threads);
        }
    }
};

std::vector<int64_t> pools(const Program& program, int64_t group, uint64_t live) {
    std::vector<int64_t> found = program.members(group, live, StageKind::max_pool, 1);
    for (const int64_t k : program.members(group, live, StageKind::average_pool, 1)) found.push_back(k);
    return found;
}

template <class T>
void one_backward(const BackFrame<T>& frame, int64_t k, const Source<T>& a, Sum<T>* da) {
    const Stage& stage = frame.program.first(k);
    const MapParameters<T> p = frame.map(stage);
    const MapGradients<T> wanted = frame.map_gradients(stage);
    const bool normed = stage.norm != NormKind::none, batch = stage.norm == NormKind::batch;
    const bool products_wanted = frame.weights_wanted() || wanted.any();
    if (!products_wanted && !da) return;
    const Temporary temporary(frame.arena);
    const PoolPass<T> pass(frame, stage, a.image);
    const int64_t channels = stage.outputs;
    const double w = frame.weight(k), pixels = double(frame.out.pixels());
    const T* const mean = normed ? frame.kept(stage) + stage.kept.mean : nullptr;
    const T* const rstd = normed ? frame.kept(stage) + stage.kept.rstd : nullptr;
    std::vector<double> products(channels), scale(channels), right(channels), middle(channels);
    Tensor<T> z{};
    if (products_wanted || batch) {
        z = pass.forward();
        channel_products<T>(frame.out, frame.dy, z.read_only(), mean, products.data(), frame.partial,
                            frame.threads);
    }
    double dw = 0;
    for (int64_t c = 0; c < channels; ++c) {
        const double r = normed ? double(rstd[c]) : 1.0, gamma = p.gamma ? double(p.gamma[c]) : 1.0;
        const double q = r * products[c];
        dw += gamma * q + (p.beta ? double(p.beta[c]) * frame.total[c] : 0.0);
        if (wanted.gamma) wanted.gamma[c] = T(w * q);
        if (wanted.beta) wanted.beta[c] = T(w * frame.total[c]);
        scale[c] = w * gamma * r;
        right[c] = -scale[c] * q * r / pixels;
        middle[c] = frame.total[c] / pixels;
    }
    frame.give_weight(k, dw);
    if (!da) return;
    const Tensor<T> dz = z.data ? z : frame.image(frame.out);
    if (batch) {
        combine<T>(frame.out, dz, false,
                   {{frame.dy, frame.numbers(scale), frame.numbers(middle)},
                    {z.read_only(), frame.numbers(right), mean}},
                   nullptr, frame.threads);
    } else {
        combine<T>(frame.out, dz, false, {{frame.dy, frame.numbers(scale), nullptr}}, nullptr, frame.threads);
    }
    const Tensor<T> part = frame.image(frame.in);
    pass.backward(dz, part);
    const std::vector<double> ones(frame.in.channels, 1.0);
    combine<T>(frame.in, da->image, da->written, {{part.read_only(), frame.numbers(ones), nullptr}}, nullptr,
               frame.threads);
    da->written = true;
}

}  // namespace

template <class T>
void pool_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum) {
    for (const int64_t k : pools(frame.program, group, frame.call.live)) {
        const Temporary temporary(frame.arena);
        const Stage& stage = frame.program.first(k);
        const Tensor<T> z = PoolPass<T>(frame, stage, a.image).forward();
        const double w = frame.weight(k);
        frame.freeze(stage);
        const T* centre = nullptr;
        if (stage.norm == NormKind::batch) {
            std::vector<T> mean(stage.outputs), variance(stage.outputs);
            channel_moments<T>(z.data, frame.out.elements(), frame.out.channels,
                               frame.out.height * frame.out.width, mean.data(), variance.data(),
                               frame.threads);
            keep_moments(stage, mean.data(), variance.data(), frame.kept(stage));
            centre = frame.kept(stage) + stage.kept.mean;
        }
        const Affine affine = frame.affine(stage);
        combine<T>(frame.out, sum.image, sum.written,
                   {{z.read_only(), frame.numbers(affine.scale, w), centre}}, frame.numbers(affine.shift, w),
                   frame.threads);
        sum.written = true;
    }
}

template <class T>
void pool_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da) {
    for (const int64_t k : pools(frame.program, group, frame.call.live)) one_backward(frame, k, a, da);
}

#define INSTANTIATE(T)                                                               \
    template void pool_forward(const Frame<T>&, int64_t, const Source<T>&, Sum<T>&); \
    template void pool_backward(const BackFrame<T>&, int64_t, const Source<T>&, Sum<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
