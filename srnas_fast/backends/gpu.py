"""What programs on a GPU need of a machine: a card, NVRTC, the driver, and the C++ code that launches."""

from functools import cache

import torch

from srnas_fast.backends import cpu, driver, nvrtc
from srnas_fast.backends.choice import require_card
from srnas_fast.backends.cubins import Source, cubins
from srnas_fast.backends.toolchain import Unavailable

LEAST = (6, 1)  # compute capability
TRIAL = 'extern "C" __global__ void srnas_fast_trial(int* x) { x[threadIdx.x] += 1; }\n'


def why_not(device: torch.device) -> Unavailable | None:
    """What keeps programs from a device, found out once in a process; None if nothing does.

    The first call builds the C++ code that launches, if this machine has not done so before, and loads a kernel of a
    line, which tells whether this driver takes what this NVRTC makes.
    """
    failure = look(device)
    return failure or _why_not_on(device.index or 0)


def look(device: torch.device) -> Unavailable | None:
    """What keeps programs from a device, as far as can be known without building anything."""
    if device.type != "cuda":
        return Unavailable("there is no CUDA device", "use a machine with one")
    return _missing_on(device.index or 0)


@cache
def _missing_on(index: int) -> Unavailable | None:
    try:
        require_card(index, LEAST, "programs need")
        nvrtc.find().target(torch.cuda.get_device_capability(index))
        driver.find()
    except Unavailable as failure:
        return failure
    return None


@cache
def _why_not_on(index: int) -> Unavailable | None:
    built = cpu.outcome()
    if isinstance(built, Unavailable):
        return Unavailable(f"the C++ code that launches them cannot be had ({built.reason})", built.remedy)
    return _trial(torch.device("cuda", index))


def stream(device: torch.device) -> int:
    """The handle of the stream that torch computes in on a GPU; 0, the one that is always there, elsewhere."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def refuse_capture() -> None:
    """Raises RuntimeError where a CUDA graph is being captured: what loads code would break it."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a mixed operation meets images of a new kind inside the capture of a CUDA graph, where its kernels cannot "
            "be loaded; run it once before the capture"
        )


def _trial(device: torch.device) -> Unavailable | None:
    """Why the smallest kernel is not compiled or loaded: an NVRTC that is not whole, a driver that is older."""
    refuse_capture()
    try:
        [image] = cubins([Source(TRIAL, {})], torch.cuda.get_device_capability(device))
        driver.find().load(image.code, ["srnas_fast_trial"], device.index)
    except Unavailable as failure:
        return failure
    except torch.OutOfMemoryError:
        raise  # says nothing about programs, and will be another time
    except RuntimeError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return Unavailable(f"a trial of them failed ({first})", "install the NVRTC and the driver that torch asks for")
    return None
