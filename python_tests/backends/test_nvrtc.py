"""Where NVRTC is found, what it compiles for which card, and what is said where it cannot."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srnas_fast.backends import nvrtc
from srnas_fast.backends.toolchain import Unavailable

SOURCE = """
#include "size.h"
constexpr __device__ float powers[] = {1.0f, 2.0f, 4.0f, 8.0f};
template <int N> __device__ float sum(float x) {
    float y = 0;
    for (int i = 0; i < N; ++i) y = fmaf(y, x, powers[i % 4]);
    return y;
}
extern "C" __global__ void sums(float* x) {
    if constexpr (SIZE > 1) x[threadIdx.x] = sum<SIZE>(x[threadIdx.x]);
}
"""
HEADERS = {"size.h": "#define SIZE 5\n"}

LOOK = """
import sys
from pathlib import Path
from srnas_fast.backends import nvrtc
try:
    print(nvrtc.find(Path(sys.argv[1])).compile("", {}, (8, 6)).kind)
except nvrtc.Unavailable as failure:
    print(failure)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC is looked for on Linux only")


@pytest.fixture
def untried():
    """As in a process that has not looked for it yet."""
    nvrtc._outcome.cache_clear()
    yield
    nvrtc._outcome.cache_clear()


@pytest.fixture
def compiler():
    try:
        return nvrtc.find()
    except Unavailable as failure:
        pytest.skip(str(failure))


@pytest.fixture
def nowhere(monkeypatch, tmp_path, untried):
    """No NVRTC in any of the places, which lie in the folder that this returns."""
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "site-packages" / "torch" / "__init__.py"))
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc, "SONAMES", ("libnvrtc-of-nobody.so.12",))
    monkeypatch.setattr(nvrtc, "TOOLKIT", str(tmp_path / "toolkit"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(folder, name="libnvrtc.so.12"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return str(folder / name)


def stand_in(capabilities, version=(12, 9)):
    """As much of a compiler as chooses what to compile for."""
    made = object.__new__(nvrtc.Nvrtc)
    made.architectures, made.version = capabilities, version
    return made


def test_code_for_a_card_that_it_knows(compiler):
    assert compiler.version >= (11, 2) and compiler.architectures == sorted(compiler.architectures)
    image = compiler.compile(SOURCE, HEADERS, (8, 6))
    assert image.kind == "cubin" and image.code.startswith(b"\x7fELF") and b"sums" in image.code
    assert compiler.compile(SOURCE, HEADERS, (8, 6)).code == image.code


def test_code_for_the_oldest_card(compiler):
    if 61 not in compiler.architectures:
        pytest.skip(f"NVRTC {compiler.version} does not know compute capability 6.1")
    assert compiler.compile(SOURCE, HEADERS, (6, 1)).code.startswith(b"\x7fELF")


def test_ptx_for_a_card_that_is_newer_than_it(compiler):
    newest = compiler.architectures[-1]
    image = compiler.compile(SOURCE, HEADERS, (99, 0))
    assert image.kind == "ptx" and f".target sm_{newest}".encode() in image.code
    assert b"sums" in image.code and image.code.endswith(b"\0")


def test_a_card_that_is_older_than_it_knows(compiler):
    with pytest.raises(Unavailable) as caught:
        compiler.compile(SOURCE, HEADERS, (2, 0))
    assert caught.value.reason.endswith("and up, and this card has 2.0")


def test_an_error_comes_with_the_log(compiler):
    with pytest.raises(RuntimeError, match=r"(?s)COMPILATION.*source.cu\(10\): error.*\"SIZE\" is undefined"):
        compiler.compile(SOURCE, {"size.h": ""}, (8, 6))
    with pytest.raises(RuntimeError, match="(?s)INVALID_OPTION.*--bogus"):
        compiler.compile(SOURCE, HEADERS, (8, 6), ["--bogus"])


def test_the_log_tells_of_registers(compiler):
    log = compiler.compile(SOURCE, HEADERS, (8, 6), ["--ptxas-options=-v"]).log
    assert re.search(r"Compiling entry function 'sums' for 'sm_86'", log)
    assert re.search(r"Used \d+ registers", log) and "0 bytes spill stores, 0 bytes spill loads" in log


def test_there_are_no_headers_but_those_given(compiler):
    """Mathematics and shuffles are built in; of the standard library there is nothing."""
    with pytest.raises(RuntimeError, match="could not open source file"):
        compiler.compile("#include <cstdint>", {}, (8, 6))
    assert compiler.compile("__device__ void f(float* x) { x[0] = expf(__shfl_down_sync(~0u, x[0], 1)); }", {}, (8, 6))


def test_fast_math_is_off(compiler):
    """--use_fast_math would flush denormal numbers to zero and divide approximately."""
    source = 'extern "C" __global__ void divide(float* x) { x[0] = x[1] / x[2]; }'
    ptx = compiler.compile(source, {}, (99, 0)).code
    assert b"div.rn.f32" in ptx and b".ftz" not in ptx


@pytest.mark.parametrize(
    ("capability", "target"),
    [((7, 5), "sm_75"), ((8, 9), "compute_86"), ((12, 1), "compute_120"), ((10, 0), "sm_100"), ((6, 1), "sm_61")],
)
def test_what_is_compiled_for(capability, target):
    assert stand_in([50, 61, 75, 86, 100, 120]).target(capability) == target


def test_a_card_that_later_cudas_dropped():
    with pytest.raises(Unavailable) as caught:
        stand_in([75, 80], (13, 0)).target((6, 1))
    assert caught.value.reason == "NVRTC 13.0 compiles for compute capability 7.5 and up, and this card has 6.1"
    assert caught.value.remedy.startswith(
        "install a build of torch for CUDA 12.6, up to 2.14: pip install 'torch<2.15'"
    )


@linux
@pytest.mark.parametrize(
    ("cuda", "command"),
    [
        ("12.6", "'nvidia-cuda-nvrtc-cu12==12.6.*'"),
        ("13.0", "'nvidia-cuda-nvrtc==13.0.*'"),
        (None, "'nvidia-cuda-nvrtc-cu12==12.6.*'"),
    ],
)
def test_none_at_all(nowhere, monkeypatch, cuda, command):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            nvrtc.find()
        assert caught.value.reason == "there is no NVRTC, NVIDIA's compiler as a library"
        assert caught.value.remedy == f"pip install {command}"
        nvrtc._outcome.cache_clear()


@linux
def test_looked_for_once(nowhere, monkeypatch):
    looks = []
    monkeypatch.setattr(nvrtc, "_candidates", lambda: looks.append(1) or [])
    for _ in range(3):
        with pytest.raises(Unavailable):
            nvrtc.find()
    assert looks == [1]


def test_elsewhere_than_on_linux(nowhere, monkeypatch):
    monkeypatch.setattr(nvrtc.sys, "platform", "win32")
    with pytest.raises(Unavailable, match="on Linux only"):
        nvrtc.find()


@pytest.mark.parametrize("cuda", ["12.6", "13.0", None])
def test_the_places_by_torchs_cuda(nowhere, monkeypatch, cuda):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_HOME", str(nowhere / "home"))
    packages = nowhere / "site-packages"
    wheel12 = put(packages / "nvidia" / "cuda_nvrtc" / "lib")
    wheel13 = put(packages / "nvidia" / "cu13" / "lib", "libnvrtc.so.13")
    mangled = put(packages / "torch" / "lib", "libnvrtc-672ee683.so.11.2")
    home, toolkit = put(nowhere / "home" / "lib64"), put(nowhere / "toolkit" / "lib64", "libnvrtc.so.13")
    put(packages / "nvidia" / "cuda_nvrtc" / "lib", "libnvrtc-builtins.so.12.9")
    put(packages / "nvidia" / "cuda_nvrtc" / "lib", "libnvrtc.alt.so.12")
    put(packages / "torch" / "lib", "libnvrtc-builtins.so.11.8")
    twelve, thirteen = [wheel12, "libnvrtc-of-nobody.so.12", home], [wheel13, toolkit]
    best = [*twelve, *thirteen] if cuda == "12.6" else [*thirteen, *twelve]
    assert nvrtc._candidates() == [*best, mangled]


@linux
def test_a_broken_one_is_named_and_the_next_one_taken(compiler, nowhere, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    broken = put(nowhere / "site-packages" / "nvidia" / "cuda_nvrtc" / "lib")
    nvrtc._outcome.cache_clear()
    with pytest.raises(Unavailable) as caught:
        nvrtc.find()
    assert caught.value.reason.startswith(f"there is no NVRTC, NVIDIA's compiler as a library ({broken} cannot be used")
    monkeypatch.setattr(nvrtc, "SONAMES", (compiler.path,))
    nvrtc._outcome.cache_clear()
    assert nvrtc.find().version == compiler.version


@linux
def test_a_library_that_is_none(nowhere, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("there is no g++ on PATH")
    library = tmp_path / "libnvrtc.so.12"
    subprocess.run(["g++", "-shared", "-x", "c", os.devnull, "-o", library], check=True)
    with pytest.raises(Unavailable, match=r"libnvrtc.so.12 is too old"):
        nvrtc.find(library)


@linux
def test_without_its_builtins(compiler, start, tmp_path):
    """In a process of its own, where no other is loaded: of one file the loader makes one library."""
    path = Path(compiler.path)
    if not path.is_file():
        pytest.skip("the NVRTC here is known to the loader only")
    alone = tmp_path / path.name
    alone.symlink_to(path)
    out, err = start(LOOK, alone).communicate(timeout=60)
    assert out.startswith(f"the NVRTC in {tmp_path} is not whole (") and "libnvrtc-builtins.so" in out, err
    assert start(LOOK, path).communicate(timeout=60)[0] == "cubin\n"
