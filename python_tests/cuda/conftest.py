"""The CUDA kernels on the CPU: csrc/cuda/emulation.h stands in for the GPU, thread for thread."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest
import torch

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module of csrc/cuda/bindings.cpp, whose kernels run on tensors of the CPU."""
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


@pytest.fixture
def assert_same():
    """Compares float32 results with exact ones: 1e-5 of the largest entry, that of sums that cancel taken as 1."""

    def compare(ours, exact):
        for values, expected in zip(ours, exact, strict=True):
            largest = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
            torch.testing.assert_close(values.double(), expected.double(), rtol=0, atol=1e-5 * largest)

    return compare
