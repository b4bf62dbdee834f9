"""The C++ kernels for the CPU: loaded at first use, built where that has not happened yet, remembered."""

import sys
import threading
from pathlib import Path
from types import ModuleType

import torch

from srnas_fast.backends.build import Build, build
from srnas_fast.backends.choice import VARIABLE, forced
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

NAME = "_srnas_fast_cpu"
SOURCES = Path(__file__).resolve().parents[1] / "csrc"

_module: ModuleType | None = None
_outcome: Build | Unavailable | None = None  # of the one attempt that a process makes
_told = False
_attempt = threading.Lock()


def cpu_kernels(*tensors: torch.Tensor) -> ModuleType | None:
    """The compiled module that serves these tensors, or None: then the caller computes in plain torch.

    Args:
        tensors: what the kernels are to work on; all on the CPU and all float32 or all float64, or the answer is None.
            Without tensors: whether there is a module at all.

    The first call builds the module if this machine has not done so before (seconds), later ones cost a microsecond. A
    build that cannot be had is told in one line on stderr, once, and not tried again in this process.

    Raises:
        InputError: the environment variable SRNAS_FAST_BACKEND names no backend, or one that is not available.

    >>> cpu_kernels(torch.zeros(2, dtype=torch.int64)) is None
    True
    """
    choice = forced()
    if choice in ("reference", "triton"):
        return None
    if choice == "cuda":
        raise InputError(
            f"{VARIABLE} is {choice!r}, which has no kernels in this version; accepted: reference, cpu, triton"
        )
    if tensors:
        kind = tensors[0].dtype
        if kind is not torch.float32 and kind is not torch.float64:
            return None
        for tensor in tensors:
            if tensor.dtype is not kind or not tensor.is_cpu:
                return None
    if _module is not None:
        return _module
    result = outcome()
    if isinstance(result, Unavailable):
        if choice == "cpu":
            raise InputError(f"{VARIABLE} is 'cpu', but {result.reason}; {result.remedy}, or unset {VARIABLE}")
        _tell(result)
        return None
    return result.module


def outcome() -> Build | Unavailable:
    """What came of the one attempt to load the kernels, which this call makes if none was made yet."""
    global _module, _outcome
    with _attempt:
        if _outcome is None:
            try:
                _outcome = build(NAME, SOURCES)
                _module = _outcome.module
            except Unavailable as failure:
                _outcome = failure
        return _outcome


def _tell(failure: Unavailable) -> None:
    global _told
    if not _told:
        _told = True
        print(
            f"srnas_fast: no C++ kernels: {failure.reason}. Plain PyTorch is used: slower, same results. "
            f"Remedy: {failure.remedy}; {VARIABLE}=reference silences this line.",
            file=sys.stderr,
        )
