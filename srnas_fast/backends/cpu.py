"""The C++ kernels for the CPU: loaded at first use, built where that has not happened yet, remembered."""

import json
import os
import platform
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

import torch

from srnas_fast.backends.build import Build, Job, Recipe, build
from srnas_fast.backends.choice import forced, missing
from srnas_fast.backends.toolchain import (
    Unavailable,
    find_compiler,
    link_flags,
    processor_features,
    pybind11_headers,
    pybind11_version,
)

NAME = "_srnas_fast_cpu"
SOURCES = Path(__file__).resolve().parents[1] / "csrc"
# Not -ffast-math: NaN and infinities must behave.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)

# Its own process: torch's builder cannot be interrupted, keeps state per name, needs ninja on PATH, and imports what it
# has built, which had better crash there than here.
CHILD = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job.pop("path")
from torch.utils.cpp_extension import load
load(**job)
"""

_module: ModuleType | None = None
_outcome: Build | Unavailable | None = None  # of the one attempt that a process makes
_attempt = threading.Lock()


def cpu_kernels() -> ModuleType | None:
    """The compiled module, with a part ``float32`` and a part ``float64``; None where it cannot be had.

    The first call builds the module if this machine has not done so before (seconds), later ones cost a microsecond. A
    build that cannot be had is told in one line on stderr, once, and not tried again in this process.

    Raises:
        InputError: the environment variable SRNAS_FAST_BACKEND names no backend, or this one where there is none.

    >>> kernels = cpu_kernels()
    """
    choice = forced()
    if choice not in (None, "cpu"):
        return None
    if _module is not None:
        return _module
    result = outcome()
    if isinstance(result, Unavailable):
        missing("cpu", "C++ kernels", result)
        return None
    return result.module


def outcome() -> Build | Unavailable:
    """What came of the one attempt to load the kernels, which this call makes if none was made yet."""
    global _module, _outcome
    with _attempt:
        if _outcome is None:
            try:
                _outcome = build(recipe(NAME, SOURCES))
                _module = _outcome.module
            except Unavailable as failure:
                _outcome = failure
        return _outcome


def recipe(name: str, sources: Path, flags: tuple[str, ...] = FLAGS) -> Recipe:
    """How torch's builder makes a module of ``bindings.cpp`` and ``cpu/*.cpp`` in a folder.

    Raises:
        Unavailable: no Linux, no compiler, no ninja.
    """
    if sys.platform != "linux":
        raise Unavailable("the C++ kernels are built on Linux only in this version", "use Linux")
    compiler, compiler_version = find_compiler()
    folders = (sources, sources / "program", sources / "cpu")
    libraries = link_flags(compiler_version)

    def job(folder: Path) -> Job:
        arguments = {
            "path": [os.path.abspath(entry) for entry in sys.path],
            "name": name,
            "sources": [str(path) for place in folders for path in sorted(place.glob("*.cpp"))],
            "extra_cflags": list(flags),
            "extra_ldflags": libraries,
            "extra_include_paths": pybind11_headers(),
            "build_directory": str(folder),
            "verbose": True,
            "with_cuda": False,
        }
        return Job([sys.executable, "-c", CHILD], {"CXX": compiler}, json.dumps(arguments).encode())

    return Recipe(
        name=name,
        kernels="CPU kernels",
        root=sources,
        files=[path for place in folders for pattern in ("*.cpp", "*.h") for path in place.glob(pattern)],
        parameters={
            "flags": list(flags),
            "link flags": libraries,
            "torch": torch.__version__,
            "pybind11": pybind11_version(),
            "python": sysconfig.get_config_var("SOABI") or platform.python_version(),
            "compiler": compiler_version,
            "processor": processor_features(),
        },
        job=job,
    )
