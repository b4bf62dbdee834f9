"""What a build of C++ code finds on this machine: compiler, ninja, headers, OpenMP, the processor's features."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from srnas_fast.backends.openmp import loaded_by_torch


class Unavailable(Exception):
    """There is no compiled module: ``reason`` says why and ``remedy`` what to do."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def find_compiler() -> tuple[str, str]:
    """The compiler's command and what identifies it, after a look at everything else a build needs."""
    given = os.environ.get("CXX", "").strip()
    names = [given] if given else ["c++", "g++", "clang++"]
    found = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if not found:
        raise Unavailable(
            f"there is no C++ compiler on PATH ({', '.join(names)})", "install g++, or name a compiler in CXX"
        )
    try:
        command = [*shlex.split(found), "--version"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the C++ compiler {found} does not run ({error})", "install g++") from error
    if shown.returncode:
        raise Unavailable(f"the C++ compiler {found} does not run (status {shown.returncode})", "install g++")
    if not shutil.which("ninja", path=path_with_ninja()):
        raise Unavailable("ninja, which runs the compiler, is not found", "pip install ninja")
    if not (Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h").is_file():
        raise Unavailable("Python's headers (Python.h) are not installed", "install python3-dev or python3-devel")
    path = os.path.realpath(shutil.which(shlex.split(found)[0]))
    return found, f"{path}: {shown.stdout.partition(os.linesep)[0].strip()}"


def path_with_ninja() -> str:
    """PATH and the places of a ninja from PyPI, which are not on it when the virtual environment is not activated."""
    places = [os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]
    if importlib.util.find_spec("ninja"):
        import ninja

        places.append(ninja.BIN_DIR)
    return os.pathsep.join(places)


def link_flags(compiler_version: str) -> list[str]:
    """OpenMP from the library that torch has loaded, and of torch's other libraries only what is used."""
    runtime = loaded_by_torch()
    if runtime is None or ("clang" in compiler_version and "libgomp" in runtime):
        return ["-Wl,--as-needed", "-fopenmp"]  # clang calls functions that GCC's library has not
    return ["-Wl,--as-needed", shlex.quote(runtime)]


def pybind11_headers() -> list[str]:
    try:
        import pybind11
    except ImportError:
        return []  # torch brings its own, found after these
    return [pybind11.get_include()]


def pybind11_version() -> str:
    try:
        return version("pybind11")
    except PackageNotFoundError:
        return "torch's"


def processor_features() -> str:
    """What -march=native looks at; a cache is often shared between unlike machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            rows = [line.partition(":") for line in file if line.startswith(("flags", "Features", "CPU part"))]
    except OSError:
        rows = []
    features = {feature for _, _, value in rows for feature in value.split()}
    return " ".join([platform.machine(), *sorted(features)])
