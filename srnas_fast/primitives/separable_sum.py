"""A sum of separable convolutions whose depthwise outputs ``d_k = depthwise_k * x`` are never stored whole."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import address, addresses, cast, check_one_device, empty_output, output_size, wide
from srnas_fast.primitives.multi_depthwise import (
    check_depthwise,
    depthwise_macs,
    depthwise_sizes,
    multi_depthwise_reference,
)
from srnas_fast.primitives.separable_gradient import check_matrices, check_shape, gradient_op, in_type, output_pixels


def separable_sum_reference(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
) -> Tensor:
    """What ``separable_sum`` computes, in plain torch."""
    y = 0.0 if shift is None else shift.view(-1, 1, 1)
    for k, d in enumerate(multi_depthwise_reference(x, depthwise, dilations, stride)):
        y = y + torch.einsum("oc,nchw->nohw", pointwise[k], d if centres is None else d - centres[k].view(-1, 1, 1))
    return y


def separable_sum(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
) -> Tensor:
    """``shift + sum_k pointwise_k (d_k - centres_k)`` with ``d_k = depthwise_k * x``: a sum of separable convolutions.

    float16 and bfloat16 are computed in float32.

    Args:
        x: (N, C, H, W), of any strides.
        depthwise: K tensors (C, 1, k, k), k odd.
        pointwise: K tensors (O, C).
        shift: (O,) or None.
        centres: (K, C) or None.
        dilations: K whole numbers.
        stride: of the depthwise convolutions, which are zero-padded to the size ``(H - 1) // stride + 1``.

    Returns:
        (N, O, Ho, Wo) of the type and memory format of ``x``. Differentiable once in every tensor.

    Raises:
        InputError: the shapes do not go together.

    >>> x = torch.ones(1, 2, 3, 3)
    >>> separable_sum(x, [torch.ones(2, 1, 3, 3)], [torch.tensor([[1.0, 2.0]])], torch.tensor([0.5]), None, [1])[0, 0]
    tensor([[12.5000, 18.5000, 12.5000],
            [18.5000, 27.5000, 18.5000],
            [12.5000, 18.5000, 12.5000]])
    """
    _check_sum(x, depthwise, pointwise, shift, centres, dilations, stride)
    return call(_separable_sum, x, depthwise, pointwise, shift, centres, dilations, stride)


def separable_sum_(
    y: Tensor,
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
) -> Tensor:
    """``y += separable_sum(...)`` in place, without autograd; ``y`` shares no memory with ``x``. Returns ``y``.

    >>> y = torch.ones(1, 1, 1, 2)
    >>> separable_sum_(y, torch.ones(1, 1, 1, 2), [torch.ones(1, 1, 3, 3)], [torch.ones(1, 1)], None, None, [1])
    tensor([[[[3., 3.]]]])
    """
    _check_sum(x, depthwise, pointwise, shift, centres, dilations, stride)
    check_one_device(y, x)
    check_shape("y", y, (x.shape[0], pointwise[0].shape[0], *output_size(x, stride)))
    call(_separable_sum_, y, x, depthwise, pointwise, shift, centres, dilations, stride, mutates=True)
    return y


def _check_sum(x, depthwise, pointwise, shift, centres, dilations, stride) -> None:
    check_depthwise(x, depthwise, dilations, stride)
    check_one_device(x, *pointwise, shift, centres)
    count, channels = len(depthwise), x.shape[1]
    if not pointwise or pointwise[0].ndim != 2 or not pointwise[0].numel():
        given = [tuple(matrix.shape) for matrix in pointwise]
        raise InputError(f"pointwise has shapes {given}; give {count} matrices (O, {channels})")
    outputs = pointwise[0].shape[0]
    check_matrices("pointwise", pointwise, count, (outputs, channels))
    check_shape("shift", shift, (outputs,))
    check_shape("centres", centres, (count, channels))


def _add(y: Tensor, accumulate: bool, x, depthwise, pointwise, shift, centres, dilations, stride) -> bool:
    """Writes or adds the sum into ``y`` by compiled code; false where there is none for these tensors."""
    compiled = compiled_kernel("separable_sum", x, y)
    if compiled is None:
        return False
    dtype = x.dtype
    depthwise, pointwise = cast(dtype, depthwise), cast(dtype, pointwise)
    shift, centres = (None if values is None else cast(dtype, [values])[0] for values in (shift, centres))
    compiled(
        x.data_ptr(),
        x.shape,
        x.stride(),
        addresses(depthwise),
        depthwise_sizes(depthwise),
        list(dilations),
        stride,
        addresses(pointwise),
        address(shift),
        address(centres),
        y.data_ptr(),
        y.shape[1],
        y.stride(),
        accumulate,
    )
    return True


@torch.library.custom_op("srnas_fast::separable_sum", mutates_args=())
def _separable_sum(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
) -> Tensor:
    rest = (depthwise, pointwise, shift, centres, dilations, stride)
    kernel = triton_kernel("separable_sum", x)
    if kernel:
        y = empty_output(x, pointwise[0].shape[0], stride, x.dtype)
        kernel(y, False, x, *rest)
        return y
    dtype = wide(x)
    y = empty_output(x, pointwise[0].shape[0], stride, dtype)
    if not _add(y, False, x.to(dtype), *rest):
        y.copy_(in_type(dtype, separable_sum_reference, x, *rest))
    return y.to(x.dtype)


@_separable_sum.register_fake
def _(x, depthwise, pointwise, shift, centres, dilations, stride):
    return empty_output(x, pointwise[0].shape[0], stride, x.dtype)


@torch.library.custom_op("srnas_fast::separable_sum_", mutates_args=("y",))
def _separable_sum_(
    y: Tensor,
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
) -> None:
    rest = (depthwise, pointwise, shift, centres, dilations, stride)
    kernel = triton_kernel("separable_sum", y, x)
    if kernel:
        kernel(y, True, x, *rest)
    elif not _add(y, True, x, *rest):
        y.add_(_separable_sum(x, *rest))


@_separable_sum_.register_fake
def _(y, x, depthwise, pointwise, shift, centres, dilations, stride):
    return None


def _save(ctx, inputs, output) -> None:
    x, depthwise, pointwise, shift, centres, ctx.dilations, ctx.stride = inputs
    ctx.counts = len(depthwise)
    ctx.save_for_backward(x, centres, *depthwise, *pointwise)


def _backward(ctx, dy):
    x, centres, *matrices = ctx.saved_tensors
    depthwise, pointwise = matrices[: ctx.counts], matrices[ctx.counts :]
    want_x, want_depthwise, want_pointwise, want_shift, want_centres, _, _ = ctx.needs_input_grad
    left = [matrix.t() for matrix in pointwise]
    wanted = (want_x, any(want_depthwise), any(want_pointwise))
    dx, dysum, *gradients = call(
        gradient_op, x, dy, depthwise, left, [], None, centres, ctx.dilations, ctx.stride, *wanted
    )
    dcentres = None
    if want_centres:
        dcentres = torch.stack([-(matrix.to(dysum.dtype).t() @ dysum) for matrix in pointwise]).to(centres.dtype)
    return (
        dx if want_x else None,
        [g if want else None for g, want in zip(gradients[: ctx.counts], want_depthwise, strict=True)],
        [g if want else None for g, want in zip(gradients[ctx.counts :], want_pointwise, strict=True)],
        dysum if want_shift else None,
        dcentres,
        None,
        None,
    )


_separable_sum.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _separable_sum.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.srnas_fast.separable_sum)
def _(x, depthwise, pointwise, shift, centres, dilations, stride, *args, **kwargs) -> int:
    products = len(pointwise) * pointwise[0][0] * x[1] * output_pixels(x, stride)
    return 2 * (depthwise_macs(x, depthwise, stride) + products)


@register_flop_formula(torch.ops.srnas_fast.separable_sum_)
def _(y, x, depthwise, pointwise, shift, centres, dilations, stride, *args, **kwargs) -> int:
    products = len(pointwise) * pointwise[0][0] * x[1] * output_pixels(x, stride)
    return 2 * (depthwise_macs(x, depthwise, stride) + products)
