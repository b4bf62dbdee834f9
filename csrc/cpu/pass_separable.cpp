// Separable convolutions of one activated input, once or twice, with a norm or without: depthwise outputs are
// never stored, a norm that uses its batch takes its statistics from their covariance.
#include "call.h"

namespace srnas_fast {
namespace {

template <class T>
DepthwiseShape shape_of(const ImageSize& in, const std::vector<const Stage*>& stages) {
    DepthwiseShape shape{in.images, in.channels, in.height, in.width, {}, {}, stages.front()->stride};
    for (const Stage* stage : stages) {
        shape.sizes.push_back(stage->size);
        shape.dilations.push_back(stage->dilation);
    }
    return shape;
}

template <class T>
std::vector<const T*> kernels_of(const Frame<T>& frame, const std::vector<const Stage*>& stages) {
    std::vector<const T*> kernels;
    for (const Stage* stage : stages) kernels.push_back(frame.parameter(stage->slots.depthwise));
    return kernels;
}

bool uses_batch(const Stage& stage) { return stage.norm == NormKind::batch; }

// Keeps the statistics of all norms behind these stages.
template <class T>
void keep_statistics(const Frame<T>& frame, const std::vector<const Stage*>& stages, const Source<T>& a,
                     const ImageSize& in) {
    std::vector<const Stage*> batch;
    for (const Stage* stage : stages) {
        frame.freeze(*stage);
        if (uses_batch(*stage)) batch.push_back(stage);
    }
    if (batch.empty()) return;
    const Temporary temporary(frame.arena);
    const int64_t count = batch.size(), channels = in.channels;
    T* const means = frame.arena.template take<T>(count * channels);
    T* const covariances = frame.arena.template take<T>(count * channels * channels);
    const DepthwiseShape shape = shape_of<T>(in, batch);
    separable_moments<T>(shape, a, kernels_of(frame, batch), means, covariances,
                         frame.arena.template take<T>(separable_moments_scratch<T>(shape, frame.threads)),
                         frame.threads);
    for (int64_t i = 0; i < count; ++i)
        keep_separable(*batch[i], frame.map(*batch[i]), means + i * channels,
                       covariances + i * channels * channels, frame.kept(*batch[i]));
}

// (K, C), null where no norm uses its batch.
template <class T>
T* centres_of(const Frame<T>& frame, const std::vector<const Stage*>& stages, int64_t channels) {
    bool any = false;
    for (const Stage* stage : stages) any |= uses_batch(*stage);
    if (!any) return nullptr;
    T* const centres = frame.arena.template take<T>(stages.size() * channels);
    for (size_t i = 0; i < stages.size(); ++i) {
        if (uses_batch(*stages[i])) {
            std::copy_n(frame.kept(*stages[i]) + stages[i]->kept.centre, channels, centres + i * channels);
        } else {
            std::fill_n(centres + i * channels, channels, T(0));
        }
    }
    return centres;
}

// The weighted sum of stages whose statistics are kept.
template <class T>
void add_stages(const Frame<T>& frame, const std::vector<const Stage*>& stages, const std::vector<double>& ws,
                const Source<T>& a, const ImageSize& in, Sum<T>& sum) {
    const Temporary temporary(frame.arena);
    const int64_t outputs = stages.front()->outputs;
    std::vector<const T*> matrices;
    std::vector<double> shifts;
    for (size_t i = 0; i < stages.size(); ++i) {
        const Affine affine = frame.affine(*stages[i]);
        matrices.push_back(frame.matrix(*stages[i], affine, ws[i]));
        if (!affine.shift.empty()) shifts.resize(outputs);
        for (size_t o = 0; o < affine.shift.size(); ++o) shifts[o] += ws[i] * affine.shift[o];
    }
    const DepthwiseShape shape = shape_of<T>(in, stages);
    separable_sum<T>(shape, a, kernels_of(frame, stages), matrices, frame.numbers(shifts),
                     centres_of(frame, stages, in.channels), outputs, sum.image, sum.written,
                     frame.arena.template take<T>(separable_sum_scratch<T>(shape, outputs, frame.threads)),
                     frame.threads);
    sum.written = true;
}

// A stage in the backward pass: with its weight, and where the weight's gradient is added; null: nowhere.
struct Member {
    const Stage* stage;
    double weight;
    double* dweight;
};

// The gradients of stages that read `a` and whose weighted sum has the gradient dy: one pass over the pixels,
// two where a norm uses its batch, whose sums are in the gradient of every pixel.
template <class T>
void stages_backward(const BackFrame<T>& frame, const std::vector<Member>& members, const Source<T>& a,
                     const ImageSize& in, Tensor<const T> dy, Sum<T>* da) {
    const int64_t count = members.size(), channels = in.channels, outputs = members.front().stage->outputs;
    std::vector<const Stage*> stages;
    bool depthwise_wanted = false, sums_wanted = false, two_passes = false;
    for (const Member& member : members) {
        stages.push_back(member.stage);
        depthwise_wanted |= frame.gradient(member.stage->slots.depthwise) != nullptr;
        sums_wanted |= member.dweight || frame.map_gradients(*member.stage).any();
        two_passes |= uses_batch(*member.stage);
    }
    const bool images_wanted = da || depthwise_wanted;
    if (!images_wanted && !sums_wanted) return;
    const Temporary temporary(frame.arena);
    const DepthwiseShape shape = shape_of<T>(in, stages);
    T* const scratch =
        frame.arena.template take<T>(separable_gradient_scratch<T>(shape, outputs, frame.threads));

    GradientInput<T> given{a, dy, outputs, kernels_of(frame, stages), {}, {}, nullptr, nullptr};
    given.centres = centres_of(frame, stages, channels);
    for (const Member& member : members) {
        const Affine affine = frame.affine(*member.stage);
        const T* const matrix = frame.matrix(*member.stage, affine, member.weight);
        T* const left = frame.arena.template take<T>(channels * outputs);
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t c = 0; c < channels; ++c) left[c * outputs + o] = matrix[o * channels + c];
        }
        given.left.push_back(left);
    }
    std::vector<T*> products, ddepthwise;
    for (const Stage* stage : stages) {
        products.push_back(frame.arena.template take<T>(outputs * channels));
        T* const wanted = frame.gradient(stage->slots.depthwise);
        ddepthwise.push_back(wanted ? wanted
                                    : frame.arena.template take<T>(channels * stage->size * stage->size));
    }
    T* const dysum = frame.arena.template take<T>(outputs);
    const auto run = [&](bool images, bool sums) {
        GradientOutput<T> wanted{{}, false, nullptr, {}, {}};
        if (images && da) wanted.dx = da->image, wanted.accumulate = da->written;
        if (images && depthwise_wanted) wanted.ddepthwise = ddepthwise;
        if (sums) wanted.dysum = dysum, wanted.products = products;
        separable_gradient<T>(shape, given, wanted, scratch, frame.threads);
        if (images && da) da->written = true;
    };

    run(!two_passes, sums_wanted || two_passes);
    if (!sums_wanted && !two_passes) return;
    const std::vector<double> total(dysum, dysum + outputs);
    const ImageSize made{in.images, outputs, shape.out_height(), shape.out_width()};
    T* const offsets = frame.arena.template take<T>(count * channels);
    for (int64_t i = 0; i < count; ++i) {
        const Stage& stage = *stages[i];
        Correction correction{std::vector<double>(channels * channels), std::vector<double>(channels)};
        const double dw =
            unfold(stage, members[i].weight, frame.map(stage), frame.kept(stage), products[i], total.data(),
                   made.pixels(), frame.map_gradients(stage), uses_batch(stage) ? &correction : nullptr);
        if (members[i].dweight) *members[i].dweight += dw;
        given.right.push_back(frame.numbers(correction.right));
        std::copy(correction.offset.begin(), correction.offset.end(), offsets + i * channels);
    }
    if (!two_passes || !images_wanted) return;
    given.offsets = offsets;
    run(true, false);
}

template <class T>
double* dweight_of(const BackFrame<T>& frame, int64_t candidate) {
    return frame.weights_wanted() ? frame.gradients.weights + candidate : nullptr;
}

// One candidate of two stages; what the first makes is made again.
template <class T>
void two_stage_backward(const BackFrame<T>& frame, int64_t k, const Source<T>& a, Sum<T>* da) {
    const Stage &first = frame.program.first(k), &second = frame.program.last(k);
    const bool first_wanted = da || frame.gradient(first.slots.depthwise) || frame.map_gradients(first).any();
    const bool slope_wanted = frame.gradient(second.slots.slope);
    const bool between_wanted = first_wanted || slope_wanted;
    if (!(between_wanted || frame.weights_wanted() || frame.gradient(second.slots.depthwise) ||
          frame.map_gradients(second).any()))
        return;
    const Temporary temporary(frame.arena);
    const ImageSize between{frame.out.images, first.outputs, frame.out.height, frame.out.width};
    Sum<T> u{frame.image(between)}, dv{between_wanted ? frame.image(between) : Tensor<T>{}};
    add_stages(frame, {&first}, {1.0}, a, frame.in, u);
    const Source<T> v{u.image.read_only(), frame.activation(second)};
    {
        const Temporary inner(frame.arena);
        stages_backward(frame, {{&second, frame.weight(k), dweight_of(frame, k)}},
                        frame.read(v, between, false), between, frame.dy, between_wanted ? &dv : nullptr);
    }
    if (!between_wanted) return;
    if (!v.activation.none()) {
        std::vector<double> slopes(slope_wanted ? between.channels : 0);
        double* const partial = frame.arena.template take<double>(between.planes());
        activation_backward<T>(between, v, dv.image.read_only(), dv.image, false,
                               slope_wanted ? slopes.data() : nullptr, partial, frame.threads);
        frame.give_slopes(second, slopes);
    }
    if (first_wanted) stages_backward(frame, {{&first, 1.0, nullptr}}, a, frame.in, dv.image.read_only(), da);
}

}  // namespace

template <class T>
void separable_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum) {
    const Program& program = frame.program;
    const auto single = program.members(group, frame.call.live, StageKind::separable, 1);
    const auto twice = program.members(group, frame.call.live, StageKind::separable, 2);
    std::vector<const Stage*> stages;
    std::vector<double> weights;
    for (const int64_t k : single) {
        stages.push_back(&program.first(k));
        weights.push_back(frame.weight(k));
    }
    std::vector<const Stage*> first = stages;
    for (const int64_t k : twice) first.push_back(&program.first(k));
    if (!first.empty()) keep_statistics(frame, first, a, frame.in);
    if (!stages.empty()) add_stages(frame, stages, weights, a, frame.in, sum);
    for (const int64_t k : twice) {
        const Temporary temporary(frame.arena);
        const Stage &inner = program.first(k), &outer = program.last(k);
        const ImageSize between{frame.out.images, inner.outputs, frame.out.height, frame.out.width};
        Sum<T> u{frame.image(between)};
        add_stages(frame, {&inner}, {1.0}, a, frame.in, u);
        const Source<T> v = frame.read({u.image.read_only(), frame.activation(outer)}, between, false);
        keep_statistics(frame, {&outer}, v, between);
        add_stages(frame, {&outer}, {frame.weight(k)}, v, between, sum);
    }
}

template <class T>
void separable_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da) {
    const Program& program = frame.program;
    std::vector<Member> members;
    for (const int64_t k : program.members(group, frame.call.live, StageKind::separable, 1))
        members.push_back({&program.first(k), frame.weight(k), dweight_of(frame, k)});
    if (!members.empty()) stages_backward(frame, members, a, frame.in, frame.dy, da);
    for (const int64_t k : program.members(group, frame.call.live, StageKind::separable, 2))
        two_stage_backward(frame, k, a, da);
}

#define INSTANTIATE(T)                                                                    \
    template void separable_forward(const Frame<T>&, int64_t, const Source<T>&, Sum<T>&); \
    template void separable_backward(const BackFrame<T>&, int64_t, const Source<T>&, Sum<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
