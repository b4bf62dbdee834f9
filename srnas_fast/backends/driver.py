"""The CUDA driver: loads compiled device code into torch's context and tells by which function it is launched."""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache

import torch

from srnas_fast.backends.toolchain import Unavailable

PLACES = ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")  # as the loader knows it; Windows' own under WSL
LOG_BYTES = 8192
# CUresult and CUjit_option of cuda.h
OUT_OF_MEMORY = 2
NEWER = (200, 209, 218, 222)  # it does not know this code: an invalid image, no binary, invalid or unsupported PTX
NO_COMPILER, NO_COMPILING = 221, 223
ERROR_LOG, ERROR_LOG_BYTES = 5, 6


class Driver:
    """The loaded driver; what it has loaded stays for the life of the process.

    Args:
        library: the shared library.

    Raises:
        AttributeError: it is no CUDA driver.
        Unavailable: it is one that does not work.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self._ready = False
        self._contexts: dict[int, int] = {}
        self.launch = _address(library.cuLaunchKernel)  # for C++ code
        self._push, self._pop = library.cuCtxPushCurrent_v2, library.cuCtxPopCurrent_v2
        version = ctypes.c_int()
        status = library.cuDriverGetVersion(ctypes.byref(version))
        if status:  # a toolkit's stub, to link against
            raise Unavailable(f"the CUDA driver does not work ({self._error(status)})", "install the NVIDIA driver")
        self.version = (version.value // 1000, version.value % 1000 // 10)  # of the newest CUDA that it knows

    def context(self, index: int) -> tuple[int, int, int]:
        """The context that torch has on a GPU, and the addresses of the functions that make it a thread's and no more.

        Torch makes it a thread's where it first needs it: a thread that launches before that, such as autograd's own
        for a backward pass, has none.
        """
        self._begin()
        if index not in self._contexts:
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self._check(self._library.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet", "")
            status = self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            self._check(status, "cuDevicePrimaryCtxRetain", "")
            self._contexts[index] = context.value
        return self._contexts[index], _address(self._push), _address(self._pop)

    def load(self, code: bytes, names: Sequence[str], index: int = 0) -> list[int]:
        """Load a cubin or PTX into torch's context on a GPU; the handles of its kernels.

        Raises:
            Unavailable: this driver does not take the code, or does not work.
            RuntimeError: there is no such kernel.
            torch.OutOfMemoryError: the GPU's memory is full.
        """
        context, *_ = self.context(index)
        self._check(self._push(ctypes.c_void_p(context)), "cuCtxPushCurrent", "")
        try:
            return self._load(code, names)
        finally:
            self._pop(ctypes.byref(ctypes.c_void_p()))

    def _load(self, code: bytes, names: Sequence[str]) -> list[int]:
        log = ctypes.create_string_buffer(LOG_BYTES)
        options = (ctypes.c_int * 2)(ERROR_LOG, ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        module = ctypes.c_void_p()
        # ctypes ends bytes with a zero, as PTX must be
        status = self._library.cuModuleLoadDataEx(ctypes.byref(module), ctypes.c_char_p(code), 2, options, values)
        self._check(status, "cuModuleLoadDataEx", log.value.decode(errors="replace"))
        return [self._function(module, name) for name in names]

    def _begin(self) -> None:
        if not self._ready:
            status = self._library.cuInit(0)
            if status:
                raise Unavailable(f"the CUDA driver does not work ({self._error(status)})", "run nvidia-smi")
            self._ready = True

    def _function(self, module: ctypes.c_void_p, name: str) -> int:
        function = ctypes.c_void_p()
        status = self._library.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
        self._check(status, f"cuModuleGetFunction of {name}", "")  # the code itself may be loaded only now
        return function.value

    def _check(self, status: int, what: str, log: str) -> None:
        """Raise what a status of the driver means for device code."""
        if not status:
            return
        shown = ".".join(map(str, self.version))
        error = " ".join([self._error(status), *log.split()])[:300]
        if status in NEWER:
            raise Unavailable(
                f"the driver, of CUDA {shown}, does not take the GPU code ({error})",
                f"install a newer NVIDIA driver, or a build of torch for CUDA {shown} or older",
            )
        if status == NO_COMPILER:
            raise Unavailable(
                f"the driver, of CUDA {shown}, lacks its compiler, which this card needs ({error})",
                "install libnvidia-ptxjitcompiler of the driver's version, or a newer build of torch",
            )
        if status == NO_COMPILING:
            raise Unavailable(
                f"the driver may not compile, which this card needs ({error})",
                "unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT, or install a newer build of torch",
            )
        if status == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"{what}: {error}")
        raise RuntimeError(f"{what}: {error}")

    def _error(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        return (text.value or b"unknown").decode() + f", error {status}"


def _address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def find() -> Driver:
    """The CUDA driver of this machine, looked for once in a process; nothing is asked of the GPU yet.

    Raises:
        Unavailable: there is none.
    """
    outcome = _outcome()
    if isinstance(outcome, Unavailable):
        raise Unavailable(outcome.reason, outcome.remedy)
    return outcome


@cache
def _outcome() -> Driver | Unavailable:
    if sys.platform != "linux":
        return Unavailable("the CUDA driver is looked for on Linux only in this version", "use Linux")
    outcome = Unavailable("there is no CUDA driver (libcuda.so.1)", "install the NVIDIA driver")
    for place in PLACES:
        try:
            return Driver(ctypes.CDLL(place))
        except (OSError, AttributeError):  # none, or something else of this name
            continue
        except Unavailable as failure:
            outcome = failure
    return outcome
