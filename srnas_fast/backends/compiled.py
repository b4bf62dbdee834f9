"""The C++ kernels of the CPU, called with the addresses of their tensors."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from srnas_fast.backends import gpu
from srnas_fast.backends.choice import forced, missing
from srnas_fast.backends.cpu import cpu_kernels
from srnas_fast.backends.openmp import threads

PARTS = {torch.float32: "float32", torch.float64: "float64"}  # of a module


def compiled_kernel(name: str, *tensors: Tensor) -> Callable[..., None] | None:
    """The compiled kernel of that name if it serves these tensors, else None: then the caller computes in plain torch.

    Args:
        name: of a function in ``csrc/bindings.cpp``.
        tensors: what it is to work on; on the CPU, and of one type, if it serves.

    The first call builds the kernels if this machine has not done so before (seconds), later ones cost microseconds.

    Raises:
        InputError: SRNAS_FAST_BACKEND names no backend, or one that cannot be had.

    >>> compiled_kernel("weighted_sum", torch.zeros(2, dtype=torch.int64)) is None
    True
    """
    first = tensors[0]
    kind = first.dtype
    if kind not in PARTS or not first.is_cpu:
        return None
    for tensor in tensors:
        if tensor.dtype is not kind:
            return None
    module = cpu_kernels()
    if module is None:
        if forced() == "cuda" and not torch.cuda.is_available():
            missing("cuda", "GPU programs", gpu.look(first.device))
        return None
    return partial(getattr(getattr(module, PARTS[kind]), name), threads(), first.new_empty)
