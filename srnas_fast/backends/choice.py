"""Who is asked to compute: what SRNAS_FAST_BACKEND forces, and what is said where a backend cannot be had."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

VARIABLE = "SRNAS_FAST_BACKEND"
BACKENDS = ("reference", "cpu", "triton", "cuda")

_told: set[str] = set()


def forced() -> str | None:
    """The backend that SRNAS_FAST_BACKEND names, looked at anew at each call; None if it is not set: the best there is.

    Raises:
        InputError: it names something else than a backend.

    >>> forced() in (None, "reference", "cpu", "triton", "cuda")
    True
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in BACKENDS:
        raise InputError(f"{VARIABLE} is {name!r}; accepted are {', '.join(BACKENDS)}, or unset it for the best one")
    return name


def missing(
    backend: str,
    kernels: str,
    failure: Unavailable,
    instead: str = "Plain PyTorch is used: slower, same results",
    expected: bool = True,
    known: str = "reference",
) -> None:
    """What is said of a backend that cannot be had: on stderr, once in a process, and only where one expects it.

    Args:
        backend: as SRNAS_FAST_BACKEND names it.
        kernels: what it has, as a message names it.
        failure: why it cannot be had.
        instead: what is done without it.
        expected: whether one expects it here.
        known: the backend to name for those who have read the message.

    Raises:
        InputError: the backend is forced.
    """
    if forced() == backend:
        raise InputError(f"{VARIABLE} is {backend!r}, but {failure}, or unset {VARIABLE}")
    if expected and kernels not in _told:
        _told.add(kernels)
        print(
            f"srnas_fast: no {kernels}: {failure.reason}. {instead}. "
            f"Remedy: {failure.remedy}; {VARIABLE}={known} silences this line.",
            file=sys.stderr,
        )


def require_card(index: int, least: tuple[int, int], needs: str) -> None:
    """That a GPU is NVIDIA's and of a compute capability; ``needs`` says who needs it.

    Raises:
        Unavailable: it is not.
    """
    if torch.version.hip:
        raise Unavailable("this torch is built for ROCm", "use an NVIDIA card")
    capability = torch.cuda.get_device_capability(index)
    if capability < least:
        shown, wanted = (".".join(map(str, version)) for version in (capability, least))
        name = torch.cuda.get_device_name(index)
        raise Unavailable(f"{name} has compute capability {shown}, and {needs} {wanted}", "use a newer card")


def on_its_device(device: torch.device, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, launched on that GPU also where another one is torch's current one."""
    return kernel if device.index == torch.cuda.current_device() else partial(_on, device, kernel)


def _on(device: torch.device, kernel: Callable[..., Any], *arguments: Any) -> Any:
    with torch.cuda.device(device):
        return kernel(*arguments)
