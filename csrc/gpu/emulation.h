// CUDA on the CPU, to test kernels where there is no GPU: C++17 of g++ on Linux. Each thread of a block is a
// fiber, a stack of its own that is switched to without the operating system: the fibers of a warp run one
// after the other to where its lanes meet, the warps of a block to where these meet, the blocks of a grid to
// their end. Every other block runs backwards, so that a missing __syncthreads() does not go unnoticed.
// A misuse ends the process with one line on stderr (pytest hides it: -s), a stack that is too small with
// SIGSEGV.
//
// A library has one translation unit that includes this: its state is its own. Compile it with
// -fvisibility=hidden -fno-gnu-unique: otherwise two libraries in a process share the static arrays of
// templates that they both have.
#pragma once

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <type_traits>

#if !defined(SRNAS_FAST_EMULATED_STACK)
#define SRNAS_FAST_EMULATED_STACK 65536  // bytes a thread
#endif
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SRNAS_FAST_EMULATE_UCONTEXT)
#define SRNAS_FAST_EMULATE_UCONTEXT  // a system call at each switch
#endif
#if defined(SRNAS_FAST_EMULATE_UCONTEXT)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)  // __restrict__ g++ knows itself
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // one block runs at a time, so one copy is enough

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace srnas_fast_gpu::emulation {

struct Kernel {
    uint64_t magic;  // tells a handle from another address
    const char* name;
    void (*run)(const void* arguments);
    size_t bytes;  // of its arguments
};
constexpr uint64_t MAGIC = 0x73726e6173676375;
constexpr int WARP = 32, MOST_THREADS = 1024, MOST_BYTES = 4096;  // the last: of arguments

#if defined(SRNAS_FAST_EMULATE_UCONTEXT)

using Context = ucontext_t;

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

#else

using Context = void*;  // the stack pointer: what a function keeps for its caller lies on the stack

extern "C" __attribute__((visibility("hidden"))) void srnas_fast_switch_context(Context* from, Context to);

#if defined(__x86_64__)

asm(R"(
    .pushsection .text
    .p2align 4
    .type srnas_fast_switch_context, @function
srnas_fast_switch_context:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
    .size srnas_fast_switch_context, . - srnas_fast_switch_context
    .popsection
)");

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** const end = reinterpret_cast<void**>(stack + bytes);
    memset(end - 8, 0, 8 * sizeof(void*));  // six registers, the entry, and where it never returns to
    end[-2] = reinterpret_cast<void*>(entry);
    context = end - 8;
}

#else

asm(R"(
    .pushsection .text
    .p2align 4
    .type srnas_fast_switch_context, %function
srnas_fast_switch_context:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size srnas_fast_switch_context, . - srnas_fast_switch_context
    .popsection
)");

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** const end = reinterpret_cast<void**>(stack + bytes);
    memset(end - 20, 0, 20 * sizeof(void*));
    end[-9] = reinterpret_cast<void*>(entry);  // x30, where the switch returns to
    context = end - 20;
}

#endif

inline void switch_context(Context& from, Context& to) { srnas_fast_switch_context(&from, to); }

#endif

// The stacks of a warp's lanes, from the lowest address: below each lies a page that nobody may touch.
struct Stacks {
    pthread_mutex_t lock;  // one launch runs at a time
    size_t bytes;          // of one stack
    char* of_warp[MOST_THREADS / WARP];
};

// All libraries of a process share them: each has its hundreds of mappings, and Linux allows 65530 in a
// process. This type of symbol, which C++ also has for inline variables, is one even where the libraries do
// not see each other.
extern "C" __attribute__((visibility("default"))) Stacks srnas_fast_emulated_stacks;
asm(R"(
    .pushsection .bss
    .balign 16
    .globl srnas_fast_emulated_stacks
    .type srnas_fast_emulated_stacks, "gnu_unique_object"
    .size srnas_fast_emulated_stacks, 512
srnas_fast_emulated_stacks:
    .zero 512
    .popsection
)");
static_assert(sizeof(Stacks) <= 512);

}  // namespace srnas_fast_gpu::emulation

namespace {  // not shared with other libraries, and within reach by one instruction

dim3 threadIdx, blockIdx, blockDim, gridDim;

}  // namespace

namespace srnas_fast_gpu::emulation {
namespace {

// Where threads meet. All threads of a warp or block must come to the same place: on a GPU anything else
// hangs or goes wrong silently, so here it ends the process with a message.
enum Kind { END, SYNCTHREADS, SYNCWARP, SHFL, SHFL_DOWN, SHFL_UP, SHFL_XOR };
constexpr const char* NAMES[] = {
    "its end",          "__syncthreads",  "__syncwarp",      "__shfl_sync",
    "__shfl_down_sync", "__shfl_up_sync", "__shfl_xor_sync",
};
struct Place {
    Kind kind = END;
    const char* file = "";
    int line = 0;
};

struct Fiber {
    Context context;
    dim3 index;
};

const Kernel* kernel = nullptr;
alignas(16) char arguments[MOST_BYTES];
Fiber fibers[MOST_THREADS];
Context scheduler;
int running = 0;   // thread of the block
int step = 1;      // from a lane to the one that runs after it: 1 or -1
int arrived = 0;   // lanes of the running warp that are at its meeting
Place meeting;     // where they are
int first = 0;     // thread that came there first
uint64_t row = 0;  // of the two, the one that the next shuffle of the warp writes
double rows[2][WARP];
uint64_t block_number = 0;  // over all launches
long launches = 0;

inline bool same(const Place& a, const Place& b) {
    return a.kind == b.kind && a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

inline void begin_message() {
    fprintf(stderr, "%s, block (%u, %u, %u): ", kernel->name, blockIdx.x, blockIdx.y, blockIdx.z);
}

[[noreturn]] __attribute__((noinline)) inline void fail(const Place& a, int thread_a, const Place& b,
                                                        int thread_b) {
    const auto describe = [](const Place& place, int thread) {
        if (place.kind == END)
            fprintf(stderr, "thread %d has returned", thread);
        else
            fprintf(stderr, "thread %d waits at %s in %s:%d", thread, NAMES[place.kind], place.file,
                    place.line);
    };
    begin_message();
    describe(a, thread_a);
    fprintf(stderr, ", but ");
    describe(b, thread_b);
    fprintf(stderr, "\n");
    abort();
}

[[noreturn]] __attribute__((noinline)) inline void fail_mask(unsigned mask, const Place& place) {
    begin_message();
    fprintf(stderr, "thread %d has mask 0x%x, not a whole warp's, at %s in %s:%d\n", running, mask,
            NAMES[place.kind], place.file, place.line);
    abort();
}

// The running thread is at `place`: on to the next one of its warp, or, after the last, to the scheduler.
__attribute__((noinline)) inline void meet(const Place& place) {
    const int thread = running;
    if (arrived == 0) {
        meeting = place;
        first = thread;
    } else if (!same(place, meeting)) {
        fail(meeting, first, place, thread);
    }
    if (++arrived == WARP) {
        switch_context(fibers[thread].context, scheduler);
    } else {
        running = thread + step;
        threadIdx = fibers[running].index;
        switch_context(fibers[thread].context, fibers[running].context);
    }
}

inline void check_mask(unsigned mask, const Place& place) {
    if (mask != 0xffffffffu) fail_mask(mask, place);
}

struct SyncWarp {
    Place place;

    void operator()(unsigned mask = 0xffffffffu) const {
        check_mask(mask, place);
        meet(place);
    }
};

// The lanes write to one of two rows in turn: who is already at the next shuffle leaves in peace what the
// others still read.
template <class T>
T shuffle(const Place& place, unsigned mask, T value, int from) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= sizeof(double));
    check_mask(mask, place);
    double* const slots = rows[row & 1];
    memcpy(&slots[running % WARP], &value, sizeof(T));
    meet(place);
    if (from >= 0 && from < WARP) memcpy(&value, &slots[from], sizeof(T));
    return value;
}

template <class T>
T shuffle_from(Place place, unsigned mask, T value, int from) {
    return shuffle(place, mask, value, from & (WARP - 1));  // as the GPU does
}

template <class T>
T shuffle_down(Place place, unsigned mask, T value, unsigned delta) {
    return shuffle(place, mask, value, delta < WARP ? running % WARP + int(delta) : -1);
}

template <class T>
T shuffle_up(Place place, unsigned mask, T value, unsigned delta) {
    return shuffle(place, mask, value, delta < WARP ? running % WARP - int(delta) : -1);
}

template <class T>
T shuffle_xor(Place place, unsigned mask, T value, int bits) {
    return shuffle(place, mask, value, (running % WARP) ^ bits);
}

// Shared memory is garbage when a block begins: the first thread of the block that comes to a declaration
// fills it with NaN. Nobody can have written to it before.
struct Shared {
    uint64_t block = 0;
};

inline void enter(Shared& shared, void* memory, size_t bytes) {
    if (shared.block == block_number) return;
    shared.block = block_number;
    memset(memory, 0xff, bytes);
}

inline void run_fiber() {
    for (;;) {  // a block each time
        kernel->run(arguments);
        meet(Place{});
    }
}

inline void prepare_fibers(int threads) {
    static const size_t page = sysconf(_SC_PAGESIZE);
    constexpr size_t WANTED = SRNAS_FAST_EMULATED_STACK;
    Stacks& stacks = srnas_fast_emulated_stacks;
    if (stacks.bytes < WANTED) {
        for (char*& mapped : stacks.of_warp) {
            if (mapped != nullptr) munmap(mapped, WARP * (page + stacks.bytes));
            mapped = nullptr;
        }
        stacks.bytes = (WANTED + page - 1) / page * page + page;  // one for what is unused below
    }
    const size_t pitch = page + stacks.bytes;
    for (int thread = 0; thread < threads; ++thread) {
        char*& mapped = stacks.of_warp[thread / WARP];
        if (mapped == nullptr) {
            void* const fresh = mmap(nullptr, WARP * pitch, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            bool good = fresh != MAP_FAILED;
            mapped = static_cast<char*>(fresh);
            for (int lane = 0; good && lane < WARP; ++lane)
                good = mprotect(mapped + lane * pitch, page, PROT_NONE) == 0;
            if (!good) {
                perror("no memory for the stacks of emulated threads");
                abort();
            }
        }
        // Stacks that begin at the same place of a page would share a few lines of the first-level cache.
        const size_t unused = thread % 16 * (page / 16);
        prepare(fibers[thread].context, mapped + thread % WARP * pitch + page, stacks.bytes - unused,
                run_fiber);
        const unsigned index = thread;
        fibers[thread].index =
            dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y);
    }
}

// Runs the lanes of a warp to their next meeting.
inline void run_warp(int warp) {
    arrived = 0;
    running = warp * WARP + (step > 0 ? 0 : WARP - 1);
    threadIdx = fibers[running].index;
    switch_context(scheduler, fibers[running].context);
    ++row;
}

inline void run_block(int warps) {
    Place block;
    int first_of_block = 0;
    do {
        for (int i = 0; i < warps; ++i) {
            do {
                run_warp(step > 0 ? i : warps - 1 - i);
            } while (meeting.kind > SYNCTHREADS);
            if (i == 0) {
                block = meeting;
                first_of_block = first;
            } else if (!same(meeting, block)) {
                fail(block, first_of_block, meeting, first);
            }
        }
    } while (block.kind != END);
}

inline void run_grid() {
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    prepare_fibers(threads);
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = dim3(x, y, z);
                step = ++block_number % 2 ? 1 : -1;
                run_block(threads / WARP);
            }
}

}  // namespace
}  // namespace srnas_fast_gpu::emulation

#define SRNAS_FAST_EXPORTED extern "C" __attribute__((visibility("default")))

// As cuLaunchKernel: 0, or an error of CUDA for what a GPU would refuse.
SRNAS_FAST_EXPORTED int srnas_fast_emulated_launch(void* function, unsigned grid_x, unsigned grid_y,
                                                   unsigned grid_z, unsigned block_x, unsigned block_y,
                                                   unsigned block_z, unsigned shared_bytes, void*,
                                                   void** parameters, void** extra) {
    using namespace srnas_fast_gpu::emulation;
    constexpr int INVALID_VALUE = 1, INVALID_HANDLE = 400;
    const Kernel* const launched = static_cast<const Kernel*>(function);
    if (launched == nullptr || launched->magic != MAGIC) return INVALID_HANDLE;
    if (grid_x - 1 >= 0x7fffffffu || grid_y - 1 >= 65535u || grid_z - 1 >= 65535u) return INVALID_VALUE;
    if (block_x - 1 >= 1024u || block_y - 1 >= 1024u || block_z - 1 >= 64u) return INVALID_VALUE;
    if (block_x * block_y * block_z > unsigned(MOST_THREADS)) return INVALID_VALUE;
    if (shared_bytes != 0 || parameters == nullptr || extra != nullptr) return INVALID_VALUE;  // not emulated
    if (block_x * block_y * block_z % WARP != 0) {
        fprintf(stderr, "%s: a block of %u x %u x %u threads, not of whole warps\n", launched->name, block_x,
                block_y, block_z);
        abort();
    }
    pthread_mutex_lock(&srnas_fast_emulated_stacks.lock);
    kernel = launched;
    memcpy(arguments, parameters[0], kernel->bytes);
    gridDim = dim3(grid_x, grid_y, grid_z);
    blockDim = dim3(block_x, block_y, block_z);
    run_grid();
    ++launches;
    pthread_mutex_unlock(&srnas_fast_emulated_stacks.lock);
    return 0;
}

// Since the library was loaded.
SRNAS_FAST_EXPORTED long srnas_fast_emulated_launches(void) { return srnas_fast_gpu::emulation::launches; }

// Stands after a declaration of `extern "C" __global__ void NAME(const Arguments a)`: the address of
// NAME_handle is to srnas_fast_emulated_launch what a CUfunction is to cuLaunchKernel.
#define EMULATED_KERNEL(NAME, Arguments)                                                               \
    static_assert(std::is_trivially_copyable<Arguments>::value && alignof(Arguments) <= 16 &&          \
                      sizeof(Arguments) <= srnas_fast_gpu::emulation::MOST_BYTES,                      \
                  "not the arguments of a kernel");                                                    \
    static void NAME##_run(const void* arguments) { NAME(*static_cast<const Arguments*>(arguments)); } \
    extern "C" {                                                                                       \
    __attribute__((visibility("default"))) srnas_fast_gpu::emulation::Kernel NAME##_handle = {         \
        srnas_fast_gpu::emulation::MAGIC, #NAME, NAME##_run, sizeof(Arguments)};                       \
    }                                                                                                  \
    static_assert(true, "takes a semicolon")

#define SHARED(type, name, count)                           \
    alignas(16) static type name[count];                    \
    static srnas_fast_gpu::emulation::Shared name##_shared; \
    srnas_fast_gpu::emulation::enter(name##_shared, static_cast<void*>(name), sizeof(name))

#define SRNAS_FAST_PLACE(kind) \
    (srnas_fast_gpu::emulation::Place{srnas_fast_gpu::emulation::kind, __FILE__, __LINE__})
#define __syncthreads() srnas_fast_gpu::emulation::meet(SRNAS_FAST_PLACE(SYNCTHREADS))
#define __syncwarp(...) srnas_fast_gpu::emulation::SyncWarp{SRNAS_FAST_PLACE(SYNCWARP)}(__VA_ARGS__)
#define __shfl_sync(...) srnas_fast_gpu::emulation::shuffle_from(SRNAS_FAST_PLACE(SHFL), __VA_ARGS__)
#define __shfl_down_sync(...) \
    srnas_fast_gpu::emulation::shuffle_down(SRNAS_FAST_PLACE(SHFL_DOWN), __VA_ARGS__)
#define __shfl_up_sync(...) srnas_fast_gpu::emulation::shuffle_up(SRNAS_FAST_PLACE(SHFL_UP), __VA_ARGS__)
#define __shfl_xor_sync(...) srnas_fast_gpu::emulation::shuffle_xor(SRNAS_FAST_PLACE(SHFL_XOR), __VA_ARGS__)

template <class T>
inline T __ldg(const T* address) {
    return *address;
}

inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
