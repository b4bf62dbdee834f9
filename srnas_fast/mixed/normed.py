"""Maps whose output is made, normalised, added to y and freed again, one candidate at a time, in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srnas_fast.mixed.call import Call, Member, Return
from srnas_fast.mixed.norm import move_statistics, uses_batch
from srnas_fast.primitives import (
    channel_moments,
    narrow_convolution,
    narrow_convolution_backward,
    narrow_convolution_moments,
    weighted_sum,
    weighted_sum_,
    weighted_sum_backward,
)
from srnas_fast.primitives.images import convolution_backward as reference_backward
from srnas_fast.primitives.narrow_convolution import narrow_convolution_reference


class NormedConvolution:
    """A live candidate [act -] convolution - batch norm, whose norm uses its batch."""

    def __init__(self, member: Member):
        self.member = member

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor:
        z, *moments = convolve_with_moments(a, *self._map(call), call.dtype)
        y, self.statistics = add_normed(call, self.member, z, y, moments)
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        m = self.member
        conv_wanted = call.wants(m.slots.conv)
        bias = call.read(m.slots.bias)
        if bias is not None:
            call.give(m.slots.bias, torch.zeros_like(bias))  # the batch's mean takes the bias away again
        dz = normed_gradient(
            call, m, self.statistics, lambda: convolve(a, *self._map(call), call.dtype), dy, a_wanted or conv_wanted
        )
        if dz is None:
            return da
        part, dkernel = convolution_backward(dz, a, call.read(m.slots.conv), m.stage.dilation, a_wanted, conv_wanted)
        call.give(m.slots.conv, dkernel)
        return plus(da, part)

    def _map(self, call: Call) -> tuple[Tensor, Tensor | None, int]:
        m = self.member
        return call.read(m.slots.conv), call.read(m.slots.bias), m.stage.dilation


@dataclass
class Statistics:
    """Mean and one over the standard deviation, per channel: of the batch, or those of a frozen norm."""

    mean: Tensor
    rstd: Tensor
    of_batch: bool


def add_normed(
    call: Call, m: Member, z: Tensor, y: Tensor | None, moments: Sequence[Tensor] = ()
) -> tuple[Tensor, Statistics | None]:
    """y + the weighted norm of z, and the statistics that it took; a norm that uses its batch moves its own.

    ``moments``: mean and biased variance of z, where they are known.
    """
    norm, w = m.stage.norm, call.weights[m.candidate]
    if norm is None:
        return accumulate(y, w[None], z), None
    of_batch = uses_batch(norm)
    if of_batch:
        mean, variance = moments or channel_moments(z)
        move_statistics(norm, mean, variance, z.numel() // z.shape[1])
    else:
        mean, variance = norm.running_mean.to(z.dtype, copy=True), norm.running_var.to(z.dtype)
    statistics = Statistics(mean, (variance + norm.eps).rsqrt(), of_batch)
    gamma, beta = call.read(m.slots.gamma), call.read(m.slots.beta)
    scale = w * statistics.rstd if gamma is None else w * gamma * statistics.rstd
    return accumulate(y, scale[None], z, None if beta is None else w * beta, mean[None]), statistics


def normed_gradient(call: Return, m: Member, statistics: Statistics | None, again, dy: Tensor, wanted: bool):
    """The gradient of z where ``wanted``; gives those of the weight and of the norm. ``again()`` makes z again."""
    w, norm_wanted = call.weights[m.candidate], call.wants(m.slots.gamma, m.slots.beta)
    products_wanted = call.dweights is not None or norm_wanted
    if statistics is None:
        if products_wanted:
            call.give_weight(m.candidate, weighted_sum_backward(dy, w[None], [again()], None, True, [False])[0][0])
        return weighted_sum(w[None], [dy]) if wanted else None
    mean, rstd = statistics.mean, statistics.rstd
    gamma, beta = call.read(m.slots.gamma), call.read(m.slots.beta)
    scale = w * rstd if gamma is None else w * gamma * rstd
    if not (products_wanted or (wanted and statistics.of_batch)):
        return weighted_sum(scale[None], [dy]) if wanted else None
    z = again()
    product, total = weighted_sum_backward(dy, torch.ones_like(mean)[None], [z], mean[None], True, [False])[:2]
    q = rstd * product[0]  # the sum of dy times the normalised z
    dw = (q if gamma is None else gamma * q).sum()
    call.give_weight(m.candidate, dw if beta is None else dw + (beta * total).sum())
    call.give(m.slots.gamma, w * q)
    call.give(m.slots.beta, w * total)
    if not wanted:
        return None
    if not statistics.of_batch:
        return weighted_sum(scale[None], [dy])
    pixels = z.numel() // z.shape[1]
    weights = torch.stack([scale, -scale * q * rstd / pixels])
    return weighted_sum(weights, [dy, z], None, torch.stack([total / pixels, mean]))


def accumulate(
    y: Tensor | None, weights: Tensor, z: Tensor, shift: Tensor | None = None, centres: Tensor | None = None
) -> Tensor:
    """y + the weighted z, in place where there is a y."""
    if y is None:
        return weighted_sum(weights, [z], shift, centres)
    return weighted_sum_(y, weights, [z], shift, centres)


def plus(da: Tensor | None, part: Tensor | None) -> Tensor | None:
    """da + part, in place where there is a da, in float32 or wider."""
    if part is None:
        return da
    part = part.to(torch.promote_types(part.dtype, torch.float32))
    return part if da is None else da.add_(part)


def convolve(a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int, dtype: torch.dtype) -> Tensor:
    """A dense convolution that keeps height and width: in the type of ``a``, the result in ``dtype``."""
    if a.dtype == dtype:
        return narrow_convolution(a, kernel, bias, dilation)
    bias = None if bias is None else bias.to(a.dtype)
    return narrow_convolution_reference(a, kernel.to(a.dtype), bias, dilation).to(dtype)


def convolve_with_moments(
    a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with mean and biased variance of the result's channels."""
    if a.dtype == dtype:
        return narrow_convolution_moments(a, kernel, bias, dilation)
    z = convolve(a, kernel, bias, dilation, dtype)
    return z, *channel_moments(z)


def convolution_backward(
    dz: Tensor, a: Tensor, kernel: Tensor, dilation: int, a_wanted: bool, kernel_wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a dense convolution's input and kernel, where wanted."""
    if a.dtype == dz.dtype:
        found = narrow_convolution_backward(dz, a, kernel, dilation, a_wanted, kernel_wanted)
        return tuple(part if wanted else None for part, wanted in zip(found, (a_wanted, kernel_wanted), strict=True))
    return reference_backward(dz.to(a.dtype), a, kernel.to(a.dtype), dilation, 1, a_wanted, kernel_wanted)
