"""Every CUDA file compiles for the GPUs we serve and spills no register. ``-rP`` shows what each kernel takes.

nvcc compiles for 7.5 and up. Pascal (6.1) needs CUDA 12: ``pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvcc-cu12``,
or with ``--target FOLDER`` and ``pytest -o pythonpath="python_tests/supernets FOLDER"``.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = [75, 86, 90]
CUDA_12 = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvcc-cu12"

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


class Usage(NamedTuple):
    """What one kernel takes of a GPU, as ptxas tells it; bytes but for the registers of a thread."""

    kernel: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spilled: int


@each_source
@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc on PATH")
def test_nvcc(source, tmp_path):
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    command = ["nvcc", "-std=c++17", "-c", *targets, "-Xptxas=-v", "-Werror=all-warnings", source]
    found = check(run([*command, "-o", tmp_path / "object.o"]))
    assert {usage.architecture for usage in found} == {f"sm_{sm}" for sm in ARCHITECTURES}


@each_source
def test_pascal(source, tmp_path):
    nvrtc, ptxas = packaged("cuda_nvrtc", "lib/libnvrtc.so.12"), packaged("cuda_nvcc", "bin/ptxas")
    (tmp_path / "device.ptx").write_bytes(device_code(nvrtc, source, "compute_61"))
    command = [ptxas, "-arch=sm_61", "-v", tmp_path / "device.ptx", "-o", tmp_path / "device.cubin"]
    found = check(run(command))
    # A template that only a launch instantiates is not there, and would be checked by nobody.
    kernels = re.findall(r"__global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)", source.read_text())
    assert not [kernel for kernel in kernels if not any(kernel in usage.kernel for usage in found)]


def run(command: list) -> str:
    """What a command prints; fails with it where the command does."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(report: str) -> list[Usage]:
    """Prints and gives back what the kernels take; fails where one spills."""
    found = sorted(usages(report))
    assert found, report
    print(f"{'registers':>9} {'shared':>6} {'stack':>6} {'spilled':>7}  kernel")
    for usage in found:
        print(f"{usage.registers:9} {usage.shared:6} {usage.stack:6} {usage.spilled:7}  ", end="")
        print(usage.architecture, usage.kernel)
    assert not [usage for usage in found if usage.spilled]
    return found


def usages(report: str) -> Iterator[Usage]:
    """The kernels in what ``ptxas -v`` printed."""
    for part in report.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for '(\w+)'", part).groups()
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) .* (\d+) ", part).groups())
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        yield Usage(plain(name), architecture, registers, int(shared[1]) if shared else 0, stack, stores + loads)


def plain(name: str) -> str:
    """The kernel of a mangled name and its template's arguments, as far as there is a c++filt to tell."""
    if not shutil.which("c++filt"):
        return name
    whole = run(["c++filt", name]).strip()
    found = re.search(r"::([^:]*?)\(", re.sub(r"\(anonymous namespace\)|_GLOBAL__N__\w+", "", whole))
    return found[1] if found else whole


def packaged(package: str, path: str) -> Path:
    """A file of one of NVIDIA's packages of CUDA 12; skips the test without it."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) / package / path for place in (spec.submodule_search_locations if spec else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip(f"there is no {path} of CUDA 12: {CUDA_12}")
    return found


def device_code(nvrtc: Path, source: Path, architecture: str) -> bytes:
    """The PTX of a CUDA file by NVRTC, which needs neither a GPU nor a host compiler."""
    library, program, size = ctypes.CDLL(str(nvrtc)), ctypes.c_void_p(), ctypes.c_size_t()

    def text(size_of, get) -> bytes:
        assert size_of(program, ctypes.byref(size)) == 0
        found = ctypes.create_string_buffer(size.value)
        assert get(program, found) == 0
        return found.value

    # Declarations of host functions are left standing as if they were the device's.
    options = [f"--gpu-architecture={architecture}", "-std=c++17", f"-I{source.parent}", "-default-device"]
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    name = str(source).encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None) == 0
    try:
        status = library.nvrtcCompileProgram(program, len(options), arguments)
        assert status == 0, text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).decode()
        return text(library.nvrtcGetPTXSize, library.nvrtcGetPTX)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
