// The passes of a call in their order: from the tensors outside to images whose rows lie together, group
// after group, identities, and back.
#include "call.h"
#include "shuffle_concat.h"

namespace srnas_fast {
namespace {

// A group's first live stage, which tells its activation; null: nothing of the group is alive.
const Stage* stage_of(const Program& program, int64_t group, uint64_t live) {
    for (size_t k = 0; k < program.candidates.size(); ++k) {
        if (alive(live, k) && program.candidates[k].group == group) return &program.first(k);
    }
    return nullptr;
}

bool has_pools(const Program& program, int64_t group, uint64_t live) {
    return !program.members(group, live, StageKind::max_pool, 1).empty() ||
           !program.members(group, live, StageKind::average_pool, 1).empty();
}

std::vector<int64_t> identities(const Program& program, uint64_t live) {
    std::vector<int64_t> found;
    for (size_t k = 0; k < program.candidates.size(); ++k) {
        if (alive(live, k) && program.candidates[k].kind == CandidateKind::identity) found.push_back(k);
    }
    return found;
}

template <class T>
ShuffleShape shuffle_shape(const Frame<T>& frame) {
    return {frame.out.images, frame.out.channels, frame.program.partial,
            frame.out.height, frame.out.width,    frame.program.stride};
}

template <class T>
void fill_zeros(const ImageSize& size, const Tensor<T>& image) {
    for (int64_t n = 0; n < size.images; ++n) {
        for (int64_t c = 0; c < size.channels; ++c) {
            for (int64_t y = 0; y < size.height; ++y)
                std::fill_n(image.data + n * image.n + c * image.c + y * image.h, size.width, T(0));
        }
    }
}

// sum += the image, as often as the identities weigh.
template <class T>
void add_identities(const Frame<T>& frame, const Tensor<const T>& image, Sum<T>& sum) {
    double weight = 0;
    const auto found = identities(frame.program, frame.call.live);
    if (found.empty()) return;
    for (const int64_t k : found) weight += frame.weight(k);
    const Temporary temporary(frame.arena);
    const std::vector<double> scale(frame.in.channels, weight);
    combine<T>(frame.in, sum.image, sum.written, {{image, frame.numbers(scale), nullptr}}, nullptr,
               frame.threads);
    sum.written = true;
}

}  // namespace

template <class T>
void run_forward(const Call<T>& call, Tensor<T> y) {
    Lease lease;
    const Frame<T> frame(call, lease.arena());
    const Program& program = frame.program;
    const bool direct = program.partial == 1 && rows_lie_together(y, frame.out);
    Sum<T> sum{direct ? y : frame.image(frame.out)};
    for (int64_t group = 0; group < program.groups; ++group) {
        const Stage* const stage = stage_of(program, group, call.live);
        if (!stage) continue;
        const Temporary temporary(frame.arena);
        const Source<T> a =
            frame.read({frame.x, frame.activation(*stage)}, frame.in, has_pools(program, group, call.live));
        dense_forward(frame, group, a, sum);
        separable_forward(frame, group, a, sum);
        pool_forward(frame, group, a, sum);
    }
    add_identities(frame, frame.x, sum);
    if (!sum.written) fill_zeros(frame.out, sum.image);
    if (program.partial > 1) {
        shuffle_concat<T>(shuffle_shape(frame), sum.image.read_only(), call.x, call.scale, y, frame.threads);
    } else if (!direct) {
        copy_images<T>(frame.out, {sum.image.read_only(), {}}, y, frame.threads);
    }
}

template <class T>
void run_backward(const Call<T>& call, Tensor<const T> given, const Gradients<T>& gradients) {
    Lease lease;
    BackFrame<T> frame(call, lease.arena(), gradients);
    const Program& program = frame.program;
    const bool x_wanted = gradients.dx.data != nullptr;
    if (program.partial > 1) {
        const Tensor<T> dy = frame.image(frame.out);
        shuffle_concat_backward<T>(shuffle_shape(frame), given, call.x, call.scale, dy, gradients.dx,
                                   gradients.scale, frame.threads);
        frame.dy = dy.read_only();
    } else {
        frame.dy = rows_lie_together(given, frame.out) ? given : frame.dense_copy({given, {}}, frame.out);
    }
    frame.total.resize(frame.out.channels);
    channel_sums<T>(frame.out, frame.dy, frame.total.data(), frame.partial, frame.threads);

    // With partial channels the first ones of dx.
    const bool direct = x_wanted && rows_lie_together(gradients.dx, frame.in);
    Sum<T> dx{direct ? gradients.dx : x_wanted ? frame.image(frame.in) : Tensor<T>{}};
    for (int64_t group = 0; group < program.groups; ++group) {
        const Stage* const stage = stage_of(program, group, call.live);
        if (!stage) continue;
        const Temporary temporary(frame.arena);
        const Source<T> x{frame.x, frame.activation(*stage)};
        const bool activated = !x.activation.none();
        const bool slope_wanted = frame.gradient(stage->slots.slope) != nullptr;
        // The first gradient of an activated input turns into that of x where it stands.
        const bool apart = activated && (x_wanted ? dx.written : slope_wanted);
        Sum<T> own{apart ? frame.image(frame.in) : Tensor<T>{}};
        Sum<T>* const da = apart ? &own : x_wanted ? &dx : nullptr;
        {
            const Temporary inner(frame.arena);
            const Source<T> a = frame.read(x, frame.in, has_pools(program, group, call.live));
            dense_backward(frame, group, a, da);
            separable_backward(frame, group, a, da);
            pool_backward(frame, group, a, da);
        }
        if (!activated || !da || !da->written) continue;
        std::vector<double> slopes(slope_wanted ? frame.in.channels : 0);
        const bool into_x = x_wanted && apart;
        activation_backward<T>(frame.in, x, da->image.read_only(), into_x ? dx.image : da->image, into_x,
                               slope_wanted ? slopes.data() : nullptr, frame.partial, frame.threads);
        frame.give_slopes(*stage, slopes);
    }
    const auto same = identities(program, call.live);
    if (frame.weights_wanted() && !same.empty()) {
        std::vector<double> products(frame.in.channels);
        channel_products<T>(frame.in, frame.dy, frame.x, nullptr, products.data(), frame.partial,
                            frame.threads);
        double sum = 0;
        for (const double product : products) sum += product;
        for (const int64_t k : same) frame.give_weight(k, sum);
    }
    if (!x_wanted) return;
    add_identities(frame, frame.dy, dx);
    if (!dx.written) fill_zeros(frame.in, dx.image);
    if (!direct) copy_images<T>(frame.in, {dx.image.read_only(), {}}, gradients.dx, frame.threads);
}

template <class T>
void move_statistics(const Call<T>& call) {
    const Program& program = call.program;
    const std::vector<int64_t> from = program.kept_from(call.live);
    const double pixels = double(call.images) * double((call.height - 1) / program.stride + 1) *
                          double((call.width - 1) / program.stride + 1);
    for (size_t k = 0; k < program.candidates.size(); ++k) {
        if (!alive(call.live, k)) continue;
        for (const Stage& stage : program.candidates[k].stages) {
            if (stage.norm != NormKind::batch || !stage.moves) continue;
            const Statistics<T>& running = call.statistics[stage.statistics];
            const T* const kept = call.kept + from[k];
            const double seen = stage.counts ? double(++*running.batches) : 0;
            const double share = stage.momentum >= 0 ? stage.momentum : seen > 0 ? 1 / seen : 0;
            for (int64_t o = 0; o < stage.outputs; ++o) {
                const double mean = kept[stage.kept.mean + o];
                const double variance = kept[stage.kept.variance + o] * (pixels / (pixels - 1));
                running.mean[o] = T(running.mean[o] + share * (mean - running.mean[o]));
                running.variance[o] = T(running.variance[o] + share * (variance - running.variance[o]));
            }
        }
    }
}

#define INSTANTIATE(T)                                                                \
    template void run_forward(const Call<T>&, Tensor<T>);                             \
    template void run_backward(const Call<T>&, Tensor<const T>, const Gradients<T>&); \
    template void move_statistics(const Call<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
