"""What a mixed operation on a GPU costs the host: everything but the kernels, with a driver that launches nothing."""

import ctypes
import shutil
import subprocess
import time

import pytest
import torch

from srnas_fast import MixedOp
from srnas_fast.backends import cpu_kernels
from srnas_fast.mixed import gpu
from srnas_fast.mixed.gpu_call import Code
from srnas_fast.mixed.gpu_program import KERNELS
from srnas_fast.spaces.hinas.operations import CANDIDATES

pytestmark = pytest.mark.slow  # a figure

MOST = 250e-6  # seconds, forward and backward
NOTHING = """
int launch(void* f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared,
           void* stream, void** parameters, void** extra) { return 0; }
"""


@pytest.fixture
def nothing_launched(monkeypatch, tmp_path):
    """From now on mixed operations on the CPU go the way of those on a GPU, up to the launch."""
    if not shutil.which("gcc") or cpu_kernels() is None:
        pytest.skip("there is no C compiler on PATH")
    (tmp_path / "driver.c").write_text(NOTHING)
    subprocess.run(["gcc", "-shared", "-fPIC", "driver.c", "-o", "driver.so"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "driver.so"))
    launch = ctypes.cast(library.launch, ctypes.c_void_p).value
    codes = {}

    def code_of(made, x, parameter):
        program = gpu.program_of(made, x.dtype, parameter)
        return codes.setdefault(program, Code(program, [1] * len(KERNELS), launch, cpu_kernels().launch_all))

    monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(gpu, "code_of", code_of)
    yield
    del library


def test_host_time(nothing_launched):
    op = MixedOp([make(8, "leaky", False) for make in CANDIDATES.values()])
    x, weights = torch.randn(1, 8, 4, 4, requires_grad=True), torch.rand(len(op.ops), requires_grad=True)
    inputs, dy = [x, weights, *op.parameters()], torch.randn(1, 8, 4, 4)

    def passes(count):
        began = time.thread_time()  # of the processor: others may share it
        for _ in range(count):
            torch.autograd.grad(op(x, weights), inputs, dy)
        return (time.thread_time() - began) / count

    passes(20)
    best = min(passes(50) for _ in range(20))
    print(f"forward and backward of a HiNAS operation, launches aside: {1e6 * best:.0f} us")
    assert best < MOST
