"""What stands in for a GPU does as one would, and ends the process where one would hang."""

import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
PROGRAM = """
#include <cassert>

#include "block_sum.h"

using namespace srnas_fast_cuda;

// Every thread writes its number in the grid, which it learns in part from its neighbours.
__global__ void number(int* out) {
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    __shared__ int numbers[48];
    const int last = 47 - thread;
    numbers[last] = block * 48 + last;
    __syncthreads();
    out[block * 48 + thread] = numbers[thread];
}

__global__ void shuffle(int* down, int* across, double* from) {
    const int lane = threadIdx.x;
    down[lane] = __shfl_down_sync(WHOLE_WARP, lane, 30);
    across[lane] = __shfl_xor_sync(WHOLE_WARP, lane, 5);
    from[lane] = __shfl_sync(WHOLE_WARP, lane + 0.5, 7);
}

__global__ void sum(const float* x, float* sums) {
    const float first = block_sum<96>(x[threadIdx.x]), second = block_sum<96>(2 * x[threadIdx.x]);
    if (threadIdx.x == 0) sums[blockIdx.x] = first + second;
}

__global__ void leaves_early() {
    if (threadIdx.x > 5) return;
    __syncthreads();
}

int main(int arguments, char**) {
    if (arguments > 1) {
        LAUNCH(leaves_early, 1, 64, nullptr);
        return 0;
    }
    int numbers[2 * 3 * 2 * 48], down[32], across[32];
    double from[32];
    LAUNCH(number, dim3(2, 3, 2), dim3(4, 6, 2), nullptr, numbers);
    for (int i = 0; i < 2 * 3 * 2 * 48; ++i) assert(numbers[i] == i);
    LAUNCH(shuffle, 1, 32, nullptr, down, across, from);
    for (int i = 0; i < 32; ++i) assert(down[i] == (i < 2 ? i + 30 : i) && across[i] == (i ^ 5) && from[i] == 7.5);
    float x[96], sums[3];
    for (int i = 0; i < 96; ++i) x[i] = i;
    LAUNCH(sum, 3, 96, nullptr, x, sums);
    for (const float found : sums) assert(found == 3 * 96 * 95 / 2);
    bool refused = false;
    try {
        LAUNCH(leaves_early, 1, 1025, nullptr);
    } catch (const std::runtime_error&) {
        refused = true;
    }
    assert(refused);
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ on PATH")
def test_program(tmp_path):
    (tmp_path / "program.cpp").write_text(PROGRAM)
    flags = ["-std=c++20", "-O1", "-pthread", "-DSRNAS_FAST_EMULATE", f"-I{CUDA}", "-Wall", "-Wextra", "-Werror"]
    program = tmp_path / "program"
    subprocess.run(["g++", *flags, tmp_path / "program.cpp", "-o", program], check=True)
    subprocess.run([program], check=True, timeout=60)
    early = subprocess.run([program, "early"], capture_output=True, text=True, timeout=60)
    assert early.returncode != 0 and "threads of a block wait at lines" in early.stderr
