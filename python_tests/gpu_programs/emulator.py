"""Compiles CUDA for the CPU: kernels of csrc/gpu under csrc/gpu/emulation.h, in a library that launches them."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srnas_fast.backends import cpu_kernels
from srnas_fast.mixed import gpu
from srnas_fast.mixed.gpu_call import Code
from srnas_fast.mixed.gpu_program import KERNELS, MOST_WORDS, GpuProgram
from srnas_fast.mixed.program import Program

GPU = Path(__file__).parents[2] / "csrc" / "gpu"
FLAGS = ["-O1", "-std=c++17", "-shared", "-fPIC", "-DSRNAS_FAST_EMULATE"]
FLAGS += ["-fvisibility=hidden", "-fno-gnu-unique"]  # see emulation.h
LIBRARIES: dict[str, ctypes.CDLL] = {}  # by digest, loaded in this process


@dataclass(frozen=True)
class Emulated:
    """What a loaded module is on a GPU: addresses, for who calls the driver by its."""

    functions: list[int]  # each stands for a CUfunction
    launch: int  # of a function that is called as cuLaunchKernel is
    library: ctypes.CDLL

    def launches(self) -> int:
        """How many kernels of this library have run in this process."""
        return self.library.srnas_fast_emulated_launches()


def serve_cpu(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on mixed operations on the CPU are computed by the programs of a GPU, emulated; also in float64."""
    codes: dict[GpuProgram, Code] = {}

    def code_of(made: Program, x: Tensor, parameter: torch.dtype) -> Code | None:
        program = gpu.program_of(made, x.dtype, parameter)
        if program.words > MOST_WORDS:
            return None
        if program not in codes:
            codes[program] = code(program, folder)
        return codes[program]

    monkeypatch.setattr(gpu, "on_gpu", lambda x: x.device.type == "cpu")
    monkeypatch.setattr(gpu, "TYPES", (*gpu.TYPES, torch.float64))
    monkeypatch.setattr(gpu, "takes", lambda x: x.dtype in gpu.TYPES)
    monkeypatch.setattr(gpu, "code_of", code_of)


def launches() -> int:
    """How many emulated kernels have run in this process."""
    return sum(library.srnas_fast_emulated_launches() for library in LIBRARIES.values())


def code(program: GpuProgram, folder: Path) -> Code:
    """A program's kernels, emulated, which compute in float64 where its images are."""
    real = "double" if program.pixel is torch.float64 else "float"
    text = f'#include "stage.h"\n{program.constants}#include "kernels.h"\n'
    made = emulate(text, [f"srnas_fast_{name}" for name in KERNELS], folder, {"SRNAS_FAST_REAL": real})
    return Code(program, made.functions, made.launch, cpu_kernels().launch_all)


def emulate(text: str, names: list[str], folder: Path, defines: dict[str, str] | None = None) -> Emulated:
    """The kernels that ``text`` names in ``EMULATED_KERNEL(NAME, Arguments);``, in the order of ``names``.

    The text is left in ``folder``, where messages name it. The same text is compiled once, even in several runs of
    the tests, and loaded once in a process: its launches are counted together.
    """
    if not shutil.which("g++"):
        pytest.skip("there is no g++ on PATH, which compiles the emulated kernels")
    flags = FLAGS + [f"-D{name}={value}" for name, value in (defines or {}).items()]
    digest = _digest(text, flags)
    source = folder / f"{names[0]}_{digest[:12]}.cpp"
    source.write_text(text)
    if digest not in LIBRARIES:
        library = ctypes.CDLL(str(_compiled(source, flags, digest)))
        library.srnas_fast_emulated_launches.restype = ctypes.c_long
        LIBRARIES[digest] = library
    library = LIBRARIES[digest]
    functions = [ctypes.addressof(ctypes.c_char.in_dll(library, f"{name}_handle")) for name in names]
    launch = ctypes.cast(library.srnas_fast_emulated_launch, ctypes.c_void_p).value
    return Emulated(functions, launch, library)


@functools.cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def _digest(text: str, flags: list[str]) -> str:
    """Of all that the library is made of, the headers that the text may include among it."""
    digest = hashlib.sha256(repr((text, flags, _compiler(), str(GPU))).encode())
    for path in sorted(path for path in GPU.rglob("*") if path.is_file() and path.suffix != ".cpp"):
        digest.update(repr((path.relative_to(GPU), path.read_bytes())).encode())
    return digest.hexdigest()


def _compiled(source: Path, flags: list[str], digest: str) -> Path:
    """The library, from an earlier run if there was one."""
    cache = Path(tempfile.gettempdir()) / f"srnas_fast_emulated_{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise RuntimeError(f"{cache} is somebody else's: libraries from there are not loaded")
    library = cache / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as made:
            # In its folder, so that messages name the file alone, whichever folder it was in.
            command = ["g++", *flags, "-I", GPU, source.name, "-o", Path(made) / library.name]
            result = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
            if result.returncode != 0:
                raise RuntimeError(f"g++ does not compile {source}:\n{result.stderr}")
            os.replace(Path(made) / library.name, library)  # at once: another process may look for it
    return library
