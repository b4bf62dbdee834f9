"""The C++ and the CUDA kernels under one set of names, called with the addresses of their tensors."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from srnas_fast.backends.choice import on_its_device
from srnas_fast.backends.cpu import cpu_kernels
from srnas_fast.backends.cuda import cuda_kernels
from srnas_fast.backends.openmp import threads

PARTS = {torch.float32: "float32", torch.float64: "float64"}  # of a module


def compiled_kernel(name: str, *tensors: Tensor) -> Callable[..., None] | None:
    """The compiled kernel of that name if it serves these tensors, else None: then the caller computes in plain torch.

    Args:
        name: of a function in ``csrc/bindings.cpp``, which ``csrc/cuda/bindings.cpp`` may have, too.
        tensors: what it is to work on; on one device, and of one type if it serves.

    The first call builds the kernels if this machine has not done so before (seconds), later ones cost microseconds.

    Raises:
        InputError: SRNAS_FAST_BACKEND names no backend, or one that cannot be had.

    >>> compiled_kernel("weighted_sum", torch.zeros(2, dtype=torch.int64)) is None
    True
    """
    first = tensors[0]
    kind = first.dtype
    if kind not in PARTS:
        return None
    for tensor in tensors:
        if tensor.dtype is not kind:
            return None
    if first.is_cpu and (module := cpu_kernels()):
        return partial(getattr(getattr(module, PARTS[kind]), name), threads(), first.new_empty)
    module = cuda_kernels(name, kind, first.device)
    if module is None:
        return None
    kernel = partial(getattr(getattr(module, PARTS[kind]), name), stream(first.device), first.new_empty)
    return kernel if first.is_cpu else on_its_device(first.device, kernel)


def stream(device: torch.device) -> int:
    """The handle of the stream that torch computes in on a GPU; 0, the one that is always there, elsewhere."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
