"""Structural similarity that gradients flow through."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError

RADIUS = 5  # an 11 x 11 window
SIGMA = 1.5
FLOOR = 0.01  # below this mean SSIM, log_ssim goes on along its tangent
# Pixels of the images that are compared at a time: more take more memory, fewer more calls, which a GPU waits for.
PIXELS = {"cpu": 2**17, "cuda": 2**20}


def _window(like: Tensor) -> Tensor:
    """The Gaussian along a side, of sum 1: (11,)."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=like.dtype, device=like.device)
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    return window / window.sum()


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Means of (N, H, W) over all whole windows: (N, H - 10, W - 10)."""
    images = F.conv2d(images[:, None], window.view(1, 1, -1, 1))
    return F.conv2d(images, window.view(1, 1, 1, -1))[:, 0]


def _total(x: Tensor, y: Tensor, window: Tensor, data_range: float) -> Tensor:
    """The similarities of (N, H, W) images, summed over all of them and all windows."""
    # Variances are differences of large numbers; taking a common constant out first keeps their digits.
    shift = y.detach().mean((1, 2), keepdim=True)
    a, b = x - shift, y - shift
    mean_a, squares, product = _blur(torch.cat([a, a * a + b * b, a * b]), window).chunk(3)
    mean_b = _blur(b, window)  # by itself: where only x learns, nothing goes back through it
    variances = squares - mean_a**2 - mean_b**2
    covariance = product - mean_a * mean_b
    mean_x, mean_y = mean_a + shift, mean_b + shift
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).sum()


class _MeanSSIM(torch.autograd.Function):
    """The mean similarity, whose gradients are there after the forward pass: a few images at a time go both ways, so
    that of all the blurred ones only those of a few images are ever held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, data_range: float, wanted: tuple[bool, bool]) -> Tensor:
        planes, (height, width) = x.shape[0], x.shape[1:]
        few = max(1, PIXELS.get(x.device.type, 2**20) // (height * width))
        count = planes * (height - 2 * RADIUS) * (width - 2 * RADIUS)
        gradients = [torch.empty_like(image) if asked else None for image, asked in zip((x, y), wanted, strict=True)]
        window, totals = _window(x), []
        for first in range(0, planes, few):
            some = slice(first, first + few)
            pair = [image[some].detach().requires_grad_(asked) for image, asked in zip((x, y), wanted, strict=True)]
            with torch.set_grad_enabled(any(wanted)):
                mean = _total(*pair, window, data_range) / count
            totals.append(mean.detach())
            if any(wanted):
                found = iter(torch.autograd.grad(mean, [image for image in pair if image.requires_grad]))
                for gradient in gradients:
                    if gradient is not None:
                        gradient[some] = next(found)
        ctx.save_for_backward(*gradients)
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("ssim keeps its first gradient and no graph, so create_graph=True cannot work")
        return *(None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors), None, None


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity of two batches, a scalar tensor, at most 1; differentiable, once, in both.

    For the backward pass it keeps the gradients, each as large as its images, and nothing else.

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
        RuntimeError: a second-order backward (``create_graph=True``).

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
        wanted = tuple(torch.is_grad_enabled() and image.requires_grad for image in (x, y))
        return _MeanSSIM.apply(x, y, data_range, wanted)


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
