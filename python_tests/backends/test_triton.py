"""Which tensors the Triton kernels serve, and what is said where they cannot."""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch

from srnas_fast.backends import choice, triton, triton_kernel
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

X = torch.zeros(2)
CARD = torch.device("cuda", 0)


class OnACard:
    """As much of a tensor on a GPU as is looked at."""

    def __init__(self, dtype=torch.float32, device=CARD):
        self.dtype, self.device, self.is_cpu = dtype, device, False


@pytest.fixture
def card(monkeypatch):
    """A GPU, as far as torch tells, on which a trial succeeds; its compute capability can be set."""
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    found = {"capability": (8, 6), "trial": None}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(triton, "_trial", lambda device: found["trial"])
    monkeypatch.setattr(choice, "_told", set())
    triton._why_not_on.cache_clear()
    yield found
    triton._why_not_on.cache_clear()


def test_a_card_has_them_unless_another_backend_is_forced(card, monkeypatch):
    assert triton_kernel("weighted_sum", OnACard()).__name__ == "weighted_sum"
    for name in ("reference", "cpu", "cuda"):
        monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
        assert triton_kernel("weighted_sum", OnACard()) is None


def test_the_cpu_of_a_machine_with_a_card_has_them_not(card, monkeypatch):
    for name in ("", "triton"):
        monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
        assert triton_kernel("weighted_sum", X) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_forced_without_a_gpu_it_is_refused_and_the_interpreter_serves(monkeypatch):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="is 'triton', but there is no CUDA device; use a machine with one, or unset"):
        triton_kernel("weighted_sum", X)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.why_not(X.device) is None
    monkeypatch.delenv("SRNAS_FAST_BACKEND")
    assert triton_kernel("weighted_sum", X) is None


@pytest.mark.parametrize("name", ["weighted_sum", "weighted_sum_backward", "separable_moments"])
def test_what_is_served(card, name):
    for dtype in triton.TYPES:
        assert triton_kernel(name, OnACard(dtype), None).__name__ == name
    assert triton_kernel(name, OnACard(torch.float64)) is None
    assert triton_kernel(name, OnACard(), OnACard(torch.float64)) is None
    assert triton_kernel(name, OnACard(torch.float64), types=[torch.float64]) is not None
    assert triton_kernel(name, OnACard(device=torch.device("meta"))) is None


def test_every_name_is_a_function_of_its_file(card):
    for name in [*triton.FILES, *triton.FILES.values(), "separable_gradient"]:
        assert callable(triton_kernel(name, OnACard()))


def test_a_card_that_is_too_old_is_left_to_cuda_without_a_word_and_refused_where_forced(card, monkeypatch, capsys):
    card["capability"] = (6, 1)
    assert triton_kernel("weighted_sum", OnACard()) is None
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    with pytest.raises(InputError, match="is 'triton', but GTX 1080 Ti has compute capability 6.1, and Triton needs 7"):
        triton_kernel("weighted_sum", OnACard())


@pytest.mark.parametrize("version", ["2.3.1", "3.3.1+git0a1b2c3"])
def test_a_triton_that_is_too_old_is_told_once(card, monkeypatch, capsys, version):
    monkeypatch.setattr("triton.__version__", version)
    assert [triton_kernel("weighted_sum", OnACard()) for _ in range(2)] == [None] * 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"no Triton kernels: Triton {version} is too old, they need 3.4. Plain PyTorch is used" in line
    assert "Remedy: pip install 'torch>=2.8'" in line


@pytest.mark.parametrize("version", ["3.4.0", "3.10.0", "4.0.0+git0a1b2c3"])
def test_a_triton_that_is_new_enough(card, monkeypatch, version):
    monkeypatch.setattr("triton.__version__", version)
    assert triton_kernel("weighted_sum", OnACard()).__name__ == "weighted_sum"


def test_tiles_are_tuned_on_request(card, monkeypatch, tmp_path):
    monkeypatch.setenv("SRNAS_FAST_CACHE", str(tmp_path))
    for asked, folder in (("1", tmp_path), ("0", None), ("", None)):
        monkeypatch.setenv("SRNAS_FAST_TUNE", asked)
        triton_kernel("separable_sum", OnACard())
        assert import_module("srnas_fast.kernels.tuning").folder == folder


def test_a_trial_that_fails_is_told_once(card, monkeypatch, capsys):
    card["trial"] = Unavailable("a trial of them failed (no C compiler)", "install one")
    assert [triton_kernel("weighted_sum", OnACard()) for _ in range(3)] == [None] * 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("srnas_fast: no Triton kernels: a trial of them failed (no C compiler). Plain PyTorch is")
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    with pytest.raises(InputError, match="is 'triton', but a trial of them failed"):
        triton_kernel("weighted_sum", OnACard())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_trial_says_what_goes_wrong(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    kernel = import_module("srnas_fast.kernels.weighted_sum")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(triton, "_function", lambda name: getattr(kernel, name))
    monkeypatch.setattr(kernel, "weighted_sum", broken)
    assert triton._trial(X.device).reason == "a trial of them failed (Failed to find C compiler.)"
    monkeypatch.setattr(kernel, "weighted_sum", lambda y, *rest: y.fill_(3))
    assert triton._trial(X.device).reason == "1 + 1 is 3.0 by them here"
    monkeypatch.setattr(kernel, "weighted_sum", lambda y, *rest: y.fill_(2))
    assert triton._trial(X.device) is None


def test_a_card_that_is_not_the_current_one_is_made_it(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    kernel = triton_kernel("weighted_sum", OnACard())
    assert kernel.func is choice._on and kernel.args[0] == CARD
