"""The Triton kernels, where they are asked for: on GPUs of compute capability 7.0 and up, or interpreted on the CPU."""

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch

from srnas_fast.backends.choice import VARIABLE, forced
from srnas_fast.errors import InputError

LEAST = (7, 0)  # compute capability
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

    Only ``SRNAS_FAST_BACKEND=triton`` brings them in: they compute what the others do in the interpreter and compile
    for every card, but none of them has run on one yet.

    Args:
        name: of a function in ``srnas_fast.kernels``.
        tensors: the images it is to work on; None counts as no tensor.
        types: of tensors that it serves.

    Raises:
        InputError: the tensors are on several devices; SRNAS_FAST_BACKEND names no backend, or Triton where it cannot
            be had.

    >>> triton_kernel("weighted_sum", torch.zeros(2, dtype=torch.float64)) is None
    True
    """
    if forced() != "triton":
        return None
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device
    if device.type == "cpu" and torch.cuda.is_available():
        return None
    if any(tensor.device != device for tensor in given):
        places = ", ".join(sorted({str(tensor.device) for tensor in given}))
        raise InputError(f"{name} got tensors on {places}; move them to one device")
    reason = why_not(device)
    if reason:
        raise InputError(f"{VARIABLE} is 'triton', but {reason}; unset it for the best backend there is")
    if any(tensor.dtype not in types for tensor in given):
        return None
    function = getattr(import_module(f"srnas_fast.kernels.{FILES.get(name, name)}"), name)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return partial(_on, device, function)  # Triton launches on the current one
    return function


def why_not(device: torch.device) -> str | None:
    """What keeps Triton from a GPU, or from the CPU where there is none, in a few words; None if nothing does."""
    if device.type == "cpu":
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "there is no CUDA device"
    return _why_not_on(device.index or 0)


@cache
def _why_not_on(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST:
        shown, least = (".".join(map(str, version)) for version in (capability, LEAST))
        return f"{torch.cuda.get_device_name(index)} has compute capability {shown}, and Triton needs {least}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    return None


def _on(device: torch.device, function: Callable[..., Any], *arguments: Any) -> Any:
    with torch.cuda.device(device):
        return function(*arguments)
