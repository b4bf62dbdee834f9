"""Differentiable SSIM against scikit-image, and its gradients."""

import math
import sys

import numpy as np
import pytest
import torch
from skimage.data import camera
from skimage.metrics import structural_similarity

from srnas_fast.errors import InputError
from srnas_fast.losses import log_ssim, ssim
from srnas_fast.losses.ssim import FLOOR, _total, _window
from srnas_fast.metrics import LiveMemory


def pair(shape, noise=0.2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(shape, generator=generator, dtype=torch.float64)
    noisy = clean + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    return noisy.to(dtype), clean.to(dtype)


def skimage_ssim(x, y, data_range=1.0):
    values = [
        structural_similarity(
            a.numpy().astype(np.float64),
            b.numpy().astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
            channel_axis=0,
        )
        for a, b in zip(x, y, strict=True)
    ]
    return np.mean(values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1, 11, 11), (2, 3, 13, 40), (3, 1, 64, 64), (1, 2, 129, 11)])
def test_agrees_with_skimage(shape, dtype):
    x, y = pair(shape, dtype=dtype)
    assert ssim(x, y).item() == pytest.approx(skimage_ssim(x, y), abs=1e-5)
    assert ssim(255 * x, 255 * y, data_range=255).item() == pytest.approx(skimage_ssim(x, y), abs=1e-5)


def test_flat_bright_regions_keep_their_digits_in_float32():
    """E[x^2] - E[x]^2 cancels most where an image is bright and flat."""
    clean = torch.from_numpy(camera()[None, None] / 255.0)
    flat = 0.97 + 0.01 * clean
    noisy = flat + 1e-3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for x, y in [(clean + 0.1 * (1 - clean), clean), (noisy, flat)]:
        assert ssim(x.float(), y.float()).item() == pytest.approx(skimage_ssim(x, y), abs=1e-5)


def test_constant_images_by_hand():
    x, y = (
        torch.full((1, 1, 12, 12), 0.2, dtype=torch.float64),
        torch.full((1, 1, 12, 12), 0.6, dtype=torch.float64),
    )
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: the luminance term alone
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-12)
    assert log_ssim(x, y).item() == pytest.approx(-math.log10(expected), abs=1e-12)


def test_symmetric_and_one_for_equal_images():
    x, y = pair((2, 3, 20, 21))
    assert ssim(x, y).item() == pytest.approx(ssim(y, x).item(), abs=1e-14)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-14)


def test_sliced_and_channels_last_inputs():
    x, y = pair((2, 3, 30, 44))
    expected = ssim(x[..., ::2].contiguous(), y[..., ::2].contiguous())
    assert torch.allclose(ssim(x[..., ::2], y[..., ::2]), expected)
    assert torch.allclose(ssim(x[..., ::2].to(memory_format=torch.channels_last), y[..., ::2]), expected)


def test_under_autocast_and_for_half_precision():
    x, y = pair((1, 1, 32, 32), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ssim(x, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, ssim(x, y))
    half = ssim(x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, ssim(x.bfloat16().float(), y.bfloat16().float()))


@pytest.mark.parametrize("function", [ssim, log_ssim])
def test_gradcheck(function):
    x, y = pair((1, 2, 12, 13))
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("function", [ssim, log_ssim])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("few", [1, 3, 100])
def test_a_few_images_at_a_time_are_all_at_once(few, dtype, function, monkeypatch):
    x, y = (image.requires_grad_() for image in pair((3, 2, 15, 20), dtype=dtype))
    planes = [image.flatten(0, 1) for image in (x, y)]
    plain = _total(*planes, _window(x), 1.0) / (6 * 5 * 10)
    expected = plain if function is ssim else -plain.log10()
    monkeypatch.setattr(sys.modules["srnas_fast.losses.ssim"], "PIXELS", {"cpu": few * 15 * 20})
    value = function(x, y)
    found, right = (torch.autograd.grad(3 * loss, (x, y)) for loss in (value, expected))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, right, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-8)


def test_only_the_gradients_that_are_asked_for(monkeypatch):
    x, y = (image.requires_grad_() for image in pair((2, 1, 12, 13)))
    both = torch.autograd.grad(ssim(x, y), (x, y))
    asked, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, of: asked.append(len(of)) or grad(loss, of))
    for a, b, i in ((x, y.detach(), 0), (x.detach(), y, 1)):
        torch.testing.assert_close(grad(ssim(a, b), (x, y)[i])[0], both[i])
    assert asked == [1, 1]
    with torch.no_grad():
        value = ssim(x, y)
    assert not value.requires_grad and not ssim(x.detach(), y.detach()).requires_grad and asked == [1, 1]
    torch.testing.assert_close(value, ssim(x, y).detach(), rtol=0, atol=0)


def test_gradients_of_mixed_types_come_in_the_types_of_the_images():
    x, y = pair((1, 1, 12, 13))
    x, y = x.bfloat16().requires_grad_(), y.requires_grad_()
    ssim(x, y).backward()
    assert x.grad.dtype == torch.bfloat16 and y.grad.dtype == torch.float64


def test_it_holds_one_image_for_the_backward_pass():
    x, y = pair((12, 3, 128, 128), dtype=torch.float32)
    x.requires_grad_()
    with LiveMemory() as memory:
        loss = log_ssim(x, y)
        assert memory.held() < 1.01 * x.nbytes
        loss.backward()
    assert memory.peak < 8 * x.nbytes  # of the blurs of all images: 28


def test_it_goes_back_as_often_as_asked_but_not_twice_over():
    x, y = pair((1, 1, 12, 13))
    value = ssim(x.requires_grad_(), y)
    first, again = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(value, x, create_graph=True)


def test_gradcheck_below_the_floor():
    x, _ = pair((1, 1, 12, 13))
    y = (1 - x.detach()).requires_grad_()
    assert ssim(x, y).item() < 0
    assert torch.autograd.gradcheck(log_ssim, (x.requires_grad_(), y))


def with_mean_ssim(value):
    """Two constant images whose SSIM is ``value``, from 2 a b + c1 = value (a^2 + b^2 + c1) with b = 1."""
    c1 = 1e-4
    a = (2 - math.sqrt(4 - 4 * value * (value * (1 + c1) - c1))) / (2 * value)
    return torch.full((1, 1, 11, 11), a, dtype=torch.float64), torch.ones(1, 1, 11, 11, dtype=torch.float64)


def test_the_loss_and_its_slope_are_continuous_at_the_floor():
    values, slopes = [], []
    for target in (FLOOR * (1 - 1e-6), FLOOR * (1 + 1e-6)):
        x, y = with_mean_ssim(target)
        assert ssim(x, y).item() == pytest.approx(target, rel=1e-9)
        loss = log_ssim(x.requires_grad_(), y)
        values.append(loss.item())
        slopes.append(torch.autograd.grad(loss, x)[0].sum().item())
    assert values == pytest.approx([2, 2], abs=1e-5)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)


def test_far_below_the_floor_the_loss_is_finite_and_falls_along_its_gradient():
    x, _ = pair((1, 1, 16, 16))
    y = 1 - x
    x.requires_grad_()
    loss = log_ssim(x, y)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and loss > 2
    assert gradient.isfinite().all() and gradient.norm() > 0
    assert log_ssim(x - 1e-4 * gradient / gradient.norm(), y) < loss


def test_bad_shapes():
    x = torch.zeros(1, 1, 16, 16)
    for a, b in [(x, x[0]), (x[0], x[0]), (x, x[..., 1:]), (x, x.expand(2, 1, 16, 16))]:
        with pytest.raises(InputError, match="SSIM of shapes"):
            ssim(a, b)
    for small in (x[..., :10], x[..., :10, :], x[:0]):
        with pytest.raises(InputError, match="11 pixels"):
            log_ssim(small, small)
