"""The high-frequency error norm against its steps, by hand and one by one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from srnas_fast.errors import InputError
from srnas_fast.losses import hfen


def pair(shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple((scale * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2))


def responses(images):
    """Gaussian of each channel, Laplacian of each and their sum, one after the other."""
    square = np.arange(-2, 3) ** 2
    gaussian = np.exp(-(square[:, None] + square) / (2 * 1.5**2))
    gaussian /= gaussian.sum()
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    edges = []
    for image in images.double().numpy():
        smooth = [convolve(channel, gaussian)[2:-2, 2:-2] for channel in image]
        edges.append(sum(convolve(channel, laplacian)[1:-1, 1:-1] for channel in smooth))
    return np.stack(edges)


def steps(images):
    return responses(images) / responses(images).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 9, 31), (3, 1, 64, 13), (2, 4, 8, 8)])
def test_agrees_with_its_steps(shape, dtype):
    x, y = pair(shape, dtype=dtype)
    assert hfen(x, y).item() == pytest.approx(np.abs(steps(x) - steps(y)).mean(), rel=1e-5)


def test_one_window_by_hand():
    """A spot in the middle of the only window: the response is negative, counts in gray levels and keeps its sign."""
    x, zero = torch.zeros(1, 3, 7, 7, dtype=torch.float64), torch.zeros(1, 3, 7, 7, dtype=torch.float64)
    x[..., 3, 3] = 60 / 255
    line = np.exp(-(np.arange(-2, 3) ** 2) / 4.5)
    top, beside = line[2] ** 2 / line.sum() ** 2, line[2] * line[1] / line.sum() ** 2  # of the Gaussian
    expected = 3 * 60 * 4 * (top - beside)
    assert hfen(x, zero).item() == pytest.approx(expected, rel=1e-12)
    assert hfen(255 * x, zero, data_range=255).item() == pytest.approx(expected, rel=1e-12)
    assert hfen(zero, x).item() == pytest.approx(expected, rel=1e-12)
    assert hfen(60 / 255 - x, zero).item() == pytest.approx(1)  # positive: divided by itself


def test_the_maximum_is_that_of_the_batch():
    x, y = pair((2, 3, 20, 20))
    both, alone = hfen(x, y), (hfen(x[:1], y[:1]) + hfen(x[1:], y[1:])) / 2
    assert abs(both - alone) > 1e-3
    louder = torch.cat([x[:1], 0.5 * x[:1]])
    assert hfen(louder, torch.cat([x[:1], x[:1]])).item() == pytest.approx(hfen(x[:1], 0 * x[:1]).item() / 4)


def test_only_the_form_of_edges_counts():
    x, y = pair((2, 3, 20, 21))
    assert hfen(x, x).item() == 0
    assert hfen(x, 0.3 * x + 0.2).item() == pytest.approx(0, abs=1e-12)
    assert hfen(x, y).item() == pytest.approx(hfen(y, x).item(), abs=1e-14)


@pytest.mark.parametrize("level", [0, 1, 255])
def test_flat_batches_have_no_edges(level):
    flat, (x, _) = torch.full((2, 3, 16, 16), level / 255), pair((2, 3, 16, 16), dtype=torch.float32)
    flat.requires_grad_()
    assert hfen(flat, torch.zeros_like(flat)).item() == pytest.approx(0, abs=1e-4)
    loss = hfen(flat, x)
    (gradient,) = torch.autograd.grad(loss, flat)
    assert loss.item() == pytest.approx(np.abs(steps(x)).mean(), abs=1e-4)
    assert gradient.isfinite().all() and gradient.abs().max() < 1


def test_continuous_at_one_gray_level():
    x, y = pair((1, 3, 16, 16))
    at = x / (255 * responses(x).max())  # the largest response is one gray level
    assert hfen(at, y).item() == pytest.approx(hfen(x, y).item())
    below, above = (hfen((1 + step) * at, y).item() for step in (-1e-9, 1e-9))
    assert below == pytest.approx(above, abs=1e-8)
    assert hfen(0.5 * at, 0 * at).item() == pytest.approx(0.5 * hfen(at, 0 * at).item())


@pytest.mark.parametrize("shape", [(1, 1, 7, 7), (2, 3, 8, 10)])
def test_gradcheck(shape):
    x, y = pair(shape)
    assert torch.autograd.gradcheck(hfen, (x.requires_grad_(), y.requires_grad_()))


def test_gradcheck_below_one_gray_level():
    x, y = pair((1, 3, 8, 9), scale=0.002)
    assert torch.autograd.gradcheck(hfen, (x.requires_grad_(), y.requires_grad_()))


def test_sliced_and_channels_last_inputs():
    x, y = pair((2, 3, 20, 34))
    expected = hfen(x[..., ::2].contiguous(), y[..., ::2].contiguous())
    assert torch.allclose(hfen(x[..., ::2], y[..., ::2]), expected)
    assert torch.allclose(hfen(x[..., ::2].to(memory_format=torch.channels_last), y[..., ::2]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_and_for_half_precision(dtype):
    x, y = pair((2, 3, 16, 16), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hfen(x, y)
    assert value.dtype == torch.float32 and torch.equal(value, hfen(x, y))
    half = hfen(x.to(dtype), y)
    assert half.dtype == torch.float32 and torch.equal(half, hfen(x.to(dtype).float(), y))
    assert hfen(x.to(dtype), x.to(dtype)).item() == 0


def test_bad_shapes():
    x = torch.zeros(1, 3, 16, 16)
    for a, b in [(x, x[0]), (x[0], x[0]), (x, x[..., 1:]), (x, x.expand(2, 3, 16, 16))]:
        with pytest.raises(InputError, match="HFEN of shapes"):
            hfen(a, b)
    for small in (x[..., :6], x[..., :6, :], x[..., :1, :1], x[:0]):
        with pytest.raises(InputError, match="7 pixels"):
            hfen(small, small)
