"""Several depthwise convolutions of one input: ``z_k = depthwise_k * x``, forward, input and weight gradients."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import (
    addresses,
    cast,
    check_images,
    check_one_device,
    convolution_backward,
    dense_format,
    empty_gradients,
    empty_output,
    wide,
)


def multi_depthwise_reference(
    x: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int], stride: int = 1
) -> list[Tensor]:
    """What ``multi_depthwise`` computes, in plain torch."""
    return [
        F.conv2d(x, kernel, None, stride, dilation * (kernel.shape[-1] // 2), dilation, groups=x.shape[1])
        for kernel, dilation in zip(kernels, dilations, strict=True)
    ]


def multi_depthwise(x: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int], stride: int = 1) -> list[Tensor]:
    """Several depthwise convolutions of one input, zero-padded to the size ``(H - 1) // stride + 1``.

    float16 and bfloat16 are computed in float32.

    Args:
        x: (N, C, H, W), of any strides.
        kernels: K tensors (C, 1, k, k), k odd.
        dilations: K whole numbers.
        stride: of all of them.

    Returns:
        K tensors (N, C, Ho, Wo) of the type and memory format of ``x``. Differentiable once in ``x`` and ``kernels``.

    Raises:
        InputError: the shapes do not go together.

    Equivalent to ``[F.conv2d(x, w, None, stride, d * (k // 2), d, groups=C) for w, d in zip(kernels, dilations)]``.

    >>> x = torch.ones(1, 2, 4, 4)
    >>> a, b = multi_depthwise(x, [torch.ones(2, 1, 3, 3), torch.ones(2, 1, 3, 3)], [1, 2])
    >>> a[0, 0, 1], b[0, 0, 1]
    (tensor([6., 9., 9., 6.]), tensor([4., 4., 4., 4.]))
    """
    check_depthwise(x, kernels, dilations, stride)
    return call(_multi_depthwise, x, kernels, dilations, stride)


def check_depthwise(x: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int], stride: int) -> None:
    """Refuses an input, kernels, dilations and a stride that do not go together; raises InputError."""
    check_images(x)
    check_one_device(x, *kernels)
    if not kernels or len(kernels) != len(dilations):
        raise InputError(
            f"there are {len(kernels)} kernels and {len(dilations)} dilations; give one dilation per kernel"
        )
    for kernel in kernels:
        shape = tuple(kernel.shape)
        if len(shape) != 4 or shape[:2] != (x.shape[1], 1) or shape[2] != shape[3] or shape[3] % 2 == 0:
            raise InputError(
                f"a depthwise kernel has shape {shape}; for x {tuple(x.shape)} give ({x.shape[1]}, 1, k, k), k odd"
            )
    if stride < 1 or min(dilations) < 1:
        raise InputError(f"stride is {stride}, dilations are {list(dilations)}; give whole numbers from 1 up")


def depthwise_sizes(kernels: Sequence[Tensor]) -> list[int]:
    """The side of each depthwise kernel."""
    return [kernel.shape[-1] for kernel in kernels]


@torch.library.custom_op("srnas_fast::multi_depthwise", mutates_args=())
def _multi_depthwise(x: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int], stride: int) -> list[Tensor]:
    dtype = wide(x)
    kernel = triton_kernel("multi_depthwise", x)
    if kernel:
        outputs = [empty_output(x, x.shape[1], stride, x.dtype) for _ in kernels]
        kernel(outputs, x, kernels, dilations, stride)
        return outputs
    wide_x, kernels = x.to(dtype), cast(dtype, kernels)
    compiled = compiled_kernel("multi_depthwise", wide_x, *kernels)
    if compiled is None:
        form = dense_format(x)
        outputs = multi_depthwise_reference(wide_x, kernels, dilations, stride)
        return [out.to(x.dtype).contiguous(memory_format=form) for out in outputs]
    outputs = [empty_output(x, x.shape[1], stride, dtype) for _ in kernels]
    compiled(
        wide_x.data_ptr(),
        x.shape,
        wide_x.stride(),
        addresses(kernels),
        depthwise_sizes(kernels),
        list(dilations),
        stride,
        addresses(outputs),
        outputs[0].stride(),
    )
    return [out.to(x.dtype) for out in outputs]


@_multi_depthwise.register_fake
def _(x, kernels, dilations, stride):
    return [empty_output(x, x.shape[1], stride, x.dtype) for _ in kernels]


@torch.library.custom_op("srnas_fast::multi_depthwise_backward", mutates_args=())
def _multi_depthwise_backward(
    dys: Sequence[Tensor],
    x: Tensor,
    kernels: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
    want_x: bool,
    want_kernels: bool,
) -> list[Tensor]:
    outputs = empty_gradients(x, kernels, want_x, want_kernels)
    kernel = triton_kernel("multi_depthwise_backward", x, *dys)
    if kernel:
        dx, *dkernels = outputs
        kernel(dx if want_x else None, dkernels if want_kernels else None, dys, x, kernels, dilations, stride)
        return outputs
    dtype = wide(x)
    wide_x, wide_dys, wide_kernels = x.to(dtype), [dy.to(dtype) for dy in dys], cast(dtype, kernels)
    compiled = compiled_kernel("multi_depthwise_backward", wide_x, *wide_dys, *wide_kernels)
    if compiled is None:
        gradients = [
            convolution_backward(dy, wide_x, kernel, dilation, stride, want_x, want_kernels)
            for dy, kernel, dilation in zip(wide_dys, wide_kernels, dilations, strict=True)
        ]
        if want_x:
            outputs[0].copy_(sum(dx for dx, _ in gradients))
        if want_kernels:
            for out, (_, dkernel) in zip(outputs[1:], gradients, strict=True):
                out.copy_(dkernel)
        return outputs
    results = [out.to(dtype) for out in outputs]  # the same tensors unless they are of another type
    compiled(
        wide_x.data_ptr(),
        x.shape,
        wide_x.stride(),
        addresses(wide_dys),
        [dy.stride() for dy in wide_dys],
        addresses(wide_kernels),
        depthwise_sizes(kernels),
        list(dilations),
        stride,
        results[0].data_ptr() if want_x else 0,
        results[0].stride() if want_x else [0] * 4,
        addresses(results[1:]) if want_kernels else [],
    )
    return [result.to(out.dtype) for result, out in zip(results, outputs, strict=True)]


@_multi_depthwise_backward.register_fake
def _(dys, x, kernels, dilations, stride, want_x, want_kernels):
    return empty_gradients(x, kernels, want_x, want_kernels)


def _save(ctx, inputs, output) -> None:
    x, kernels, ctx.dilations, ctx.stride = inputs
    ctx.save_for_backward(x, *kernels)


def _backward(ctx, dys):
    x, *kernels = ctx.saved_tensors
    want_x, want_kernels, _, _ = ctx.needs_input_grad
    want_kernels = list(want_kernels)
    used = [k for k, dy in enumerate(dys) if dy is not None]  # a loss may read only some of the outputs
    dx, *dkernels = call(
        _multi_depthwise_backward,
        [dys[k] for k in used],
        x,
        [kernels[k] for k in used],
        [ctx.dilations[k] for k in used],
        ctx.stride,
        want_x,
        any(want_kernels),
    )
    gradients = dict(zip(used, dkernels, strict=True))
    return (
        dx if want_x else None,
        [gradients.get(k) if want else None for k, want in enumerate(want_kernels)],
        None,
        None,
    )


_multi_depthwise.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _multi_depthwise.register_autocast(_device, torch.float32)


def depthwise_macs(x: Sequence[int], kernels: Sequence[Sequence[int]], stride: int) -> int:
    """Multiply-adds of the depthwise convolutions, from shapes."""
    n, c, h, w = x
    pixels = n * ((h - 1) // stride + 1) * ((w - 1) // stride + 1)
    return sum(pixels * c * kernel[-1] ** 2 for kernel in kernels)


@register_flop_formula(torch.ops.srnas_fast.multi_depthwise)
def _(x, kernels, dilations, stride, *args, **kwargs) -> int:
    return 2 * depthwise_macs(x, kernels, stride)


@register_flop_formula(torch.ops.srnas_fast.multi_depthwise_backward)
def _(dys, x, kernels, dilations, stride, want_x, want_kernels, *args, **kwargs) -> int:
    return 2 * (want_x + want_kernels) * depthwise_macs(x, kernels, stride)
