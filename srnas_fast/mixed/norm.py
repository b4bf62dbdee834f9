"""A linear map and the batch norm after it as one affine map, whose backward pass needs no image but the gradient's.

Let ``v`` be what the map ``z = P v + b`` reads (O x C weights, one column of ``v`` per pixel), with mean ``m`` and
covariance ``S`` over the M pixels of the batch. Then ``z`` has the mean ``P m + b`` and the variance
``diag(P S P^T)``, and what the norm makes of it, ``gamma * (z - mean) * rstd + beta``, is
``(gamma * rstd * P) (v - m) + beta``: known without ever forming ``z``. The backward pass needs ``G``, the sum over
the pixels of ``dy (v - m)^T``, which is the gradient of a weight matrix, and the sum of ``dy``; the rest is algebra
on C x C numbers.
"""

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn


def uses_batch(norm: nn.BatchNorm2d | None) -> bool:
    """Whether a norm would now use the statistics of its batch."""
    return norm is not None and (norm.training or (norm.running_mean is None and norm.running_var is None))


def refuse_one_pixel(norm: nn.BatchNorm2d | str) -> NoReturn:
    """Raises ValueError: a batch of one pixel has no variance; torch's own words."""
    raise ValueError(
        f"Expected more than 1 value per channel when training, got a batch of one pixel for {norm}; "
        "use larger patches or batches, or eval mode"
    )


def move_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> None:
    """Move the running statistics towards those of a batch, as the norm itself would; ``variance`` is the biased one.

    Raises:
        ValueError: a batch of one pixel, which has no variance; torch's own words.
    """
    if pixels == 1:
        refuse_one_pixel(norm)
    if not (norm.training and norm.track_running_stats) or norm.running_mean is None:
        return
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:
            share = 1.0 / float(norm.num_batches_tracked)
    elif share is None:
        share = 0.0
    running = norm.running_mean
    running.lerp_(mean.to(running.dtype), share)
    norm.running_var.lerp_(variance.to(running.dtype) * (pixels / (pixels - 1)), share)


@dataclass
class MapParameters:
    """Of a linear map and its norm: ``P`` (O, C), ``b``, ``gamma``, ``beta``, each (O,) or None."""

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


@dataclass
class Affine:
    """``matrix @ (v - centre) + shift``: a linear map and its norm, and what the gradients of both need.

    Attributes:
        scale: (O,), what the norm multiplies the rows of ``P`` with to give the matrix; None without a norm.
        shift: (O,), or None for zeros.
        centre: (C,), or None for zeros.
        rstd: (O,) one over the standard deviation; None without a norm.
        mean: (O,) the running mean of a frozen norm.
        projected: (O, C) ``P S`` of a norm that uses its batch of ``pixels``.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    centre: Tensor | None = None
    rstd: Tensor | None = None
    mean: Tensor | None = None
    projected: Tensor | None = None
    pixels: int = 0

    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix, from ``P``."""
        return weight if self.scale is None else self.scale[:, None] * weight


def fold(
    parameters: MapParameters,
    norm: nn.BatchNorm2d | None,
    moments: tuple[Tensor, Tensor] | None = None,
    pixels: int = 0,
) -> Affine:
    """The map with its norm in it; a norm that uses its batch moves its running statistics.

    Args:
        moments: mean (C,) and covariance (C, C) of ``v`` over so many pixels, for a norm that uses its batch.
    """
    weight, bias, gamma, beta = parameters.weight, parameters.bias, parameters.gamma, parameters.beta
    if norm is None:
        return Affine(None, bias)
    if moments is None:
        rstd = (norm.running_var.to(weight.dtype) + norm.eps).rsqrt()
        scale = rstd if gamma is None else gamma * rstd
        mean = norm.running_mean.to(weight.dtype, copy=True)
        away = -mean if bias is None else bias - mean
        shift = scale * away if beta is None else scale * away + beta
        return Affine(scale, shift, rstd=rstd, mean=mean)
    m, covariance = moments
    projected = weight @ covariance
    variance = (projected * weight).sum(1).clamp_(min=0)  # rounding may leave less than nothing
    mean = weight @ m
    move_statistics(norm, mean if bias is None else mean + bias, variance, pixels)
    rstd = (variance + norm.eps).rsqrt()
    scale = rstd if gamma is None else gamma * rstd
    return Affine(scale, beta, m, rstd, None, projected, pixels)


@dataclass
class AffineGradients:
    """Gradients of ``w (matrix (v - centre) + shift)`` for what made it, from ``G`` and the sum of dy."""

    weight: Tensor  # (): of w
    matrix: Tensor  # (O, C): of P
    bias: Tensor
    gamma: Tensor | None
    beta: Tensor


def unfold(
    affine: Affine, w: Tensor, parameters: MapParameters, products: Tensor, total: Tensor
) -> tuple[AffineGradients, tuple[Tensor, Tensor] | None]:
    """The gradients, and the correction (``right``, ``offset``) that a batch's norm adds to the gradient of ``v``.

    The gradient of ``v`` is ``w matrix^T dy``, and with the correction ``+ right (v - centre) + offset``.

    Args:
        products: ``G``, (O, C). total: (O,), the sum of dy.
    """
    weight, bias, gamma, beta = parameters.weight, parameters.bias, parameters.gamma, parameters.beta
    if affine.rstd is None:
        dw = (weight * products).sum()
        if bias is not None:
            dw = dw + (bias * total).sum()
        return AffineGradients(dw, w * products, w * total, None, w * total), None
    rstd = affine.rstd
    q = rstd * (weight * products).sum(1)  # the sum of dy times the normalised z
    if affine.projected is None:
        away = -affine.mean if bias is None else bias - affine.mean
        q = q + rstd * away * total
    scale = w * affine.scale
    dw = (q if gamma is None else gamma * q).sum()
    if beta is not None:
        dw = dw + (beta * total).sum()
    if affine.projected is None:
        return AffineGradients(dw, scale[:, None] * products, scale * total, w * q, w * total), None
    inner = scale * q * rstd
    dmatrix = scale[:, None] * products - inner[:, None] * affine.projected
    right = weight.t() @ (weight * (inner / -affine.pixels)[:, None])
    offset = affine.matrix(weight).t() @ (total * (w / -affine.pixels))
    # The batch's mean takes the bias away again: its gradient is zero.
    return AffineGradients(dw, dmatrix, torch.zeros_like(total), w * q, w * total), (right, offset)
