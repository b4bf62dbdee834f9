// Launching a program's kernels on a GPU: one call from Python for all of a direction. The driver's library
// is found and the kernels are loaded in srnas_fast/backends; here only its cuLaunchKernel is called, by
// address.
#include "python.h"

using namespace srnas_fast_python;

void bind_gpu(py::module_& m);

namespace {

using Launch = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                       void** extra);

// words: the arguments of all kernels, whose first one is a phase. launches: function, phase, blocks,
// threads. Returns the driver's first error, 0 for none.
int launch_all(Address launch, Address stream, std::vector<uint64_t> words,
               const std::vector<std::array<uint64_t, 4>>& launches) {
    const py::gil_scoped_release unlocked;
    void* parameters[] = {words.data()};
    for (const auto& [function, phase, blocks, threads] : launches) {
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
