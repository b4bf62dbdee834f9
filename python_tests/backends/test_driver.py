"""Loading device code through a CUDA driver, for which a small library stands in, and what is said of its errors."""

import ctypes
import shutil
import subprocess
import sys

import pytest
import torch

from srnas_fast.backends import driver
from srnas_fast.backends.toolchain import Unavailable

# Every call is counted and returns the status set for it; a function's handle is the length of its name.
STUB = r"""
#include <stdio.h>
#include <string.h>
int init_status, inits, version = 12040, version_status, load_status, loads, function_status, launches;
char loaded[64];
const char* told = "";
int cuInit(unsigned flags) { inits += flags == 0; return init_status; }
int cuDriverGetVersion(int* found) { *found = version; return version_status; }
int cuGetErrorString(int status, const char** text) {
    if (status == 999) return 1;  /* it does not know this one */
    *text = status == 222 ? "the provided PTX was compiled with an unsupported toolchain." : "some error";
    return 0;
}
int bound, retained;
int cuModuleLoadDataEx(void** module, const void* code, unsigned count, const int* options, void** values) {
    if (count != 2 || options[0] != 5 || options[1] != 6 || !inits || bound != 1) return 1;
    loads += 1;
    strncpy(loaded, (const char*)code, sizeof loaded - 1);
    if (load_status) snprintf((char*)values[0], (size_t)values[1], "ptxas fatal:\n unresolved\n");
    *module = loaded;
    return load_status;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    if (module != loaded || !strstr(loaded, name)) return 500;
    *function = (void*)strlen(name);
    return function_status;
}
int cuDeviceGet(int* device, int index) { *device = index; return inits ? 0 : 3; }
int cuDevicePrimaryCtxRetain(void** context, int device) { retained += 1; *context = &bound + device; return 0; }
int cuCtxPushCurrent_v2(void* context) { bound += context == &bound; return 0; }
int cuCtxPopCurrent_v2(void** context) { bound -= 1; *context = 0; return 0; }
int cuLaunchKernel(void* function, int threads) { launches += threads; return 0; }
"""
CODE = b"code of first and of second"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the driver is looked for on Linux only"),
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ on PATH, which compiles the stand-in"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", folder / "stub.c", "-o", folder / "stub.so"], check=True)
    return folder / "stub.so"


@pytest.fixture
def stub(compiled, monkeypatch, tmp_path):
    """The stand-in, in its first state and in the driver's place; its variables by name."""
    path = shutil.copy(compiled, tmp_path / "libcuda.so.1")  # a library of its own
    library = ctypes.CDLL(path)
    monkeypatch.setattr(driver, "PLACES", ("libcuda-of-nobody.so.1", path))
    driver._outcome.cache_clear()
    yield lambda name: ctypes.c_int.in_dll(library, name)
    driver._outcome.cache_clear()


def refused(load_status, stub):
    stub("load_status").value = load_status
    with pytest.raises(Unavailable) as caught:
        driver.find().load(CODE, ["first"])
    return f"{caught.value.reason}; {caught.value.remedy}"


def test_kernels_by_name(stub):
    found = driver.find()
    assert found.version == (12, 4)
    assert stub("inits").value == 0  # nothing is asked of a GPU before there is something to load
    assert found.load(CODE, ["first", "second"]) == [5, 6]
    assert found.load(CODE, []) == []
    assert (stub("inits").value, stub("loads").value) == (1, 2)
    assert (stub("bound").value, stub("retained").value) == (0, 1)  # torch's context, for as long as it takes
    assert driver.find() is found


def test_the_address_to_launch_by(stub):
    launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(driver.find().launch)
    assert launch(None, 7) == 0 and stub("launches").value == 7


@pytest.mark.parametrize("status", driver.NEWER)
def test_a_driver_that_is_too_old(stub, status):
    said = refused(status, stub)
    assert said.startswith("the driver, of CUDA 12.4, does not take the GPU code (")
    assert said.endswith(
        f"error {status} ptxas fatal: unresolved); "
        "install a newer NVIDIA driver, or a build of torch for CUDA 12.4 or older"
    )
    stub("load_status").value = 0
    assert driver.find().load(CODE, ["first"]) == [5]


def test_a_driver_that_is_too_old_and_loads_late(stub):
    stub("function_status").value = 209
    assert "does not take the GPU code (some error, error 209)" in refused(0, stub)


def test_a_driver_that_does_not_compile(stub):
    assert "lacks its compiler" in (said := refused(driver.NO_COMPILER, stub)) and "libnvidia-ptxjitcompiler" in said
    assert "may not compile" in (said := refused(driver.NO_COMPILING, stub)) and "unset CUDA_DISABLE_PTX_JIT" in said


def test_full_memory(stub):
    stub("load_status").value = 2
    with pytest.raises(torch.OutOfMemoryError, match="cuModuleLoadDataEx: some error, error 2"):
        driver.find().load(CODE, ["first"])


@pytest.mark.parametrize(("status", "shown"), [(201, "some error, error 201 ptxas"), (999, "unknown, error 999 ptxas")])
def test_other_errors_are_ours(stub, status, shown):
    stub("load_status").value = status
    with pytest.raises(RuntimeError, match=f"cuModuleLoadDataEx: {shown}"):
        driver.find().load(CODE, ["first"])


def test_a_kernel_that_is_not_there(stub):
    with pytest.raises(RuntimeError, match="cuModuleGetFunction of third: some error, error 500"):
        driver.find().load(CODE, ["first", "third"])


def test_a_driver_that_does_not_start(stub):
    stub("init_status").value = 100
    for _ in range(2):
        with pytest.raises(Unavailable, match="the CUDA driver does not work .some error, error 100.; run nvidia-smi"):
            driver.find().load(CODE, ["first"])
    assert stub("loads").value == 0


def test_a_library_to_link_against(stub):
    """As toolkits have it in lib64/stubs: every function is there and returns an error."""
    stub("version_status").value = 34
    with pytest.raises(Unavailable, match="does not work .some error, error 34.; install the NVIDIA driver"):
        driver.find()


def test_none(stub, monkeypatch, compiled, tmp_path):
    empty = tmp_path / "empty.so"
    subprocess.run(["g++", "-shared", "-x", "c", "/dev/null", "-o", empty], check=True)
    (tmp_path / "text.so").write_text("none")
    monkeypatch.setattr(driver, "PLACES", (str(empty), str(tmp_path / "text.so"), str(tmp_path / "none.so")))
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"there is no CUDA driver \(libcuda.so.1\); install the NVIDIA driver"):
            driver.find()


def test_elsewhere_than_on_linux(stub, monkeypatch):
    monkeypatch.setattr(driver.sys, "platform", "win32")
    with pytest.raises(Unavailable, match="on Linux only"):
        driver.find()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_kernel_of_ours_runs():
    from srnas_fast.backends import nvrtc

    driver._outcome.cache_clear()
    x = torch.ones(32, device="cuda")
    try:
        compiler = nvrtc.find()
    except Unavailable as failure:
        pytest.skip(str(failure))
    source = 'extern "C" __global__ void add(float* x, float y) { x[threadIdx.x] += y; }'
    image = compiler.compile(source, {}, torch.cuda.get_device_capability())
    [add] = driver.find().load(image.code, ["add"])
    launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3)
    address, y = ctypes.c_void_p(x.data_ptr()), ctypes.c_float(2)
    given = (ctypes.c_void_p * 2)(ctypes.addressof(address), ctypes.addressof(y))
    stream = torch.cuda.current_stream().cuda_stream
    assert launch(driver.find().launch)(add, 1, 1, 1, 32, 1, 1, 0, stream, given, None) == 0
    assert x.tolist() == [3.0] * 32
