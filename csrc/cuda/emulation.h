// CUDA on the CPU, to test kernels where there is no GPU: C++20, the threads of a block are threads, the
// blocks of a grid run one after the other.
#pragma once

#include <math.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time, so one copy is enough

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline constinit thread_local dim3 threadIdx{}, blockIdx{};
inline constinit dim3 blockDim{}, gridDim{};

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace srnas_fast_cuda::emulation {

// Where `size` threads wait for each other, again and again. All of them must come from the same line of the
// source: on a GPU anything else hangs or goes wrong silently, so here it ends the process with a message.
class Meeting {
public:
    explicit Meeting(int size) : size_(size) {}

    void wait(int line) {
        int first = NOWHERE;
        if (!line_.compare_exchange_strong(first, line) && first != line) {
            std::fprintf(stderr, "threads of a block wait at lines %d and %d (%d: the end)\n", first, line,
                         END);
            std::abort();
        }
        const int phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 < size_) {
            phase_.wait(phase);
            return;
        }
        arrived_ = 0;
        line_ = NOWHERE;
        phase_.fetch_add(1);
        phase_.notify_all();
    }

    static constexpr int END = 0;

private:
    static constexpr int NOWHERE = -1;
    const int size_;
    std::atomic<int> arrived_{0}, phase_{0}, line_{NOWHERE};
};

// The lanes that shuffle with each other. They write to one of two rows in turn: who is already at the next
// shuffle leaves in peace what the others still read.
struct Warp {
    explicit Warp(int size) : size(size), meeting(size) {}
    const int size;
    Meeting meeting;
    std::array<std::array<double, 32>, 2> rows;
};

inline Meeting* block_meeting = nullptr;
inline constinit thread_local Warp* warp = nullptr;
inline constinit thread_local int lane = 0, row = 0;

template <class T>
T shuffle(T value, int from, int line) {
    static_assert(sizeof(T) <= sizeof(double));
    auto& slots = warp->rows[row ^= 1];
    std::memcpy(&slots[lane], &value, sizeof(T));
    warp->meeting.wait(line);
    if (from >= 0 && from < warp->size) std::memcpy(&value, &slots[from], sizeof(T));
    return value;
}

// What a GPU would refuse is refused here too.
inline void check_launch(dim3 grid, dim3 block) {
    const auto positive = [](dim3 size) { return size.x > 0 && size.y > 0 && size.z > 0; };
    if (!positive(grid) || !positive(block) || grid.x > 0x7fffffffu || grid.y > 65535u || grid.z > 65535u ||
        block.z > 64u || uint64_t{block.x} * block.y * block.z > 1024u)
        throw std::runtime_error("a GPU does not take a grid or block of this size");
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void*, Arguments... arguments) {
    check_launch(grid, block);
    gridDim = grid;
    blockDim = block;
    const int size = block.x * block.y * block.z;
    Meeting meeting(size);
    block_meeting = &meeting;
    std::vector<std::unique_ptr<Warp>> warps;
    for (int begin = 0; begin < size; begin += 32)
        warps.push_back(std::make_unique<Warp>(min(32, size - begin)));

    const auto run = [&](unsigned index) {
        threadIdx = dim3(index % block.x, index / block.x % block.y, index / block.x / block.y);
        warp = warps[index / 32].get();
        lane = index % 32;
        for (unsigned z = 0; z < grid.z; ++z)
            for (unsigned y = 0; y < grid.y; ++y)
                for (unsigned x = 0; x < grid.x; ++x) {
                    blockIdx = dim3(x, y, z);
                    kernel(arguments...);
                    meeting.wait(Meeting::END);  // shared memory goes on to the next block
                }
    };
    std::vector<std::thread> threads;
    for (int index = 0; index < size; ++index) threads.emplace_back(run, index);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace srnas_fast_cuda::emulation

#define __syncthreads() srnas_fast_cuda::emulation::block_meeting->wait(__LINE__)
#define __syncwarp(...) srnas_fast_cuda::emulation::warp->meeting.wait(__LINE__)
#define __shfl_sync(mask, value, from) srnas_fast_cuda::emulation::shuffle(value, from, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    srnas_fast_cuda::emulation::shuffle(value, srnas_fast_cuda::emulation::lane + (delta), __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    srnas_fast_cuda::emulation::shuffle(value, srnas_fast_cuda::emulation::lane ^ (bits), __LINE__)

#define LAUNCH(kernel, grid, block, stream, ...) \
    srnas_fast_cuda::emulation::launch(kernel, grid, block, stream __VA_OPT__(, ) __VA_ARGS__)
