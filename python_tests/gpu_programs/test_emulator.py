"""What stands in for a GPU does as one would, and ends the process where one would go wrong silently."""

import ctypes
import math
import re
import signal
import subprocess
import sys
import time

import pytest

from . import emulator
from .emulator import emulate

PROGRAM = """
#include "device.h"

constexpr unsigned WHOLE = 0xffffffffu;

struct Saxpy {
    int64_t n;
    double a;
    const float* x;
    float* y;
};
extern "C" __global__ void saxpy(const Saxpy s) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < s.n) s.y[i] += float(s.a) * __ldg(s.x + i);
}
EMULATED_KERNEL(saxpy, Saxpy);

// Every thread writes its number in the grid, which another thread of its block tells it.
struct Numbers { int* out; };
extern "C" __global__ void number(const Numbers a) {
    const int size = blockDim.x * blockDim.y * blockDim.z;
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    __shared__ int numbers[1024];
    numbers[size - 1 - thread] = block * size + size - 1 - thread;
    __syncthreads();
    a.out[block * size + thread] = numbers[thread];
}
EMULATED_KERNEL(number, Numbers);

template <class T>
__device__ T block_sum(T value) {
    SHARED(T, parts, 32);
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(WHOLE, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = 0;
    for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) sum += parts[warp];
    __syncthreads();  // the next call writes them again
    return sum;
}
template <class T>
struct Sum {
    const T* x;
    T* sums;
};
template <class T>
__device__ void sum_twice(const Sum<T>& a) {
    const T x = a.x[blockIdx.x * blockDim.x + threadIdx.x], once = block_sum(x), twice = block_sum(2 * x);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = once + twice;
}
extern "C" __global__ __launch_bounds__(1024) void sum_float(const Sum<float> a) { sum_twice(a); }
extern "C" __global__ void sum_double(const Sum<double> a) { sum_twice(a); }
EMULATED_KERNEL(sum_float, Sum<float>);
EMULATED_KERNEL(sum_double, Sum<double>);

struct Shuffles { double* out; };  // (5, 64)
extern "C" __global__ void shuffles(const Shuffles a) {
    const int thread = threadIdx.x;
    const double value = thread + 0.5;
    a.out[thread] = __shfl_sync(WHOLE, value, 7);
    a.out[64 + thread] = __shfl_down_sync(WHOLE, float(value), 30);
    __syncwarp();
    a.out[128 + thread] = __shfl_up_sync(WHOLE, value, 30);
    __syncwarp(WHOLE);
    a.out[192 + thread] = __shfl_xor_sync(WHOLE, thread, 5);
    a.out[256 + thread] = __uint_as_float(__float_as_uint(float(min(thread, max(3, 10)))));
}
EMULATED_KERNEL(shuffles, Shuffles);

// What each block finds in its shared memory.
struct Found { float* out; };
extern "C" __global__ void garbage(const Found a) {
    SHARED(float, tile, 64);
    a.out[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x];
    __syncthreads();
    tile[threadIdx.x] = 1;
}
EMULATED_KERNEL(garbage, Found);

// Without the __syncthreads() that is missing here each thread reads what one before it has, or has not, written.
extern "C" __global__ void races(const Found a) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = threadIdx.x;
    a.out[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x ? threadIdx.x - 1 : 0];
}
EMULATED_KERNEL(races, Found);

struct Times { int64_t times; };
extern "C" __global__ void meets(const Times a) {
    for (int64_t i = 0; i < a.times; ++i) __syncthreads();
}
EMULATED_KERNEL(meets, Times);

extern "C" __global__ void returns_early(const Times a) {
    if (threadIdx.x == a.times) return;
    __syncthreads();  // returns_early
}
EMULATED_KERNEL(returns_early, Times);
extern "C" __global__ void warp_returns_early(const Times a) {
    if (threadIdx.x / 32 == a.times) return;
    __syncthreads();  // warp_returns_early
}
EMULATED_KERNEL(warp_returns_early, Times);
extern "C" __global__ void returns_before_shuffle(const Times a) {
    if (threadIdx.x == a.times) return;
    __shfl_sync(WHOLE, 1, 0);  // returns_before_shuffle
}
EMULATED_KERNEL(returns_before_shuffle, Times);
extern "C" __global__ void meets_elsewhere(const Times a) {
    if (threadIdx.x / 32 == a.times)
        __syncthreads();  // meets_elsewhere
    else
        __syncthreads();  // meets_elsewhere
}
EMULATED_KERNEL(meets_elsewhere, Times);
extern "C" __global__ void shuffles_elsewhere(const Times a) {
    if (threadIdx.x % 32 > a.times)
        __shfl_xor_sync(WHOLE, 1, 1);  // shuffles_elsewhere
    else
        __shfl_xor_sync(WHOLE, 1, 1);  // shuffles_elsewhere
}
EMULATED_KERNEL(shuffles_elsewhere, Times);
extern "C" __global__ void shuffles_or_meets(const Times a) {
    if (threadIdx.x % 32 > a.times)
        __shfl_down_sync(WHOLE, 1, 1);  // shuffles_or_meets
    else
        __syncthreads();  // shuffles_or_meets
}
EMULATED_KERNEL(shuffles_or_meets, Times);
extern "C" __global__ void shuffles_in_part(const Times) {
    __shfl_down_sync(0xffu, 1, 1);  // shuffles_in_part
}
EMULATED_KERNEL(shuffles_in_part, Times);

__device__ int64_t deep(int64_t n) {
    volatile char room[1024];
    room[n % 1024] = char(n);
    return n == 0 ? 0 : deep(n - 1) + room[n % 1024];
}
extern "C" __global__ void overflows(const Times a) {
    if (deep(a.times) == 1) __syncthreads();
}
EMULATED_KERNEL(overflows, Times);
"""
NAMES = [line.split("(")[1].split(",")[0] for line in PROGRAM.splitlines() if line.startswith("EMULATED_KERNEL(")]
LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_void_p),
)


def launch(emulated, name, grid, block, *words, shared=0):
    """Launches a kernel whose arguments are words of 8 bytes, and returns the driver's answer."""
    arguments = (ctypes.c_uint64 * len(words))(*words)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    function = emulated.functions[NAMES.index(name)]
    return LAUNCH(emulated.launch)(function, *grid, *block, shared, None, parameters, None)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return emulate(PROGRAM, NAMES, tmp_path_factory.mktemp("emulated"))


def test_saxpy(emulated):
    n = 1000
    x, y = (ctypes.c_float * n)(*range(n)), (ctypes.c_float * n)(*[1] * n)
    before = emulated.launches()
    two = ctypes.c_uint64.from_buffer(ctypes.c_double(2)).value
    assert launch(emulated, "saxpy", (8, 1, 1), (128, 1, 1), n, two, ctypes.addressof(x), ctypes.addressof(y)) == 0
    assert list(y) == [1 + 2 * i for i in range(n)]
    assert emulated.launches() == before + 1


@pytest.mark.parametrize("block", [(4, 8, 2), (32, 1, 1), (1024, 1, 1), (8, 2, 64)])
def test_indices(emulated, block):
    grid = (2, 3, 2)
    out = (ctypes.c_int * (math.prod(grid) * math.prod(block)))()
    assert launch(emulated, "number", grid, block, ctypes.addressof(out)) == 0
    assert list(out) == list(range(len(out)))


@pytest.mark.parametrize("block", [32, 128, 1024])
@pytest.mark.parametrize(("name", "number"), [("sum_float", ctypes.c_float), ("sum_double", ctypes.c_double)])
def test_block_sum(emulated, name, number, block):
    x = (number * (3 * block))(*[1 / (1 + i) for i in range(3 * block)])
    found = []
    for _ in range(2):
        sums = (number * 3)()
        assert launch(emulated, name, (3, 1, 1), (block, 1, 1), ctypes.addressof(x), ctypes.addressof(sums)) == 0
        found.append(list(sums))
    expected = [3 * math.fsum(x[i * block : (i + 1) * block]) for i in range(3)]
    assert found[0] == pytest.approx(expected, rel=1e-6 if number is ctypes.c_float else 1e-14)
    assert found[0] == found[1]  # bit for bit, though the threads ran in another order


def test_shuffles(emulated):
    out = (ctypes.c_double * 320)()
    assert launch(emulated, "shuffles", (1, 1, 1), (64, 1, 1), ctypes.addressof(out)) == 0
    lanes = [(warp, lane) for warp in (0, 32) for lane in range(32)]
    assert out[:64] == [warp + 7.5 for warp, _ in lanes]
    assert out[64:128] == [warp + lane + (30.5 if lane < 2 else 0.5) for warp, lane in lanes]
    assert out[128:192] == [warp + lane - (29.5 if lane >= 30 else -0.5) for warp, lane in lanes]
    assert out[192:256] == [warp + (lane ^ 5) for warp, lane in lanes]
    assert out[256:] == [min(thread, 10) for thread in range(64)]


def test_shared_memory_begins_as_nan(emulated):
    out = (ctypes.c_float * 192)()
    assert launch(emulated, "garbage", (3, 1, 1), (64, 1, 1), ctypes.addressof(out)) == 0
    assert all(map(math.isnan, out))


def test_race_shows(emulated):
    """Whichever way threads run first, every other block runs the other way."""
    out = (ctypes.c_float * 128)()
    assert launch(emulated, "races", (2, 1, 1), (64, 1, 1), ctypes.addressof(out)) == 0
    assert sum(map(math.isnan, out)) == 63


def test_refused(emulated):
    invalid_value, invalid_handle = 1, 400
    for grid, block in [((0, 1, 1), (32, 1, 1)), ((1, 65536, 1), (32, 1, 1)), ((1, 1, 1), (1024, 2, 1))]:
        assert launch(emulated, "meets", grid, block, 1) == invalid_value
    assert launch(emulated, "meets", (1, 1, 1), (32, 1, 1), 1, shared=16) == invalid_value
    elsewhere = ctypes.create_string_buffer(64)
    answer = LAUNCH(emulated.launch)(ctypes.addressof(elsewhere), 1, 1, 1, 32, 1, 1, 0, None, None, None)
    assert answer == invalid_handle


def misused(emulated, name, times, block=128):
    """The end of a process that launches a kernel which makes a mistake: its exit status and last words."""
    index = NAMES.index(name)
    program = f"""
import ctypes
library = ctypes.CDLL({emulated.library._name!r})
function = ctypes.addressof(ctypes.c_char.in_dll(library, {NAMES[index] + "_handle"!r}))
parameters = (ctypes.c_void_p * 1)(ctypes.addressof(times := ctypes.c_uint64({times})))
launch = library.srnas_fast_emulated_launch
launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
launch(function, 1, 1, 1, {block}, 1, 1, 0, None, parameters, None)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return run.returncode, run.stderr


def places(name):
    """Where the text has a comment with that name."""
    return [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith(f"// {name}")]


@pytest.mark.parametrize(
    ("name", "times", "words"),
    [
        ("returns_early", 5, "thread 0 waits at __syncthreads in FILE:{0}, but thread 5 has returned"),
        ("returns_early", 0, "thread 0 has returned, but thread 1 waits at __syncthreads in FILE:{0}"),
        ("warp_returns_early", 2, "thread 0 waits at __syncthreads in FILE:{0}, but thread 64 has returned"),
        ("returns_before_shuffle", 40, "thread 32 waits at __shfl_sync in FILE:{0}, but thread 40 has returned"),
        (
            "meets_elsewhere",
            3,
            "thread 0 waits at __syncthreads in FILE:{1}, but thread 96 waits at __syncthreads in FILE:{0}",
        ),
        (
            "shuffles_elsewhere",
            6,
            "thread 0 waits at __shfl_xor_sync in FILE:{1}, but thread 7 waits at __shfl_xor_sync in FILE:{0}",
        ),
        (
            "shuffles_or_meets",
            6,
            "thread 0 waits at __syncthreads in FILE:{1}, but thread 7 waits at __shfl_down_sync in FILE:{0}",
        ),
        ("shuffles_in_part", 0, "thread 0 has mask 0xff, not a whole warp's, at __shfl_down_sync in FILE:{0}"),
    ],
)
def test_misuse(emulated, name, times, words):
    status, message = misused(emulated, name, times)
    assert status == -signal.SIGABRT
    words = words.format(*places(name))
    assert re.sub(r"saxpy_\w+\.cpp", "FILE", message) == f"{name}, block (0, 0, 0): {words}\n"


def test_part_of_a_warp(emulated):
    status, message = misused(emulated, "meets", 1, block=48)
    assert status == -signal.SIGABRT and "meets: a block of 48 x 1 x 1 threads, not of whole warps" in message


def test_stack_overflow(emulated):
    assert launch(emulated, "overflows", (1, 1, 1), (1024, 1, 1), 30) == 0
    assert misused(emulated, "overflows", 1000)[0] == -signal.SIGSEGV


def test_libraries_share_nothing_but_stacks(emulated, tmp_path):
    """A template of the same name in another library, with more shared memory, and more stack."""
    text = PROGRAM.replace("SHARED(T, parts, 32)", "SHARED(T, parts, 1000)")
    other = emulate(text, NAMES, tmp_path, {"SRNAS_FAST_EMULATED_STACK": "200000"})
    before = emulated.launches()
    for library in (emulated, other, emulated):
        x, sums = (ctypes.c_float * 64)(*range(64)), (ctypes.c_float * 1)()
        addresses = ctypes.addressof(x), ctypes.addressof(sums)
        assert launch(library, "sum_float", (1, 1, 1), (64, 1, 1), *addresses) == 0
        assert list(sums) == [3 * 64 * 63 / 2]
    assert (emulated.launches(), other.launches()) == (before + 2, 1)
    assert launch(other, "overflows", (1, 1, 1), (32, 1, 1), 150) == 0


def test_without_assembly(tmp_path):
    """Where nobody has written the switch for the processor."""
    slow = emulate(PROGRAM, NAMES, tmp_path, {"SRNAS_FAST_EMULATE_UCONTEXT": "1"})
    x, sums = (ctypes.c_double * 256)(*range(256)), (ctypes.c_double * 2)()
    addresses = ctypes.addressof(x), ctypes.addressof(sums)
    assert launch(slow, "sum_double", (2, 1, 1), (128, 1, 1), *addresses) == 0
    assert list(sums) == [3 * 127 * 64, 3 * (127 * 64 + 128 * 128)]


def test_same_text_is_compiled_once(emulated, tmp_path, monkeypatch):
    monkeypatch.setattr(emulator, "_compiled", None)
    assert emulate(PROGRAM, NAMES, tmp_path).functions == emulated.functions
    assert [path.read_text() for path in tmp_path.iterdir()] == [PROGRAM]


def test_error_of_the_compiler(tmp_path):
    with pytest.raises(RuntimeError, match="does not compile"):
        emulate("no program", ["none"], tmp_path)


def test_speed(emulated):
    """Says what a block of 128 threads costs that meet 20 times: far below a millisecond."""
    begin = time.perf_counter()
    assert launch(emulated, "meets", (100, 1, 1), (128, 1, 1), 20) == 0
    print(f"{(time.perf_counter() - begin) / 100 * 1e6:.0f} us a block")
