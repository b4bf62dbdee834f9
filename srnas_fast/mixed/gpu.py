"""Programs on a GPU: whether they serve, and their kernels, which NVRTC compiles at first use."""

from functools import cache

import torch
from torch import Tensor

from srnas_fast.backends import cpu, driver
from srnas_fast.backends.choice import forced, missing, require_card
from srnas_fast.backends.cubins import Source, cubins
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.mixed.gpu_call import Code
from srnas_fast.mixed.gpu_program import KERNELS, MOST_WORDS, SOURCES, GpuProgram
from srnas_fast.mixed.program import Program

TYPES = (torch.float32, torch.float16, torch.bfloat16)  # of images and of parameters
LEAST = (6, 1)  # compute capability
_FARTHEST = 2**31  # inside an image, elements are counted in 32 bits

_codes: dict[tuple[GpuProgram, torch.device], Code | None] = {}


def on_gpu(x: Tensor) -> bool:
    """Whether images are for a GPU's programs."""
    return x.is_cuda


def takes(x: Tensor) -> bool:
    """Whether the kernels read images of this type and extent on this device."""
    if x.dtype not in TYPES or forced() not in (None, "cuda") or not _is_there(x.device):
        return False
    extent = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return extent < _FARTHEST and x.shape[0] * x.shape[2] * x.shape[3] < _FARTHEST


@cache
def _is_there(device: torch.device) -> bool:
    """Whether this machine can compile for the device and launch; told once where it cannot."""
    try:
        require(device)
    except Unavailable as failure:
        missing("cuda", "GPU programs", failure, "Mixed operations run in branches: slower, same results")
        return False
    return True


def require(device: torch.device) -> None:
    """That a card, its driver, NVRTC and the C++ code that launches are there.

    Raises:
        Unavailable: one of them is not.
    """
    from srnas_fast.backends import nvrtc

    require_card(device.index or 0, LEAST, "programs need")
    built = cpu.outcome()
    if isinstance(built, Unavailable):
        raise built
    driver.find()
    nvrtc.find().target(torch.cuda.get_device_capability(device))


def program_of(made: Program, pixel: torch.dtype, parameter: torch.dtype) -> GpuProgram:
    """What a program is for images and parameters of these types."""
    found = made.on_gpu.get((pixel, parameter))
    if found is None:
        found = made.on_gpu[pixel, parameter] = GpuProgram(made, pixel, parameter)
    return found


def code_of(made: Program, x: Tensor, parameter: torch.dtype) -> Code | None:
    """A program's kernels for images like x and parameters of a type, compiled and loaded once; None where it is not to
    be had, which is told once."""
    program = program_of(made, x.dtype, parameter)
    key = program, x.device
    if key not in _codes:
        _codes[key] = _load(program, x.device)
    return _codes[key]


def sources(program: GpuProgram) -> list[Source]:
    """What is compiled for a program: a text for each of its kernels."""
    return [
        Source(f'#define PASS {number}\n#include "stage.h"\n{program.constants}#include "kernels.h"\n', _headers())
        for number in range(len(KERNELS))
    ]


@cache
def _headers() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in SOURCES.glob("*.h") if path.name != "emulation.h"}


def _load(program: GpuProgram, device: torch.device) -> Code | None:
    if program.words > MOST_WORDS:
        return None
    try:
        images = cubins(sources(program), torch.cuda.get_device_capability(device))
        found = driver.find()
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # a context is there from now on
            functions = [
                found.load(image.code, [f"srnas_fast_{name}"])[0] for name, image in zip(KERNELS, images, strict=True)
            ]
    except Unavailable as failure:
        missing("cuda", "GPU programs", failure, "Mixed operations run in branches: slower, same results")
        return None
    return Code(program, functions, found.launch, cpu.outcome().module.launch_all)
