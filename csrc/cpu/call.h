// One call of a program on the CPU: what it is given, and what its passes share.
#pragma once

#include <memory>

#include "../program/norm.h"
#include "../program/program.h"
#include "arena.h"
#include "combine.h"
#include "separable.h"

namespace srnas_fast {

// The running statistics of a norm.
template <class T>
struct Statistics {
    T *mean, *variance;
    int64_t* batches;  // how many it has seen, where it counts them
};

template <class T>
struct Call {
    const Program& program;
    int threads;
    int64_t images, height, width;  // of x
    Tensor<const T> x;              // all of its channels
    const double* weights;          // of the candidates
    T scale;                        // of the channels that pass by
    uint64_t live;                  // one bit for each candidate
    const T* const* parameters;     // at their slots
    const Statistics<T>* statistics;
    T* kept;  // what the forward pass leaves for the backward pass
};

// Where gradients go; null: not wanted.
template <class T>
struct Gradients {
    Tensor<T> dx;
    double* weights;  // begin as zeros
    T* scale;
    T* const* parameters;
};

// An image to which passes add up; the first one writes it.
template <class T>
struct Sum {
    Tensor<T> image;
    bool written = false;
};

template <class T>
class Frame {
public:
    Frame(const Call<T>& call, Arena& arena)
        : program(call.program),
          call(call),
          arena(arena),
          threads(worth_while(call)),
          in{call.images, program.channels, call.height, call.width},
          out{call.images, program.outputs, (call.height - 1) / program.stride + 1,
              (call.width - 1) / program.stride + 1},
          x(call.x),
          kept_from_(program.kept_from(call.live)) {
        if (!rows_lie_together(x, in)) x = dense_copy({x, {}}, in);
    }

    const Program& program;
    const Call<T>& call;
    Arena& arena;
    const int threads;
    const ImageSize in, out;  // of what the candidates read and return
    Tensor<const T> x;        // what the candidates see; pixels of a row lie together

    double weight(int64_t candidate) const { return call.weights[candidate]; }
    const T* parameter(int64_t slot) const { return slot < 0 ? nullptr : call.parameters[slot]; }
    MapParameters<T> map(const Stage& stage) const {
        const Slots& slots = stage.slots;
        return {parameter(slots.conv), parameter(slots.bias), parameter(slots.gamma), parameter(slots.beta)};
    }
    // What a stage keeps.
    T* kept(const Stage& stage) const { return call.kept + kept_from_[stage.candidate]; }
    Affine affine(const Stage& stage) const { return affine_of<T>(stage, map(stage), kept(stage)); }
    // Keeps the running statistics of a frozen norm.
    void freeze(const Stage& stage) const {
        if (stage.norm != NormKind::frozen) return;
        const Statistics<T>& running = call.statistics[stage.statistics];
        keep_moments<T>(stage, running.mean, running.variance, kept(stage));
    }
    Activation<T> activation(const Stage& stage) const {
        return {stage.activation, T(stage.slope), parameter(stage.slots.slope),
                stage.slopes > 1 ? int64_t(1) : int64_t(0)};
    }

    // Room for one dense image.
    Tensor<T> image(const ImageSize& size) const { return dense_image(arena.take<T>(size.elements()), size); }
    Tensor<const T> dense_copy(const Source<T>& from, const ImageSize& size) const {
        const Tensor<T> to = image(size);
        copy_images(size, from, to, threads);
        return to.read_only();
    }
    // What a group of candidates reads: x through their activation, which is computed once where it is dear
    // or where a kernel takes none.
    Source<T> read(const Source<T>& source, const ImageSize& size, bool as_image) const {
        if (source.activation.none()) return source;
        if (!as_image && source.activation.kind != ActivationKind::sine) return source;
        return {dense_copy(source, size), {}};
    }

    // Numbers in the arena.
    T* numbers(const double* values, int64_t count, double times = 1) const {
        T* const made = arena.take<T>(count);
        for (int64_t i = 0; i < count; ++i) made[i] = T(times * values[i]);
        return made;
    }
    T* numbers(const std::vector<double>& values, double times = 1) const {
        return values.empty() ? nullptr : numbers(values.data(), int64_t(values.size()), times);
    }
    // The affine map's matrix times w.
    T* matrix(const Stage& stage, const Affine& affine, double w) const {
        const int64_t columns = stage.columns();
        const T* const weight = parameter(stage.slots.conv);
        T* const made = arena.take<T>(stage.outputs * columns);
        for (int64_t o = 0; o < stage.outputs; ++o) {
            const T factor = T(w * affine.scale[o]);
            for (int64_t c = 0; c < columns; ++c) made[o * columns + c] = factor * weight[o * columns + c];
        }
        return made;
    }

private:
    // Threads that a call's images keep busy: to start and await one costs as much as some rows of pixels.
    static int worth_while(const Call<T>& call) {
        constexpr int64_t kElements = 2048;
        const int64_t elements = call.images * call.program.channels * call.height * call.width;
        return int(std::min<int64_t>(call.threads, std::max<int64_t>(1, elements / kElements)));
    }

    std::vector<int64_t> kept_from_;
};

// The backward pass of a call: dy, and what is wanted of it.
template <class T>
class BackFrame : public Frame<T> {
public:
    BackFrame(const Call<T>& call, Arena& arena, const Gradients<T>& gradients)
        : Frame<T>(call, arena),
          gradients(gradients),
          partial(arena.take<double>(std::max(this->in.planes(), this->out.planes()))) {}

    const Gradients<T>& gradients;
    double* const partial;      // room for a number for each plane
    Tensor<const T> dy;         // pixels of a row lie together
    std::vector<double> total;  // the sum of dy, for each channel

    T* gradient(int64_t slot) const { return slot < 0 ? nullptr : gradients.parameters[slot]; }
    MapGradients<T> map_gradients(const Stage& stage) const {
        const Slots& slots = stage.slots;
        return {gradient(slots.conv), gradient(slots.bias), gradient(slots.gamma), gradient(slots.beta)};
    }
    bool weights_wanted() const { return gradients.weights != nullptr; }
    void give_weight(int64_t candidate, double gradient) const {
        if (weights_wanted()) gradients.weights[candidate] += gradient;
    }
    // The gradient of a PReLU's slopes, from the sums for each channel.
    void give_slopes(const Stage& stage, const std::vector<double>& sums) const {
        T* const out = gradient(stage.slots.slope);
        if (!out) return;
        std::vector<double> slopes(stage.slopes);
        for (size_t c = 0; c < sums.size(); ++c) slopes[stage.slopes > 1 ? c : 0] += sums[c];
        std::copy(slopes.begin(), slopes.end(), out);
    }
};

// ---- the passes, each in a file of its own: what they add to the weighted sum, and to the gradient of the
// activated input `a` where it is wanted

template <class T>
void dense_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum);
template <class T>
void dense_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da);

template <class T>
void separable_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum);
template <class T>
void separable_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da);

// `a` has no activation left to apply.
template <class T>
void pool_forward(const Frame<T>& frame, int64_t group, const Source<T>& a, Sum<T>& sum);
template <class T>
void pool_backward(const BackFrame<T>& frame, int64_t group, const Source<T>& a, Sum<T>* da);

// ---- the call

template <class T>
void run_forward(const Call<T>& call, Tensor<T> y);
template <class T>
void run_backward(const Call<T>& call, Tensor<const T> dy, const Gradients<T>& gradients);
// Moves running statistics towards those of the batch that the forward pass has kept, as the norms themselves
// would.
template <class T>
void move_statistics(const Call<T>& call);

}  // namespace srnas_fast
