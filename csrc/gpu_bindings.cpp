// Launching a program's kernels on a GPU: one call from Python for all of a direction. The driver's library
// is found and the kernels are loaded in srnas_fast/backends; here its functions are called by their
// addresses.
#include "python.h"

using namespace srnas_fast_python;

void bind_gpu(py::module_& m);

namespace {

using Launch = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                       void** extra);

constexpr int INVALID_VALUE = 1;  // CUresult

// A context is this thread's as long as this lives: threads that have launched nothing through torch yet,
// such as autograd's own, have none.
class Bound {
public:
    // The context's handle and the addresses of cuCtxPushCurrent and cuCtxPopCurrent; zeros: nothing to do.
    explicit Bound(const std::array<Address, 3>& context) : pop_(context[2]) {
        if (pop_) error = reinterpret_cast<int (*)(void*)>(context[1])(at<void>(context[0]));
    }
    ~Bound() {
        void* context = nullptr;
        if (pop_ && !error) reinterpret_cast<int (*)(void**)>(pop_)(&context);
    }
    int error = 0;

private:
    Address pop_;
};

// words: the arguments of all kernels, whose first one is a phase. launches: function, phase, blocks,
// threads. Returns the driver's first error, 0 for none.
int launch_all(Address launch, const std::array<Address, 3>& context, Address stream,
               std::vector<uint64_t> words, const std::vector<std::array<uint64_t, 4>>& launches) {
    const py::gil_scoped_release unlocked;
    const Bound bound(context);
    if (bound.error) return bound.error;
    void* parameters[] = {words.data()};
    for (const auto& [function, phase, blocks, threads] : launches) {
        if (blocks >> 31) return INVALID_VALUE;
        words[0] = phase;
        const int error = reinterpret_cast<Launch>(launch)(
            reinterpret_cast<void*>(function), unsigned(blocks), 1, 1, unsigned(threads), 1, 1, 0,
            reinterpret_cast<void*>(stream), parameters, nullptr);
        if (error) return error;
    }
    return 0;
}

}  // namespace

void bind_gpu(py::module_& m) { m.def("launch_all", launch_all); }
