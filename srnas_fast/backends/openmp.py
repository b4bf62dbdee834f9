"""OpenMP: how many of its threads compiled code may use, and which library of it torch has loaded."""

import ctypes
import os
from pathlib import Path

import torch

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def threads() -> int:
    """How many threads compiled code may use: as many as torch, but one in a forked process, where those that the
    parent has started are gone and would be awaited for ever.

    >>> threads() >= 1
    True
    """
    return 1 if _forked else torch.get_num_threads()


def loaded_by_torch() -> str | None:
    """The file of the OpenMP library that torch's own code calls; None where the system does not tell.

    A second one would keep a second set of threads, fighting for the cores.
    Wheels carry their own copy, sometimes under a mangled name (``libgomp-a34b3233.so.1``), conda may put Intel's or
    LLVM's in its place, and other packages map copies of theirs: so ask where torch finds a function of OpenMP.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        address = ctypes.cast(torch_cpu.omp_get_max_threads, ctypes.c_void_p).value
        with open("/proc/self/maps", encoding="utf-8") as maps:
            for line in maps:
                span, *_, path = line.split(maxsplit=5)
                first, last = (int(end, 16) for end in span.split("-"))
                if first <= address < last:
                    path = path.strip()
                    return path if Path(path).is_file() else None
    except (OSError, AttributeError, ValueError):  # not Linux, a torch without OpenMP
        pass
    return None
