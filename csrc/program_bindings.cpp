// What Python sees of programs: made once from a description of numbers, then one call for each direction.
#include "cpu/arena.h"
#include "cpu/call.h"
#include "program/program.h"
#include "python.h"

using namespace srnas_fast_python;
using namespace srnas_fast;
using Unlocked = py::gil_scoped_release;

void bind_programs(py::module_& m);

namespace {

// kind, activation, slope, slopes, inputs, outputs, size, dilation, stride, counts padding, norm, eps,
// momentum
// (-1: the mean over all batches), moves, counts, statistics, slots
Stage stage_of(const py::tuple& t) {
    Stage stage{};
    stage.kind = StageKind(t[0].cast<int>());
    stage.activation = ActivationKind(t[1].cast<int>());
    stage.slope = t[2].cast<double>();
    stage.slopes = t[3].cast<int64_t>();
    stage.inputs = t[4].cast<int64_t>();
    stage.outputs = t[5].cast<int64_t>();
    stage.size = t[6].cast<int64_t>();
    stage.dilation = t[7].cast<int64_t>();
    stage.stride = t[8].cast<int64_t>();
    stage.counts_padding = t[9].cast<bool>();
    stage.norm = NormKind(t[10].cast<int>());
    stage.eps = t[11].cast<double>();
    stage.momentum = t[12].cast<double>();
    stage.moves = t[13].cast<bool>();
    stage.counts = t[14].cast<bool>();
    stage.statistics = t[15].cast<int64_t>();
    const auto slots = t[16].cast<Sizes>();
    stage.slots = {slots[0], slots[1], slots[2], slots[3], slots[4], slots[5]};
    return stage;
}

// candidates: kind, group, stages
Program program_of(int64_t channels, int64_t outputs, int64_t stride, int64_t partial, bool merge,
                   const std::vector<py::tuple>& candidates) {
    Program program{channels, outputs, stride, partial, merge, {}};
    for (const py::tuple& t : candidates) {
        Candidate candidate{CandidateKind(t[0].cast<int>()), t[1].cast<int64_t>(), {}};
        for (const auto& stage : t[2].cast<std::vector<py::tuple>>())
            candidate.stages.push_back(stage_of(stage));
        program.candidates.push_back(candidate);
    }
    program.lay_out();
    return program;
}

// Three addresses for each norm.
template <class T>
std::vector<Statistics<T>> statistics_of(const Addresses& addresses) {
    std::vector<Statistics<T>> all;
    for (size_t i = 0; i + 2 < addresses.size(); i += 3)
        all.push_back({at<T>(addresses[i]), at<T>(addresses[i + 1]), at<int64_t>(addresses[i + 2])});
    return all;
}

template <class T>
std::vector<double> weights_of(const Program& program, Address weights) {
    const T* const first = at<const T>(weights);
    return {first, first + program.candidates.size()};
}

template <class T>
T scale_of(Address scale) {
    return scale ? *at<const T>(scale) : T(1);
}

// sizes: images, height and width of x; scale: 0 for one. Returns whether it has computed: not with NaN among
// the weights.
template <class T>
bool program_forward(const Program& program, int threads, const Sizes& sizes, Address x,
                     const Sizes& x_strides, Address weights, Address scale, uint64_t live,
                     const Addresses& parameters, const Addresses& statistics, Address kept, Address y,
                     const Sizes& y_strides) {
    const Unlocked unlocked;
    const auto values = weights_of<T>(program, weights);
    for (const double value : values) {
        if (value != value) return false;
    }
    const auto at_slots = all_at<const T>(parameters);
    const auto running = statistics_of<T>(statistics);
    const Call<T> call{program,        threads,
                       sizes[0],       sizes[1],
                       sizes[2],       tensor_at<Tensor<const T>>(x, x_strides),
                       values.data(),  scale_of<T>(scale),
                       live,           at_slots.data(),
                       running.data(), at<T>(kept)};
    run_forward(call, tensor_at<Tensor<T>>(y, y_strides));
    move_statistics(call);
    return true;
}

// dweights, dscale and the gradients: 0 where not wanted.
template <class T>
void program_backward(const Program& program, int threads, const Sizes& sizes, Address x,
                      const Sizes& x_strides, Address weights, Address scale, uint64_t live,
                      const Addresses& parameters, Address kept, Address dy, const Sizes& dy_strides,
                      Address dx, const Sizes& dx_strides, Address dweights, Address dscale,
                      const Addresses& gradients) {
    const Unlocked unlocked;
    const auto values = weights_of<T>(program, weights);
    const auto at_slots = all_at<const T>(parameters);
    const auto wanted = all_at<T>(gradients);
    std::vector<double> of_weights(dweights ? values.size() : 0);
    const Call<T> call{program,       threads,
                       sizes[0],      sizes[1],
                       sizes[2],      tensor_at<Tensor<const T>>(x, x_strides),
                       values.data(), scale_of<T>(scale),
                       live,          at_slots.data(),
                       nullptr,       at<T>(kept)};
    run_backward<T>(call, tensor_at<Tensor<const T>>(dy, dy_strides),
                    {tensor_at<Tensor<T>>(dx, dx_strides), dweights ? of_weights.data() : nullptr,
                     at<T>(dscale), wanted.data()});
    std::copy(of_weights.begin(), of_weights.end(), at<T>(dweights));
}

template <class T>
void bind(py::module_ m) {
    m.def("program_forward", program_forward<T>);
    m.def("program_backward", program_backward<T>);
}

}  // namespace

void bind_programs(py::module_& m) {
    py::class_<Program>(m, "Program").def(py::init(&program_of));
    bind<float>(m.attr("float32").cast<py::module_>());
    bind<double>(m.attr("float64").cast<py::module_>());
    m.def("scratch_held", scratch_held);
    m.def("scratch_release", scratch_release);
    m.def("scratch_peak", scratch_peak);
}
