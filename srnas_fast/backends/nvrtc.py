"""NVRTC, NVIDIA's compiler as a library: device code is compiled at run time, without nvcc and its toolkit.

It comes with every build of torch for CUDA; called through ctypes, which lets other threads run in the meantime.
"""

import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from srnas_fast.backends.toolchain import Unavailable

OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
FILES = "libnvrtc.so.[0-9]*"  # beside them lies libnvrtc-builtins, which NVRTC finds in its own folder
SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12")  # as the loader knows them
TOOLKIT = "/usr/local/cuda"
NO_BUILTINS = 7  # NVRTC_ERROR_BUILTIN_OPERATION_FAILURE


class Image(NamedTuple):
    """Device code as a driver loads it: a ``cubin`` is for one kind of card, ``ptx`` is compiled by the driver."""

    code: bytes
    kind: str
    log: str  # warnings, and what --ptxas-options=-v tells of registers


class Nvrtc:
    """A loaded NVRTC.

    Args:
        library: the shared library.
        path: where it was found, for messages.

    Raises:
        AttributeError: it is none, or one from before CUDA 11.2.
    """

    def __init__(self, library: ctypes.CDLL, path: str):
        self._library, self.path = library, path
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = sorted(known)  # 61 is compute capability 6.1

    def target(self, capability: tuple[int, int]) -> str:
        """What to compile for a card: code for it, or of the nearest older kind, which the driver compiles for it.

        Raises:
            Unavailable: this NVRTC no longer knows so old a card.
        """
        wanted = 10 * capability[0] + capability[1]
        nearest = max((number for number in self.architectures if number <= wanted), default=None)
        if nearest is None:
            shown, least = (f"{number // 10}.{number % 10}" for number in (wanted, self.architectures[0]))
            raise Unavailable(
                f"NVRTC {_shown(self.version)} compiles for compute capability {least} and up, and this card has "
                f"{shown}",
                "install a build of torch for CUDA 12.6, up to 2.14: "
                "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126",
            )
        return f"sm_{nearest}" if nearest == wanted else f"compute_{nearest}"

    def compile(
        self, source: str, headers: dict[str, str], capability: tuple[int, int], options: Sequence[str] = ()
    ) -> Image:
        """Compile CUDA C++ for a card.

        Args:
            source: the text; its kernels are found again by name if they are ``extern "C"``.
            headers: texts by the names that ``source`` includes them by; there are no others, not even the standard's.
            capability: the card's.
            options: of NVRTC, after those that are always given.

        Raises:
            Unavailable: a card that is too old, an NVRTC of which a part is missing.
            RuntimeError: an error in the source, with NVRTC's log.
        """
        target = self.target(capability)
        names, texts = _strings(list(headers)), _strings(list(headers.values()))
        given = [f"--gpu-architecture={target}", *OPTIONS, *options]
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"source.cu", len(headers), texts, names
        )
        try:
            status = self._library.nvrtcCompileProgram(program, len(given), _strings(given))
            log = self._output("ProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
            if status == NO_BUILTINS:
                folder = Path(self.path).parent
                raise Unavailable(f"the NVRTC in {folder} is not whole ({' '.join(log.split())})", _install())
            if status:
                raise RuntimeError(f"NVRTC {_shown(self.version)} for {target}: {self._error(status)}\n{log}")
            kind = "cubin" if target.startswith("sm_") else "ptx"
            return Image(self._output(kind.upper(), program), kind, log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, name: str, program: ctypes.c_void_p) -> bytes:
        """What a program yields by a pair of functions, of which one tells the size."""
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{name}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} of NVRTC in {self.path}: {self._error(status)}")

    def _error(self, status: int) -> str:
        return self._library.nvrtcGetErrorString(status).decode()


def find(path: Path | None = None) -> Nvrtc:
    """The NVRTC of torch's CUDA version if there is one, else another; looked for once in a process.

    Args:
        path: of the library, to take this one and no other.

    Raises:
        Unavailable: there is none that can be loaded.
    """
    outcome = _outcome(path)
    if isinstance(outcome, Unavailable):
        raise Unavailable(outcome.reason, outcome.remedy)
    return outcome


@cache
def _outcome(path: Path | None) -> Nvrtc | Unavailable:
    if sys.platform != "linux":
        return Unavailable("NVRTC is looked for on Linux only in this version", "use Linux")
    failure = None
    for name in [str(path)] if path else _candidates():
        try:
            return Nvrtc(ctypes.CDLL(name), name)
        except AttributeError:
            failure = failure or f"{name} is too old"
        except (OSError, RuntimeError) as error:
            if os.path.exists(name):  # of one that is not there nobody needs to know
                failure = failure or f"{name} cannot be used: {error}"
    reason = "there is no NVRTC, NVIDIA's compiler as a library" + (f" ({failure})" if failure else "")
    return Unavailable(reason, _install())


def _candidates() -> list[str]:
    """Where NVRTC may be, best first: torch's CUDA version, since a driver may not load code of a later one."""
    theirs = (torch.version.cuda or "").partition(".")[0]
    found = [*_in_wheels(), *SONAMES, *_in_toolkits()]
    majors = {name: re.search(r"\.so\.(\d+)[^/]*$", name)[1] for name in found}
    return sorted(majors, key=lambda name: (majors[name] != theirs, -int(majors[name])))


def _in_wheels() -> Iterator[str]:
    """In the packages that torch's wheels require, or, in some builds, in torch itself under a mangled name."""
    installed = Path(torch.__file__).parent
    nvidia = importlib.util.find_spec("nvidia")  # may lie elsewhere, as in an environment that sees the system's
    for place in [*(nvidia.submodule_search_locations or [] if nvidia else []), str(installed.parent / "nvidia")]:
        for folder in ("cuda_nvrtc/lib", "cu[0-9]*/lib"):
            yield from map(str, Path(place).glob(f"{folder}/{FILES}"))
    for pattern in (FILES, FILES.replace(".", "-*.", 1)):
        files = (installed / "lib").glob(pattern)
        yield from (str(path) for path in files if not path.name.startswith("libnvrtc-builtins"))


def _in_toolkits() -> Iterator[str]:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT):
        for folder in ("lib64", "lib"):
            yield from map(str, Path(home, folder).glob(FILES) if home else ())


def _install() -> str:
    """The command for the NVRTC that belongs to torch."""
    release = torch.version.cuda or "12.6"  # a torch without CUDA needs none, and says nothing
    major = release.partition(".")[0]
    name = "nvidia-cuda-nvrtc" + (f"-cu{major}" if int(major) < 13 else "")
    return f"pip install '{name}=={release}.*'"


def _strings(texts: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _shown(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
