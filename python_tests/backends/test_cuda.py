"""What the CUDA kernels need, what is said where they cannot be had, and that nvcc builds them."""

import shutil

import pytest
import torch

from srnas_fast.backends import build, choice, compiled, compiled_kernel, cuda
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

X = torch.zeros(2)
CARD = torch.device("cuda", 0)


def nvcc(folder, release="12.6", least=50, most=90):
    """A folder with an nvcc as it looks from outside."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    known = " ".join(f"compute_{number}" for number in range(least, most + 1, 5))
    path.write_text(f"#!/bin/sh\ncase $1 in --version) echo Cuda, release {release}, V1;; *) echo {known};; esac\n")
    path.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """As in a process that has not asked for the kernels yet, and forces nothing."""
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(cuda, "_outcomes", {})
    monkeypatch.setattr(choice, "_told", set())
    cuda._capability.cache_clear()
    yield
    cuda._capability.cache_clear()


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GTX 1080 Ti, as far as torch tells, and an nvcc that goes with it."""
    found = {"capability": (6, 1)}
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "cuda")))
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    return found


def refused(device=CARD):
    with pytest.raises(Unavailable) as caught:
        cuda.require(device)
    return f"{caught.value.reason}; {caught.value.remedy}"


def test_one_build_serves_all_that_there_is(card, monkeypatch):
    builds = []

    def quick(recipe):
        builds.append(recipe)
        return build.Build("the module", None, None)

    monkeypatch.setattr(cuda, "build", quick)
    assert cuda.cuda_kernels("separable_sum", torch.float32, CARD) == "the module"
    assert cuda.cuda_kernels("simplex_project", torch.float64, CARD) == "the module"
    assert cuda.cuda_kernels("separable_sum", torch.float64, CARD) is None
    assert cuda.cuda_kernels("pool", torch.float32, CARD) is None
    assert cuda.cuda_kernels("weighted_sum", torch.float32, torch.device("cpu")) is None  # beside a GPU
    assert cuda.cuda_kernels("weighted_sum", torch.float32, torch.device("meta")) is None
    [recipe] = builds
    assert recipe.parameters["flags"][-1] == "-gencode=arch=compute_60,code=compute_60"  # the nearest this one knows
    for name in ("reference", "cpu", "triton"):
        monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
        assert cuda.cuda_kernels("separable_sum", torch.float32, CARD) is None


def test_a_card_that_is_too_old(card):
    card["capability"] = (5, 2)
    assert refused() == "GTX 1080 Ti has compute capability 5.2, and they need 6.1; use a newer card"


def test_an_nvcc_of_another_cuda(card, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "other", "13.0")))
    assert refused() == (
        "nvcc is of CUDA 13.0, torch of CUDA 12.6; install a CUDA 12 toolkit and name its folder in CUDA_HOME"
    )


def test_no_nvcc(card, monkeypatch):
    monkeypatch.setattr(cuda.shutil, "which", lambda name, path: None)
    assert refused().startswith("there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda; install the CUDA")


@pytest.mark.parametrize("script", ["exit 3", "echo Cuda"])
def test_an_nvcc_that_does_not_run_or_tell_its_version(card, monkeypatch, tmp_path, script):
    path = nvcc(tmp_path / "broken") / "bin" / "nvcc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "broken"))
    assert refused().startswith(("nvcc does not run (", "nvcc does not tell its version ("))


def test_rocm(card, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "built for ROCm" in refused()


@pytest.mark.parametrize(
    ("capability", "option"),
    [
        ((7, 5), "-gencode=arch=compute_75,code=sm_75"),
        ((8, 9), "-gencode=arch=compute_85,code=compute_85"),  # none of its own: the driver compiles the nearest
        ((12, 0), "-gencode=arch=compute_90,code=compute_90"),
    ],
)
def test_code_for_the_card_at_hand(card, capability, option):
    assert cuda.target(capability) == option


def test_an_nvcc_that_no_longer_knows_the_card(card, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "new", "12.9", least=75)))
    with pytest.raises(
        Unavailable, match=r"CUDA 12.9 compiles for compute capability 7.5 and up, and this card has 6.1"
    ):
        cuda.target((6, 1))


def test_a_failure_is_told_once_and_not_tried_again(card, monkeypatch, capsys):
    tries = []

    def fail(recipe):
        tries.append(recipe)
        raise Unavailable("nvcc is on holiday", "wait")

    monkeypatch.setattr(cuda, "build", fail)
    asked = ("weighted_sum", torch.float32, CARD)
    assert [cuda.cuda_kernels(*asked) for _ in range(3)] == [None] * 3
    assert len(tries) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "srnas_fast: no CUDA kernels: nvcc is on holiday. Plain PyTorch is used: slower, same results"
    )
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    with pytest.raises(InputError, match="is 'cuda', but nvcc is on holiday; wait, or unset SRNAS_FAST_BACKEND"):
        cuda.cuda_kernels(*asked)
    assert len(tries) == 1


def test_a_cpu_without_a_compiler_hears_nothing_of_cuda(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "cpu_kernels", lambda: None)
    assert compiled_kernel("weighted_sum", X) is None
    assert capsys.readouterr().err == ""


def test_the_host_compiler_is_nvccs_choice_unless_one_is_named(card, monkeypatch, tmp_path):
    def command():
        cuda.recipe((6, 1)).job(tmp_path)
        return (tmp_path / "build.ninja").read_text()

    monkeypatch.delenv("CXX", raising=False)
    assert "-ccbin" not in command()
    monkeypatch.setenv("CXX", "g++ -m64")
    assert f"-ccbin={shutil.which('g++')} " in command() and "-m64" not in command()
    before = cuda.recipe((6, 1)).parameters
    monkeypatch.setenv("NVCC_CCBIN", "g++-12")
    assert cuda.recipe((6, 1)).parameters != before
    monkeypatch.setenv("MAX_JOBS", "3")
    assert cuda.recipe((6, 1)).job(tmp_path).command[-2:] == ["-j", "3"]


def test_what_nvcc_says_is_shown(card, monkeypatch, tmp_path):
    def failure(script):
        path = tmp_path / "cuda" / "bin" / "nvcc"
        path.write_text(path.read_text().replace("case $1 in", f"case $1 in -*bin*|-std*) {script}; exit 1;;", 1))
        monkeypatch.setenv("SRNAS_FAST_CACHE", str(tmp_path / "cache"))
        with pytest.raises(Unavailable) as caught:
            build.build(cuda.recipe((6, 1)))
        return str(caught.value)

    monkeypatch.delenv("CXX", raising=False)
    assert "nvcc fatal   : no such option" in failure("echo 'nvcc fatal   : no such option'")
    told = failure("echo '/a/very/long/path: error: #error -- unsupported GNU version! gcc versions later than 12'")
    assert "unsupported GNU version" in told and "name an older C++ compiler in CXX" in told


def test_a_card_of_pascal_with_a_torch_and_an_nvcc_of_cuda_13(card, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "new", "13.0", least=75)))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "install a build of torch for CUDA 12.6 and a CUDA toolkit up to 12.9" in refused()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_forced_without_a_gpu(monkeypatch):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    with pytest.raises(InputError, match="is 'cuda', but there is no CUDA device; use a machine with one, or unset"):
        compiled_kernel("weighted_sum", X)
    assert compiled_kernel("pool", X) is None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc on PATH")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which runs them")
def test_nvcc_builds_them_and_a_launch_without_a_card_is_an_error(monkeypatch, tmp_path, capsys, emulated):
    sources = tmp_path / "sources of mine"
    shutil.copytree(cuda.SOURCES, sources)
    monkeypatch.setenv("SRNAS_FAST_CACHE", str(tmp_path / "cache of mine"))
    made = build.build(cuda.recipe((8, 6), sources))
    assert "building the CUDA kernels, once for this machine" in capsys.readouterr().err
    assert build.build(cuda.recipe((8, 6), sources)).seconds is None
    for dtype, names in cuda.KERNELS.items():
        part = getattr(made.module, compiled.PARTS[dtype])
        assert {name for name in dir(part) if not name.startswith("_")} == set(names)
        assert part is not getattr(emulated, compiled.PARTS[dtype])  # nor of a build for another card
    logits, radius = torch.zeros(2, 3), torch.zeros((), dtype=torch.float64)
    rows = [2, 3, 0], logits.data_ptr(), radius.data_ptr(), False, logits.data_ptr()
    with pytest.raises(RuntimeError, match="cannot launch .*CUDA"):
        made.module.float32.simplex_project(0, logits.new_empty, *rows)
