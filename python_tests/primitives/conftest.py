import pytest
import torch

from srnas_fast.primitives.flops import hand_over


@pytest.fixture(autouse=True, scope="session")
def flop_formulas():
    """Known to torch's counter, whichever of the two was imported first."""
    hand_over()


@pytest.fixture(params=["cpu", "reference"])
def backend(request, monkeypatch):
    """Each backend in turn; a machine without compiled kernels fails the tests of theirs."""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", request.param)
    return request.param


def _layouts(x):
    n, c, h, w = x.shape
    yield "NCHW", x.clone()
    yield "channels_last", x.clone().to(memory_format=torch.channels_last)
    big = torch.full((n + 1, c + 3, h + 2, w + 5), float("nan"), dtype=x.dtype)
    for name, form in (("slice", torch.contiguous_format), ("channels_last slice", torch.channels_last)):
        part = big.clone(memory_format=form)[1:, 2:-1, 1:-1, 3:-2]
        part.copy_(x)
        yield name, part
    yield "every second column", torch.stack([x, x], -1).flatten(-2)[..., ::2]
    yield "transposed", x.mT.contiguous().mT


@pytest.fixture
def layouts():
    """A function: the same values in NCHW, channels_last, slices of larger tensors in both, spread out, transposed."""
    return _layouts
