"""Which tensors the Triton kernels serve, and what is said where they cannot."""

import pytest
import torch

from srnas_fast.backends import triton, triton_kernel
from srnas_fast.errors import InputError

X = torch.zeros(2)
CARD = torch.device("cuda", 0)


class OnACard:
    """As much of a tensor on a GPU as is looked at."""

    def __init__(self, dtype=torch.float32, device=CARD):
        self.dtype, self.device = dtype, device


@pytest.fixture
def card(monkeypatch):
    """A GPU, as far as torch tells; its compute capability can be set."""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    found = {"capability": (8, 6)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GTX 1080 Ti")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    triton._why_not_on.cache_clear()
    yield found
    triton._why_not_on.cache_clear()


@pytest.mark.parametrize("choice", ["", "reference", "cpu"])
def test_only_who_asks_gets_them(card, monkeypatch, choice):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", choice)
    assert triton_kernel("weighted_sum", OnACard()) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_forced_without_a_gpu_it_is_refused_and_the_interpreter_serves(monkeypatch):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="is 'triton', but there is no CUDA device; unset it for the best"):
        triton_kernel("weighted_sum", X)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.why_not(X.device) is None


@pytest.mark.parametrize("name", ["weighted_sum", "weighted_sum_backward", "separable_moments"])
def test_what_is_served(card, name):
    for dtype in triton.TYPES:
        assert triton_kernel(name, OnACard(dtype), None).__name__ == name
    assert triton_kernel(name, OnACard(torch.float64)) is None
    assert triton_kernel(name, OnACard(), OnACard(torch.float64)) is None
    assert triton_kernel(name, OnACard(torch.float64), types=[torch.float64]) is not None


def test_every_name_is_a_function_of_its_file(card):
    for name in [*triton.FILES, *triton.FILES.values(), "separable_gradient"]:
        assert callable(triton_kernel(name, OnACard()))


def test_a_card_that_is_too_old_is_refused(card):
    card["capability"] = (6, 1)
    with pytest.raises(InputError, match="is 'triton', but GTX 1080 Ti has compute capability 6.1"):
        triton_kernel("weighted_sum", OnACard())


def test_tensors_on_two_devices_are_refused(card):
    with pytest.raises(InputError, match="weighted_sum got tensors on cpu, cuda:0; move them to one device"):
        triton_kernel("weighted_sum", OnACard(), X)


def test_a_card_that_is_not_the_current_one_is_made_it(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    kernel = triton_kernel("weighted_sum", OnACard())
    assert kernel.func is triton._on and kernel.args[0] == CARD
