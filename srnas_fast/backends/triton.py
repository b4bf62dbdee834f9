"""The Triton kernels: on GPUs of compute capability 7.0 and up, or interpreted on the CPU."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from srnas_fast.backends.build import cache_folder
from srnas_fast.backends.choice import forced, missing, on_its_device, require_card
from srnas_fast.backends.toolchain import Unavailable

TUNE = "SRNAS_FAST_TUNE"
LEAST = (7, 0)  # compute capability
LEAST_TRITON = (3, 4)  # that of torch 2.8; earlier ones compile no kernel that is given tuples of constants
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # of storage; computed in float32
FILES = {  # the kernels by the file they are in, where that has another name
    "merge_kernels_backward": "merge_kernels",
    "multi_depthwise_backward": "multi_depthwise",
    "separable_moments": "separable_sum",
    "shuffle_concat_backward": "shuffle_concat",
    "simplex_project_backward": "simplex_project",
    "weighted_sum_backward": "weighted_sum",
}


def triton_kernel(
    name: str, *tensors: torch.Tensor | None, types: Sequence[torch.dtype] = TYPES
) -> Callable[..., Any] | None:
    """The Triton kernel of that name if it serves these tensors, else None: then the caller computes in another way.

    Args:
        name: of a function in ``srnas_fast.kernels``.
        tensors: the images it is to work on, on one device; None, but for the first one, counts as no tensor.
        types: of tensors that it serves.

    Raises:
        InputError: SRNAS_FAST_BACKEND names no backend, or Triton where it cannot be had.

    >>> triton_kernel("weighted_sum", torch.zeros(2, dtype=torch.float64)) is None
    True
    """
    choice = forced()
    if choice not in (None, "triton") or (choice is None and tensors[0].is_cpu):
        return None
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and torch.cuda.is_available()):
        return None
    failure = why_not(device)
    if failure:
        new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST
        missing("triton", "Triton kernels", failure, expected=new)  # of an older card nobody expects them
        return None
    if any(tensor.dtype not in types for tensor in given):
        return None
    _tuning().folder = cache_folder() if os.environ.get(TUNE) == "1" else None
    function = _function(name)
    return function if device.type == "cpu" else on_its_device(device, function)


@cache
def _function(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"srnas_fast.kernels.{FILES.get(name, name)}"), name)


@cache
def _tuning() -> ModuleType:
    return import_module("srnas_fast.kernels.tuning")


def why_not(device: torch.device) -> Unavailable | None:
    """What keeps Triton from a GPU, or from the CPU where there is none; None if nothing does."""
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return Unavailable("there is no CUDA device", "use a machine with one")
    return _why_not_on(device.index or 0)


@cache
def _why_not_on(index: int) -> Unavailable | None:
    try:
        require_card(index, LEAST, "Triton needs")
    except Unavailable as failure:
        return failure
    try:
        import triton
    except Exception as error:  # one that does not go with this Python or this torch fails in other ways, too
        return Unavailable(f"Triton cannot be imported ({error})", "install the Triton that belongs to this torch")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LEAST_TRITON:
        shown = ".".join(map(str, LEAST_TRITON))
        return Unavailable(f"Triton {triton.__version__} is too old, they need {shown}", "pip install 'torch>=2.8'")
    return _trial(torch.device("cuda", index))


def _trial(device: torch.device) -> Unavailable | None:
    """Why the smallest of our kernels does not run: Triton needs a C compiler, a driver that it knows, and more."""
    try:
        weighted_sum = _function("weighted_sum")
        ones = torch.ones(2, device=device)
        y = torch.empty_like(ones)
        with torch.cuda.device(device):
            weighted_sum(y, False, ones, [ones, ones], None, None)
        found = y.tolist()
    except torch.OutOfMemoryError:
        raise  # says nothing about Triton, and will be another time
    except Exception as error:  # its compiler, its launcher and the driver fail in all sorts of ways
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return Unavailable(
            f"a trial of them failed ({first})", "install a C compiler and the Triton that belongs to this torch"
        )
    if found != [2.0, 2.0]:
        return Unavailable(f"1 + 1 is {found[0]} by them here", "install the Triton that belongs to this torch")
    return None
