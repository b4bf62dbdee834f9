"""Mean and variance of each channel, the statistics of batch normalisation."""

import math

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import dense_format
from srnas_fast.primitives.weighted_sum import channel_layout, weighted_sum


def channel_moments_reference(z: Tensor) -> tuple[Tensor, Tensor]:
    """What ``channel_moments`` computes, in plain torch."""
    pixels = z.transpose(0, 1).flatten(1)
    return pixels.mean(1), pixels.var(1, correction=0)


def channel_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and biased variance (C,) of each channel of ``z`` (N, C, ...) over all its pixels.

    Reads ``z`` once, in NCHW and in channels_last. Centred: each piece of the tensor around a mean of its own, the
    pieces merged in float64, so that a large mean costs the variance no digits (Chan et al., "Algorithms for
    computing the sample variance", 1983). float16 and bfloat16 are computed in float32. Differentiable.

    Raises:
        InputError: ``z`` is no (N, C, ...) of a floating type or has no pixel.

    >>> channel_moments(torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]))
    (tensor([2., 5.]), tensor([1., 0.]))
    """
    if z.ndim < 2 or not z.dtype.is_floating_point or not z.shape[0] or not math.prod(z.shape[2:]):
        raise InputError(f"z is {z.dtype} of shape {tuple(z.shape)}; give (N, C, ...) of a floating type, with a pixel")
    return call(_channel_moments, z)


@torch.library.custom_op("srnas_fast::channel_moments", mutates_args=())
def _channel_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    kernel = compiled_kernel("channel_moments", wide)
    if kernel is None:
        mean, variance = channel_moments_reference(wide)
    else:
        form = dense_format(wide)
        wide = wide.contiguous(memory_format=form)
        mean, variance = wide.new_empty(z.shape[1]), wide.new_empty(z.shape[1])
        kernel(wide.data_ptr(), channel_layout(wide, form), mean.data_ptr(), variance.data_ptr())
    return mean.to(z.dtype), variance.to(z.dtype)


@_channel_moments.register_fake
def _(z):
    return z.new_empty(z.shape[1]), z.new_empty(z.shape[1])


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(ctx, dmean, dvariance):
    """dz = dmean / M + 2 dvariance / M (z - mean), M pixels a channel."""
    z, mean = ctx.saved_tensors
    pixels = z.numel() // z.shape[1]
    return weighted_sum(2 / pixels * dvariance[None], [z], dmean / pixels, mean[None])


_channel_moments.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _channel_moments.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.srnas_fast.channel_moments)
def _(z, *args, **kwargs) -> int:
    return 4 * math.prod(z)  # one multiply-add for the mean, one for the variance
