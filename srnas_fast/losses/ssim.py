"""Structural similarity that gradients flow through."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError

RADIUS = 5  # an 11 x 11 window
SIGMA = 1.5
FLOOR = 0.01  # below this mean SSIM, log_ssim goes on along its tangent


def _blur(images: Tensor) -> Tensor:
    """Gaussian means of (N, H, W) over all whole windows: (N, H - 10, W - 10)."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    window = window / window.sum()
    images = F.conv2d(images[:, None], window.view(1, 1, -1, 1))
    return F.conv2d(images, window.view(1, 1, 1, -1))[:, 0]


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity of two batches, a scalar tensor, at most 1; differentiable in both.

    11 x 11 Gaussian window of sigma 1.5, whole windows only, each channel by itself: Wang et al., "Image
    quality assessment: from error visibility to structural similarity" (2004), eq. 13. Computed in float32 at
    least, also under autocast. Agrees with ``skimage.metrics.structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)``.

    Args:
        x: (N, C, H, W), H and W from 11 pixels up.
        y: the same shape.
        data_range: largest minus smallest value an image can have.

    Raises:
        InputError: shapes differ, are not (N, C, H, W), or a side is shorter than the window.

    >>> x = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    >>> ssim(x, x).item(), ssim(x, 1 - x).item() < 0
    (1.0, True)
    """
    if x.shape != y.shape or x.dim() != 4:
        raise InputError(f"SSIM of shapes {tuple(x.shape)} and {tuple(y.shape)}; give two equal ones, (N, C, H, W)")
    side = 2 * RADIUS + 1
    if not x.numel() or min(x.shape[-2:]) < side:
        raise InputError(f"SSIM of images of shape {tuple(x.shape)}; its window needs {side} pixels a side")
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = (image.to(dtype).flatten(0, 1) for image in (x, y))
        # Variances are differences of large numbers; taking a common constant out first keeps their digits.
        shift = y.detach().mean((1, 2), keepdim=True)
        a, b = x - shift, y - shift
        mean_a, mean_b, square_a, square_b, product = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
        variances = square_a - mean_a**2 + square_b - mean_b**2
        covariance = product - mean_a * mean_b
        mean_x, mean_y = mean_a + shift, mean_b + shift
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean()


def log_ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """``-log10(mean SSIM)``, a scalar tensor: 0 for equal images, larger for less alike ones.

    SSIM can be 0 or negative, where the logarithm has no value. Below a mean SSIM of 0.01 (loss 2) the loss
    goes on along its tangent, so that it stays finite and continuous, and its gradient points towards
    likeness. Arguments and errors are those of ``ssim``. The loss of HiNAS (arXiv 2012.13212).

    >>> x = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    >>> log_ssim(x, x).abs().item(), 2 < log_ssim(x, 1 - x).item() < 46
    (0.0, True)
    """
    value = ssim(x, y, data_range)
    tangent = -math.log10(FLOOR) + (FLOOR - value) / (FLOOR * math.log(10))
    return torch.where(value < FLOOR, tangent, -value.clamp_min(FLOOR).log10())
