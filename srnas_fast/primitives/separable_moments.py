"""Mean and covariance of each depthwise output ``d_k = depthwise_k * x``, which is never stored whole.

They are all that batch normalisation behind a pointwise convolution needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import addresses, cast, output_size, wide
from srnas_fast.primitives.multi_depthwise import (
    check_depthwise,
    depthwise_macs,
    depthwise_sizes,
    multi_depthwise_reference,
)
from srnas_fast.primitives.separable_gradient import gradient_op, output_pixels


def separable_moments_reference(
    x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int = 1
) -> tuple[Tensor, Tensor]:
    """What ``separable_moments`` computes, in plain torch."""
    flat = [d.transpose(0, 1).flatten(1) for d in multi_depthwise_reference(x, depthwise, dilations, stride)]
    means = torch.stack([d.mean(1) for d in flat])
    centred = [d - mean[:, None] for d, mean in zip(flat, means, strict=True)]
    return means, torch.stack([d @ d.t() / d.shape[1] for d in centred])


def separable_moments(
    x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Mean and covariance, over all pixels, of each depthwise convolution's output.

    The covariance is the biased one, summed from centred values. float16 and bfloat16 are computed in float32.

    Args:
        x: (N, C, H, W), of any strides, N at least 1.
        depthwise: K tensors (C, 1, k, k), k odd.
        dilations: K whole numbers.
        stride: of the depthwise convolutions.

    Returns:
        means (K, C) and covariances (K, C, C), of the type of ``x`` but at least float32. Differentiable once.

    Raises:
        InputError: the shapes do not go together.

    >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    >>> separable_moments(x, [torch.ones(1, 1, 1, 1)], [1])
    (tensor([[2.]]), tensor([[[0.6667]]]))
    """
    check_depthwise(x, depthwise, dilations, stride)
    if not x.shape[0]:
        raise InputError(f"x is {tuple(x.shape)}; moments need at least one image")
    return call(_separable_moments, x, depthwise, dilations, stride)


@torch.library.custom_op("srnas_fast::separable_moments", mutates_args=())
def _separable_moments(
    x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int
) -> tuple[Tensor, Tensor]:
    kernel = triton_kernel("separable_moments", x)
    if kernel:
        means, covariances = _empty_moments(x, depthwise)
        kernel(means, covariances, x, depthwise, dilations, stride)
        return means, covariances
    dtype = wide(x)
    x, depthwise = x.to(dtype), cast(dtype, depthwise)
    compiled = compiled_kernel("separable_moments", x)
    if compiled is None:
        return separable_moments_reference(x, depthwise, dilations, stride)
    means, covariances = _empty_moments(x, depthwise)
    compiled(
        x.data_ptr(),
        x.shape,
        x.stride(),
        addresses(depthwise),
        depthwise_sizes(depthwise),
        list(dilations),
        stride,
        means.data_ptr(),
        covariances.data_ptr(),
    )
    return means, covariances


def _empty_moments(x: Tensor, depthwise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count, channels = len(depthwise), x.shape[1]
    return x.new_empty(count, channels, dtype=wide(x)), x.new_empty(count, channels, channels, dtype=wide(x))


@_separable_moments.register_fake
def _(x, depthwise, dilations, stride):
    return _empty_moments(x, depthwise)


def _save(ctx, inputs, output) -> None:
    x, depthwise, ctx.dilations, ctx.stride = inputs
    ctx.save_for_backward(x, output[0], *depthwise)


def _backward(ctx, dmeans, dcovariances):
    x, means, *depthwise = ctx.saved_tensors
    want_x, want_depthwise, _, _ = ctx.needs_input_grad
    height, width = output_size(x, ctx.stride)
    pixels = x.shape[0] * height * width
    right = list((dcovariances + dcovariances.transpose(1, 2)) / pixels)
    rest = (right, dmeans / pixels, means, ctx.dilations, ctx.stride, want_x, any(want_depthwise), False)
    dx, _, *gradients = call(gradient_op, x, None, depthwise, [], *rest)
    kernels = [g if want else None for g, want in zip(gradients[: len(depthwise)], want_depthwise, strict=True)]
    return dx if want_x else None, kernels, None, None


_separable_moments.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _separable_moments.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.srnas_fast.separable_moments)
def _(x, depthwise, dilations, stride, *args, **kwargs) -> int:
    return 2 * (depthwise_macs(x, depthwise, stride) + len(depthwise) * x[1] ** 2 * output_pixels(x, stride))
