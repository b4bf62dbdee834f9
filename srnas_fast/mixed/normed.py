"""Maps whose output is made, normalised, added to y and freed again, one candidate at a time, in both directions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from srnas_fast.mixed.call import Call, Member, Return
from srnas_fast.mixed.norm import move_statistics, uses_batch
from srnas_fast.primitives import channel_moments, weighted_sum, weighted_sum_, weighted_sum_backward


class NormedConvolution:
    """A live candidate [act -] convolution - batch norm, whose norm uses its batch."""

    def __init__(self, member: Member):
        self.member = member

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor:
        y, self.statistics = add_normed(call, self.member, self._convolve(call, a), y)
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        m = self.member
        conv_wanted = call.wants(m.slots.conv)
        bias = call.read(m.slots.bias)
        if bias is not None:
            call.give(m.slots.bias, torch.zeros_like(bias))  # the batch's mean takes the bias away again
        dz = normed_gradient(call, m, self.statistics, lambda: self._convolve(call, a), dy, a_wanted or conv_wanted)
        if dz is None:
            return da
        kernel = call.read(m.slots.conv).to(a.dtype)
        part, dkernel = convolution_backward(dz, a, kernel, m.dilation, a_wanted, conv_wanted)
        call.give(m.slots.conv, dkernel)
        return plus(da, part)

    def _convolve(self, call: Call, a: Tensor) -> Tensor:
        m = self.member
        weight, bias = call.read(m.slots.conv).to(a.dtype), call.read(m.slots.bias)
        bias = None if bias is None else bias.to(a.dtype)
        z = F.conv2d(a, weight, bias, padding=m.dilation * (m.size // 2), dilation=m.dilation)
        return z.to(call.dtype)


@dataclass
class Statistics:
    """Mean and one over the standard deviation, per channel: of the batch, or those of a frozen norm."""

    mean: Tensor
    rstd: Tensor
    of_batch: bool


def add_normed(call: Call, m: Member, z: Tensor, y: Tensor | None) -> tuple[Tensor, Statistics | None]:
    """y + the weighted norm of z, and the statistics that it took; a norm that uses its batch moves its own."""
    norm, w = m.stage.norm, call.weights[m.candidate]
    if norm is None:
        return accumulate(y, w[None], z, None, None), None
    of_batch = uses_batch(norm)
    if of_batch:
        mean, variance = channel_moments(z)
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


def accumulate(y: Tensor | None, weights: Tensor, z: Tensor, shift: Tensor | None, centres: Tensor | None) -> Tensor:
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


def convolution_backward(
    dz: Tensor, a: Tensor, kernel: Tensor, dilation: int, a_wanted: bool, kernel_wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a dense convolution's input and kernel, where wanted."""
    padding = [dilation * (kernel.shape[-1] // 2)] * 2
    mask = [a_wanted, kernel_wanted, False]
    return torch.ops.aten.convolution_backward(
        dz.to(a.dtype), a, kernel, None, [1, 1], padding, [dilation] * 2, False, [0, 0], 1, mask
    )[:2]
