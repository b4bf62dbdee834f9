"""The high-frequency error norm: how far the edges of two batches lie apart."""

import torch
from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError

SIGMA = 1.5  # of a Gaussian of 5 x 5 pixels
SIDE = 7  # of the Gaussian followed by the Laplacian of 3 x 3 pixels


def _laplacian_of_gaussian(like: Tensor) -> Tensor:
    """The Laplacian of the Gaussian as one kernel of shape (1, 1, 7, 7)."""
    offsets = torch.arange(-2, 3, dtype=like.dtype, device=like.device)
    line = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    gaussian = torch.outer(line, line) / line.sum() ** 2
    steps = torch.arange(-1, 2, device=like.device).abs()  # made there: a copy from the CPU would wait
    steps = steps[:, None] + steps
    laplacian = (steps == 1).to(like.dtype) - 4 * (steps == 0).to(like.dtype)  # [0 1 0; 1 -4 1; 0 1 0]
    return F.conv2d(gaussian[None, None], laplacian[None, None], padding=2)  # both are symmetric


def _edges(images: Tensor, floor: float) -> Tensor:
    """The filtered sum of the channels over its largest value in the batch: (N, 1, H - 6, W - 6)."""
    edges = F.conv2d(images.sum(1, keepdim=True), _laplacian_of_gaussian(images))
    return edges / edges.amax().clamp_min(floor)


def hfen(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean absolute difference of the edges of two batches, a scalar tensor from 0 up; differentiable in both.

    Edges are the images after a Gaussian of 5 x 5 pixels (sigma 1.5) and the Laplacian [0 1 0; 1 -4 1; 0 1 0], whole
    windows only, summed over the channels and divided by their largest value in the batch, through which gradients
    flow too. A largest value below one gray level, ``data_range / 255``, also one of 0 or below, counts as one gray
    level: a flat batch has no edges (all 0) instead of amplified rounding, no edge changes its sign, and the division
    stays finite and continuous. Computed in float32 at least, also under autocast.

    Source: Ravishankar and Bresler, "MR image reconstruction from highly undersampled k-space data by dictionary
    learning" (2011), in the form of DLSR (arXiv 2105.03939), whose code pads the Laplacian with zeros and so takes
    the border of a bright image for an edge; this does not.

    Args:
        x: (N, C, H, W), H and W from 7 pixels up.
        y: the same shape.
        data_range: largest minus smallest value an image can have.

    Raises:
        InputError: shapes differ, are not (N, C, H, W), or a side is shorter than the filter.

    >>> x = torch.zeros(1, 3, 16, 16)
    >>> x[..., 8, 8] = 1
    >>> hfen(x, x).item(), hfen(x, 0.5 * x).item()  # it looks at the form of edges, not at their height
    (0.0, 0.0)
    >>> hfen(x, torch.zeros_like(x)).item() > 0
    True
    """
    if x.shape != y.shape or x.dim() != 4:
        raise InputError(f"HFEN of shapes {tuple(x.shape)} and {tuple(y.shape)}; give two equal ones, (N, C, H, W)")
    if not x.numel() or min(x.shape[-2:]) < SIDE:
        raise InputError(f"HFEN of images of shape {tuple(x.shape)}; its filter needs {SIDE} pixels a side")
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = (_edges(images.to(dtype), data_range / 255) for images in (x, y))
        return (x - y).abs().mean()
