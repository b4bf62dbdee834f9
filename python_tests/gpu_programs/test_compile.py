"""The kernels of the published spaces' programs as NVRTC compiles them for each kind of GPU: pytest -m slow -rP shows
their registers and shared memory."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.backends import nvrtc
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.mixed import gpu, gpu_program
from srnas_fast.mixed import program as programs
from srnas_fast.spaces import find_space

from .cases import darts, dlsr, hinas

pytestmark = pytest.mark.slow

MOST_SHARED = 48 << 10  # bytes a block: a kernel that needs no permission for more
ALL = (8, 6)  # for this one every program is compiled, for the others a few


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    spilled: int
    shared: int
    seconds: float


@cache
def compiler() -> nvrtc.Nvrtc:
    try:
        return nvrtc.find()
    except Unavailable as failure:
        pytest.skip(failure.reason)


def program_of(op: MixedOp, train: bool = True, dtype: torch.dtype = torch.float32) -> gpu_program.GpuProgram:
    """What is compiled for a mixed operation."""
    plan = op.train(train)._prepare().plan
    (channels,) = set().union(*(group.inputs for group in plan.groups))
    served = programs.served(plan, channels, partial(gpu_program.takes, outside=True))
    text, _ = programs.describe(plan, served, channels, op.partial)
    return gpu_program.GpuProgram(programs.program_of(text), dtype, torch.float32)


def compiled(program: gpu_program.GpuProgram, capability: tuple[int, int]) -> list[Kernel]:
    number = 10 * capability[0] + capability[1]
    if number not in compiler().architectures:
        version = ".".join(map(str, compiler().version))
        pytest.skip(f"NVRTC {version} does not compile for {capability[0]}.{capability[1]}")

    def one(name: str, source) -> Kernel:
        begun = time.thread_time()
        log = compiler().compile(source.text, source.headers, capability, ["--ptxas-options=-v"]).log
        seconds = time.thread_time() - begun
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
        shared = re.search(r"(\d+) bytes smem", log)
        stack, spilled = (max(int(frame[i]) for frame in frames) for i in range(2))
        registers = int(re.search(r"Used (\d+) registers", log)[1])
        return Kernel(name, registers, stack, spilled, int(shared[1]) if shared else 0, seconds)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(one, gpu_program.KERNELS, gpu.sources(program)))


def check(program: gpu_program.GpuProgram, capability: tuple[int, int]) -> None:
    kernels = compiled(program, capability)
    print(f"\n{program.warps} warps a block\nkernel      registers  stack  spilled  shared  seconds")
    for name, registers, stack, spilled, shared, seconds in kernels:
        print(f"{name:12}{registers:9}{stack:7}{spilled:9}{shared:8}{seconds:9.1f}")
    assert not [kernel.name for kernel in kernels if kernel.stack or kernel.spilled]
    assert max(kernel.shared for kernel in kernels) <= MOST_SHARED


BENCHES: dict[str, Callable[[], nn.Module]] = {
    "hinas": lambda: MixedOp(hinas(12)),
    "darts": lambda: MixedOp(darts(16)),
    "dlsr": lambda: MixedOp(dlsr(48)),
}
CHOSEN = [((6, 1), "hinas"), ((6, 1), "darts"), ((6, 1), "dlsr"), ((7, 5), "darts"), (ALL, "darts")]
CHOSEN += [((9, 0), "hinas"), ((9, 0), "darts"), ((12, 0), "hinas"), ((12, 0), "darts")]


@pytest.mark.parametrize(("capability", "name"), CHOSEN, ids=lambda value: str(value).replace(", ", "."))
def test_no_kernel_spills(capability, name):
    check(program_of(BENCHES[name]()), capability)


@pytest.mark.parametrize(
    ("channels", "stride", "partial", "train", "dtype"),
    [
        (16, 2, 1, True, torch.float16),
        (16, 1, 1, False, torch.bfloat16),
        (64, 2, 1, True, torch.float32),
        (16, 2, 4, True, torch.float32),
        (8, 1, 4, True, torch.float32),
        (4, 1, 4, True, torch.float32),
    ],
)
def test_darts_and_pc_darts(channels, stride, partial, train, dtype):
    check(program_of(MixedOp(darts(channels, stride), partial=partial), train, dtype), ALL)


@pytest.mark.parametrize(("space", "train"), [("hinas-denoise", True), ("dlsr-x2", False)])
def test_all_of_a_space(space, train):
    """As its paper has it."""
    found = find_space(space)
    supernet = found.supernet(found.supernet_config(**found.search_preset("paper").get("supernet", {})), MixedOp)
    programs_by_text = {}
    for op in supernet.modules():
        if isinstance(op, MixedOp):
            program = program_of(op, train)
            programs_by_text[program.made.text] = program
    assert programs_by_text
    for program in programs_by_text.values():
        check(program, ALL)
