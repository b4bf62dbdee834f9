"""What programs on a GPU need, and what is said where one of it cannot be had."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srnas_fast.backends import choice, compiled, compiled_kernel, cpu, cubins, driver, gpu, nvrtc
from srnas_fast.backends.build import Build
from srnas_fast.backends.nvrtc import Image
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

X = torch.zeros(2)
CARD = torch.device("cuda", 0)


class Compiler(nvrtc.Nvrtc):
    """NVRTC, as far as it is asked here; counts what it compiles."""

    def __init__(self, architectures=(61, 86, 90), version=(12, 6), failure=None):
        self.architectures, self.version, self.failure = list(architectures), version, failure
        self.compiled = []

    def compile(self, source, headers, capability, options=()):
        self.compiled.append(self.target(capability))
        if self.failure:
            raise self.failure
        return Image(b"code", "cubin", "")


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GTX 1080 Ti, as far as torch tells, and all that programs need; each of it can be replaced."""
    loaded = []
    found = {
        "capability": (6, 1),
        "compiler": Compiler(),
        "driver": SimpleNamespace(version=(12, 6), load=lambda code, names, index: loaded.append((code, *names))),
        "built": Build(None, Path("/cache/a"), None),
        "loaded": loaded,
    }

    def of(name):
        def find():
            if isinstance(found[name], Exception):
                raise found[name]
            return found[name]

        return find

    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setenv("SRNAS_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(gpu.torch, "zeros", lambda *sizes, device: None)
    monkeypatch.setattr(nvrtc, "find", of("compiler"))
    monkeypatch.setattr(driver, "find", of("driver"))
    monkeypatch.setattr(cpu, "outcome", lambda: found["built"])
    monkeypatch.setattr(choice, "_told", set())
    monkeypatch.setattr(cubins, "_told", set())
    caches = gpu._missing_on, gpu._why_not_on
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def test_all_is_there_and_found_out_once(card):
    assert [gpu.why_not(CARD) for _ in range(3)] == [None] * 3
    assert card["compiler"].compiled == ["sm_61"] and card["loaded"] == [(b"code", "srnas_fast_trial")]


def test_a_look_builds_nothing(card, monkeypatch):
    monkeypatch.setattr(cpu, "outcome", lambda: pytest.fail("nothing is to be built"))
    assert gpu.look(CARD) is None
    assert not card["compiler"].compiled and not card["loaded"]


def test_no_gpu():
    for ask in (gpu.look, gpu.why_not):
        assert str(ask(X.device)) == "there is no CUDA device; use a machine with one"


def test_a_newer_card_than_nvrtc_knows_is_compiled_by_the_driver(card):
    card["capability"] = (12, 1)
    assert gpu.why_not(CARD) is None and card["compiler"].compiled == ["compute_90"]


ROCM = "this torch is built for ROCm; use an NVIDIA card"
OLD = "GTX 1080 Ti has compute capability 5.2, and programs need 6.1; use a newer card"
DROPPED = "NVRTC 13.0 compiles for compute capability 7.5 and up, and this card has 6.1; install a build"
LAUNCHING = "the C++ code that launches them cannot be had (there is no C++ compiler on PATH); install g++"


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("capability", (5, 2), OLD),
        ("compiler", Unavailable("there is no NVRTC", "pip install it"), "there is no NVRTC; pip install it"),
        ("compiler", Compiler([75, 90], (13, 0)), DROPPED),
        ("compiler", Compiler(failure=Unavailable("it is not whole", "pip")), "it is not whole; pip"),
        ("compiler", Compiler(failure=RuntimeError("NVRTC: no room\nmore")), "a trial of them failed (NVRTC: no room)"),
        ("driver", Unavailable("there is no CUDA driver", "install it"), "there is no CUDA driver; install it"),
        ("built", Unavailable("there is no C++ compiler on PATH", "install g++"), LAUNCHING),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_in_one_line(card, name, state, said):
    card[name] = state
    failure = gpu.why_not(CARD)
    assert str(failure).startswith(said) and "\n" not in str(failure)
    assert gpu.why_not(CARD) is failure


def test_rocm(card, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert str(gpu.why_not(CARD)) == ROCM


def test_a_driver_that_does_not_take_the_code(card):
    def load(code, names, index):
        raise Unavailable("the driver, of CUDA 12.4, does not take the GPU code", "install a newer NVIDIA driver")

    card["driver"].load = load
    assert str(gpu.why_not(CARD)).startswith("the driver, of CUDA 12.4, does not take the GPU code; install a newer")


def test_full_memory_says_nothing_about_programs(card):
    def load(code, names, index):
        raise torch.OutOfMemoryError("no room")

    before, card["driver"].load = card["driver"].load, load
    with pytest.raises(torch.OutOfMemoryError):
        gpu.why_not(CARD)
    card["driver"].load = before
    assert gpu.why_not(CARD) is None


def test_a_full_disk_is_told_and_not_needed(card, monkeypatch, capsys):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cubins, "replacing", full)
    assert gpu.why_not(CARD) is None and card["loaded"]
    [line] = capsys.readouterr().err.splitlines()
    assert "GPU code cannot be kept ([Errno 28] No space left on device): it is compiled for this process alone" in line


def test_the_trial_compiles(card, monkeypatch):
    """By the NVRTC that is here, for the oldest card."""
    monkeypatch.undo()
    try:
        compiler = nvrtc.find()
    except Unavailable as failure:
        pytest.skip(str(failure))
    capability = max((6, 1), divmod(compiler.architectures[0], 10))
    image = compiler.compile(gpu.TRIAL, {}, capability)
    assert image.kind == "cubin" and b"srnas_fast_trial" in image.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_forced_without_a_gpu(monkeypatch):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    with pytest.raises(InputError, match="is 'cuda', but there is no CUDA device; use a machine with one, or unset"):
        compiled_kernel("weighted_sum", X)


def test_forced_beside_a_gpu_the_cpu_computes_in_plain_torch(card, monkeypatch):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    assert compiled_kernel("weighted_sum", X) is None


def test_a_cpu_without_a_compiler_hears_nothing_of_gpus(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "cpu_kernels", lambda: None)
    assert compiled_kernel("weighted_sum", X) is None
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_nothing_is_missing_or_it_is_told():
    failure = gpu.why_not(torch.device("cuda", torch.cuda.current_device()))
    if failure:
        pytest.skip(str(failure))
