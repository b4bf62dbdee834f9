"""Programs on a GPU: whether they serve, and their kernels, which NVRTC compiles at first use."""

import threading
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from srnas_fast.backends import cpu, driver, triton
from srnas_fast.backends.choice import forced, missing
from srnas_fast.backends.cubins import Source, cubins
from srnas_fast.backends.gpu import refuse_capture, why_not
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.mixed.gpu_call import Code
from srnas_fast.mixed.gpu_program import KERNELS, MOST_WORDS, SOURCES, GpuProgram
from srnas_fast.mixed.program import Program
from srnas_fast.primitives.images import wide

TYPES = (torch.float32, torch.float16, torch.bfloat16)  # of images and of parameters
MOST_CHANNELS = 4096  # of images: far beyond what anybody has tried
FARTHEST = 2**31  # inside an image, elements are counted in 32 bits

_codes: dict[tuple[GpuProgram, torch.device], Code | None] = {}
_attempt = threading.Lock()


def on_gpu(x: Tensor) -> bool:
    """Whether images are for a GPU's programs."""
    return x.is_cuda


def stored(x: Tensor) -> torch.dtype:
    """The type in which a program reads images like x: on a GPU their own, on a CPU that in which it computes."""
    return x.dtype if on_gpu(x) else wide(x)


def takes(x: Tensor) -> bool:
    """Whether the kernels read images of this type and extent on this device; told once where there can be none."""
    if x.dtype not in TYPES or forced() not in (None, "cuda"):
        return False
    failure = why_not(x.device)
    if failure:
        _tell(failure, x.device)
        return False
    return x.shape[1] <= MOST_CHANNELS and indexes(x) and x.shape[0] * x.shape[2] * x.shape[3] < FARTHEST


def indexes(x: Tensor) -> bool:
    """Whether the elements of an image can be counted in 32 bits."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) < FARTHEST


def _tell(failure: Unavailable, device: torch.device) -> None:
    """Say once why there are no programs on a GPU.

    Raises:
        InputError: they are forced.
    """
    instead = "Mixed operations run in branches, with the same results"
    known = "triton" if torch.cuda.get_device_capability(device) >= triton.LEAST else "reference"
    missing("cuda", "GPU programs", failure, instead, expected=not torch.version.hip, known=known)


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
    if (program, x.device) not in _codes:
        load([program], x.device)
    return _codes[program, x.device]


def load(programs: Sequence[GpuProgram], device: torch.device) -> None:
    """Compile those that were not yet, all at once, and load them."""
    with _attempt:
        new = [program for program in dict.fromkeys(programs) if (program, device) not in _codes]
        few = [program for program in new if program.words <= MOST_WORDS]
        loaded = _load(few, device) if few else {}
        _codes.update({(program, device): loaded.get(program) for program in new})


def _load(programs: list[GpuProgram], device: torch.device) -> dict[GpuProgram, Code]:
    """Nothing where they cannot be had, which is told once.

    Raises:
        RuntimeError: a CUDA graph is being captured, which could not go on.
    """
    refuse_capture()
    try:
        images = iter(cubins([source for program in programs for source in sources(program)], capability_of(device)))
        found, launch_all, codes = driver.find(), cpu.outcome().module.launch_all, {}
        index = device.index or 0
        for program in programs:
            functions = [found.load(next(images).code, [f"srnas_fast_{name}"], index)[0] for name in KERNELS]
            codes[program] = Code(program, functions, found.launch, launch_all, found.context(index))
        return codes
    except torch.OutOfMemoryError:
        raise  # says nothing about programs
    except RuntimeError as error:  # it was tried with a kernel of a line: this is a fault of ours
        *_, last = (str(error).strip() or type(error).__name__).splitlines()
        _tell(Unavailable(f"they do not compile or load ({last[:200]})", "report it, with `srnas-fast doctor`"), device)
    except Unavailable as failure:
        _tell(failure, device)
    return {}


@cache
def capability_of(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def sources(program: GpuProgram) -> list[Source]:
    """What is compiled for a program: a text for each of its kernels."""
    return [
        Source(f'#define PASS {number}\n#include "stage.h"\n{program.constants}#include "kernels.h"\n', _headers())
        for number in range(len(KERNELS))
    ]


@cache
def _headers() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in SOURCES.glob("*.h") if path.name != "emulation.h"}
