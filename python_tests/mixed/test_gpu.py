"""Whether the programs of a GPU take an image, what is said where there are none, and that NVRTC compiles them for the
cards there are; no GPU is needed for it."""

import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.backends import choice, nvrtc
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError
from srnas_fast.mixed import compile_ahead, gpu, program
from srnas_fast.mixed.gpu import code_of, takes  # as they are, whatever the tests of this room put in its place

CARD = torch.device("cuda", 0)


def image(dtype=torch.float32, shape=(2, 3, 8, 8), strides=None):
    """As much of an image on a GPU as is looked at."""
    strides = strides or torch.empty(shape, device="meta").stride()
    return SimpleNamespace(dtype=dtype, device=CARD, shape=shape, stride=lambda: strides)


@pytest.fixture
def card(monkeypatch):
    """A GPU, as far as torch tells, for which programs can be had unless a failure is set."""
    found = {"failure": None, "capability": (8, 6)}
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(gpu, "why_not", lambda device: found["failure"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    monkeypatch.setattr(choice, "_told", set())
    return found


@pytest.mark.parametrize(
    ("name", "served"), [("", True), ("cuda", True), ("triton", False), ("cpu", False), ("reference", False)]
)
def test_they_serve_unless_another_backend_is_forced(card, monkeypatch, capsys, name, served):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert takes(image(dtype)) == served
    assert not takes(image(torch.int64))
    if not served:
        card["failure"] = Unavailable("NVRTC is on holiday", "wait")
        assert not takes(image()) and not capsys.readouterr().err


def test_an_image_whose_elements_are_counted_in_more_than_32_bits(card):
    assert takes(image(shape=(2, 64, 4096, 4096), strides=(2**30, 2**24, 4096, 1)))
    assert not takes(image(shape=(1, 129, 4096, 4096), strides=(2**32, 2**24, 4096, 1)))
    assert not takes(image(shape=(128, 1, 4096, 4096), strides=(2**24, 2**24, 4096, 1)))


@pytest.mark.parametrize(("capability", "known"), [((8, 6), "triton"), ((6, 1), "reference")])
def test_a_failure_is_told_once_and_refused_where_they_are_forced(card, monkeypatch, capsys, capability, known):
    card |= {"failure": Unavailable("NVRTC is on holiday", "wait"), "capability": capability}
    assert [takes(image()) for _ in range(3)] == [False] * 3
    assert capsys.readouterr().err == (
        "srnas_fast: no GPU programs: NVRTC is on holiday. Mixed operations run in branches, with the same results. "
        f"Remedy: wait; SRNAS_FAST_BACKEND={known} silences this line.\n"
    )
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    with pytest.raises(InputError) as caught:
        takes(image())
    assert str(caught.value) == (
        "SRNAS_FAST_BACKEND is 'cuda', but NVRTC is on holiday; wait, or unset SRNAS_FAST_BACKEND"
    )


def programs(*channels):
    """Programs of convolutions of so many channels."""
    made = (MixedOp([nn.Conv2d(count, count, 3, padding=1), nn.Identity()]) for count in channels)
    texts = [
        program.describe(op._prepare().plan, {0, 1}, count, 1)[0] for op, count in zip(made, channels, strict=True)
    ]
    return [gpu.GpuProgram(program.program_of(text), torch.float32, torch.float32) for text in texts]


@pytest.fixture
def loader(card, monkeypatch):
    """A compiler that only counts what it is asked for, and a driver that numbers kernels."""
    asked = []

    def compiled(sources, capability):
        asked.append(len(sources))
        time.sleep(0.05)  # long enough for another thread to come by
        return [nvrtc.Image(b"code", "cubin", "") for _ in sources]

    numbers = itertools.count(1)
    found = SimpleNamespace(
        launch=1, load=lambda code, names, index: [next(numbers)], context=lambda index: (index + 1, 2, 3)
    )
    monkeypatch.setattr(gpu, "cubins", compiled)
    monkeypatch.setattr(gpu.driver, "find", lambda: found)
    monkeypatch.setattr(gpu, "_codes", {})
    gpu.capability_of.cache_clear()
    yield asked
    gpu.capability_of.cache_clear()


def test_programs_are_compiled_all_at_once_and_only_once(loader):
    first, second, third = programs(3, 4, 5)
    gpu.load([first, second, first], CARD)
    gpu.load([second, third], CARD)
    gpu.load([first], CARD)
    assert loader == [2 * len(gpu.KERNELS), len(gpu.KERNELS)]
    functions = [gpu._codes[program, CARD].functions for program in (first, second, third)]
    assert len(set(itertools.chain(*functions))) == 3 * len(gpu.KERNELS)


def test_all_programs_of_a_network_are_compiled_ahead(monkeypatch):
    asked = []
    monkeypatch.setattr(program, "enabled", True)
    monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
    monkeypatch.setattr(gpu, "takes", lambda x: True)
    monkeypatch.setattr(gpu, "load", lambda programs, device: asked.extend(programs))
    alike = [MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity()]) for _ in range(2)]
    pools = MixedOp([nn.MaxPool2d(3, 1, 1), nn.Identity()])  # which do not tell how many channels they see
    partial = MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity()], partial=2)
    assert compile_ahead(nn.Sequential(*alike, pools, partial)) == 2
    assert [(one.made.channels, one.made.partial) for one in asked] == [(4, 1), (4, 2)]


def test_threads_that_need_a_program_at_once_all_get_it(loader):
    [one] = programs(3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: code_of(one.made, image(), torch.float32), range(8)))
    assert loader == [len(gpu.KERNELS)] and None not in found and len(set(map(id, found))) == 1


def test_a_program_that_does_not_compile_is_told_of_and_runs_in_branches(loader, monkeypatch, capsys):
    def broken(sources, capability):
        raise RuntimeError("NVRTC 12.9 for sm_86\nmaps.h(3): error: it does not fit")

    monkeypatch.setattr(gpu, "cubins", broken)
    [one] = programs(3)
    assert code_of(one.made, image(), torch.float32) is None
    assert "maps.h(3): error: it does not fit" in capsys.readouterr().err


def test_of_rocm_nobody_expects_them(card, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    card["failure"] = Unavailable("this torch is built for ROCm", "use an NVIDIA card")
    assert not takes(image()) and not capsys.readouterr().err
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    with pytest.raises(InputError, match="built for ROCm"):
        takes(image())


def separable(size, stages=1):
    layers = []
    for _ in range(stages):
        depthwise = nn.Conv2d(12, 12, size, padding=size // 2, groups=12, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12)]
    return nn.Sequential(*layers)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(6, 1), (7, 5), (9, 0), (12, 0)])
def test_nvrtc_compiles_every_kernel_and_next_to_nothing_is_spilled(monkeypatch, capability):
    try:
        compiler = nvrtc.find()
        if not compiler.target(capability).startswith("sm_"):
            pytest.skip(f"NVRTC {compiler.version} does not know compute capability {capability}")
    except Unavailable as failure:
        pytest.skip(str(failure))
    made = []

    def code_of(made_of, x, parameter):
        made.append(gpu.program_of(made_of, x.dtype, parameter))  # and there are none, so that branches compute

    for name, replacement in {"on_gpu": lambda x: True, "takes": lambda x: True, "code_of": code_of}.items():
        monkeypatch.setattr(gpu, name, replacement)
    monkeypatch.setattr(program, "enabled", True)
    pooled, dense = nn.MaxPool2d(3, 1, 1), nn.Conv2d(12, 12, 3, padding=1)
    op = MixedOp([separable(3), separable(5, stages=2), dense, pooled, nn.Identity()])
    op(torch.randn(2, 12, 8, 8), torch.rand(5))
    [ours] = made
    for source in gpu.sources(ours):
        log = compiler.compile(source.text, source.headers, capability, ["--ptxas-options=-v"]).log
        spilled = [int(bytes_a_thread) for bytes_a_thread in re.findall(r"(\d+) bytes spill", log)]
        assert spilled and max(spilled) <= 16, log
        assert max(map(int, re.findall(r"(\d+) bytes smem", log)), default=0) <= 48 * 1024
