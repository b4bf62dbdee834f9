"""What several rooms of the tests share."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores: with more threads than cores OpenMP waits many times longer than it computes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module of csrc/cuda/bindings.cpp, whose kernels run on tensors of the CPU, built once in a process.

    csrc/cuda/emulation.h stands in for a GPU, thread for thread.
    """
    if not shutil.which("g++"):
        pytest.skip("there is no g++ on PATH, which compiles the emulated kernels")
    folder = tmp_path_factory.mktemp("emulated")
    includes = [f"-I{path}" for path in (CUDA, pybind11.get_include(), sysconfig.get_path("include"))]
    flags = ["-std=c++20", "-O1", "-fPIC", "-pthread", "-DSRNAS_FAST_EMULATE", *includes]
    flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # unroll
    objects = {source: folder / f"{source.name}.o" for source in [*CUDA.glob("*.cu"), CUDA / "bindings.cpp"]}
    compilers = [
        subprocess.Popen(["g++", *flags, "-x", "c++", "-c", source, "-o", made], stderr=subprocess.PIPE, text=True)
        for source, made in objects.items()
    ]
    for compiler in compilers:
        errors = compiler.communicate()[1]
        assert compiler.returncode == 0, errors
    library = folder / f"_srnas_fast_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", "-pthread", *objects.values(), "-o", library], check=True)
    spec = importlib.util.spec_from_file_location("_srnas_fast_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
