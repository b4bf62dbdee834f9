"""The store of partial channels: what was made of the first channels beside those that passed by, shuffled."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import address, check_images, check_one_device, dense_format, wide


def shuffle_concat_reference(y: Tensor, x: Tensor, groups: int, scale: Tensor | None = None) -> Tensor:
    """What ``shuffle_concat`` computes, in plain torch."""
    rest = _passing(x, groups, _stride(y, x))
    return F.channel_shuffle(torch.cat([y, rest if scale is None else scale.to(rest.dtype) * rest], 1), groups)


def shuffle_concat(y: Tensor, x: Tensor, groups: int, scale: Tensor | None = None) -> Tensor:
    """What was made of the first 1/groups of the channels of ``x``, beside its other channels, and shuffled.

    Channel ``j * groups`` of the result is channel j of ``y``; channel ``j * groups + i``, i from 1 up, is channel
    ``i * C / groups + j`` of ``x``, at stride 2 the maximum of each of its 2 x 2 windows. The gradient of a maximum
    goes to the first one of the window, row by row, as in torch; its place is found again in the backward pass, so that
    nothing but ``x`` is kept. Each tensor is read and written once, at memory speed where all are NCHW or all are
    channels_last.

    Args:
        y: (N, C / groups, H, W), or (N, C / groups, H / 2, W / 2) at stride 2; of any strides.
        x: (N, C, H, W), of any strides; at stride 2 of even height and width.
        groups: a whole number from 1 up of which C is a multiple.
        scale: () or None: a factor for the channels of ``x``. What ``y`` is to be multiplied with can be had
            for nothing where it is made.

    Returns:
        (N, C, *sizes of y*) of the wider of both types and in the memory format of ``x``. Differentiable once.

    Raises:
        InputError: the shapes do not go together.

    Equivalent to ``F.channel_shuffle(torch.cat([y, scale * x[:, C // groups:]], 1), groups)`` at stride 1.

    Source: PC-DARTS (arXiv 1907.05737).

    >>> x = torch.arange(6.0).view(1, 6, 1, 1)
    >>> shuffle_concat(10 * x[:, :3], x, 2).flatten()
    tensor([ 0.,  3., 10.,  4., 20.,  5.])
    """
    _check(y, "y", part_of(x, groups), x, scale)
    return call(_shuffle_concat, y, x, groups, scale)


def shuffle_concat_backward(
    dout: Tensor, x: Tensor, groups: int, scale: Tensor | None = None, want_x: bool = True, want_scale: bool = False
) -> list[Tensor]:
    """The gradients of ``shuffle_concat``, in one pass. Not differentiable.

    Args:
        dout: the gradient of the result, of any strides.
        x, groups, scale: as given to ``shuffle_concat``; at stride 1 the values of ``x`` are read for ``dscale`` only.
        want_x, want_scale: whether ``dx`` and ``dscale`` are computed.

    Returns:
        [dy, dx, dscale]: (N, C / groups, *sizes of dout*) of the type of ``dout``; like ``x``, its first C / groups
        channels zero, where there is room for the gradient of what made ``y``; () of the type of ``scale``. dy and dx
        have the memory format of ``x``. Empty tensors where not wanted.

    Raises:
        InputError: the shapes do not go together.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    >>> dy, dx, dscale = shuffle_concat_backward(torch.ones(1, 4, 1, 1), x, 2, torch.tensor(5.0), want_scale=True)
    >>> dy.flatten(), dx.flatten(), dscale
    (tensor([1., 1.]), tensor([0., 0., 5., 5.]), tensor(7.))
    """
    part_of(x, groups)
    _check(dout, "dout", x.shape[1], x, scale)
    if want_scale and scale is None:
        raise InputError("want_scale is True without a scale; give the one that shuffle_concat got")
    return call(_shuffle_concat_backward, dout, x, groups, scale, want_x, want_scale)


def part_of(x: Tensor, groups: int) -> int:
    """The number of channels that do not pass by; raises InputError where the groups do not divide those of x."""
    check_images(x)
    if groups < 1 or x.shape[1] % groups:
        raise InputError(
            f"x has {x.shape[1]} channels for {groups} groups; give a whole number from 1 up that divides the channels"
        )
    return x.shape[1] // groups


def _check(y: Tensor, name: str, channels: int, x: Tensor, scale: Tensor | None) -> None:
    check_one_device(x, y, scale)
    n, _, h, w = x.shape
    if y.ndim != 4 or y.shape[:2] != (n, channels) or not y.dtype.is_floating_point:
        raise InputError(f"{name} is {tuple(y.shape)} of {y.dtype}; give a floating tensor ({n}, {channels}, ...)")
    size, half = tuple(y.shape[2:]), ((h + 1) // 2, (w + 1) // 2)
    if size not in ((h, w), half):
        raise InputError(f"{name} has height and width {size}; for x of {(h, w)} give {(h, w)}, or at stride 2 {half}")
    if size != (h, w) and (h % 2 or w % 2):
        raise InputError(
            f"x has height and width {(h, w)}, whose 2 x 2 windows are fewer than the {size} of {name} at stride 2; "
            "give images of even height and width"
        )
    if scale is not None and (scale.ndim or not scale.dtype.is_floating_point):
        raise InputError(f"scale is {tuple(scale.shape)} of {scale.dtype}; give one floating number, of shape ()")


def _stride(y: Tensor, x: Tensor) -> int:
    """1 where y has the size of x, else 2."""
    return 1 if y.shape[2:] == x.shape[2:] else 2


def _passing(x: Tensor, groups: int, stride: int) -> Tensor:
    """The channels of x that pass by, pooled at stride 2."""
    rest = x[:, x.shape[1] // groups :]
    return F.max_pool2d(rest, 2, 2) if stride == 2 and rest.shape[1] else rest[:, :, ::stride, ::stride]


def _empty(x: Tensor, channels: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of the height and width of ``like``, in the memory format of x."""
    size = (x.shape[0], channels, *like.shape[2:])
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=dense_format(x))


def _shape(x: Tensor, groups: int, y: Tensor) -> list[int]:
    """ShuffleShape in csrc/cpu/shuffle_concat.h."""
    return [x.shape[0], x.shape[1] // groups, groups, *y.shape[2:], _stride(y, x)]


@torch.library.custom_op("srnas_fast::shuffle_concat", mutates_args=())
def _shuffle_concat(y: Tensor, x: Tensor, groups: int, scale: Tensor | None) -> Tensor:
    out = _empty(x, x.shape[1], y, torch.promote_types(y.dtype, x.dtype))
    kernel = triton_kernel("shuffle_concat", y, x)
    if kernel:
        kernel(out, y, x, groups, scale)
        return out
    compiled = compiled_kernel("shuffle_concat", x, y)
    if compiled is None:
        return out.copy_(shuffle_concat_reference(y, x, groups, scale))
    scale = None if scale is None else scale.to(x.dtype)
    compiled(
        _shape(x, groups, y),
        y.data_ptr(),
        y.stride(),
        x.data_ptr(),
        x.stride(),
        address(scale),
        out.data_ptr(),
        out.stride(),
    )
    return out


@_shuffle_concat.register_fake
def _(y, x, groups, scale):
    return _empty(x, x.shape[1], y, torch.promote_types(y.dtype, x.dtype))


@torch.library.custom_op("srnas_fast::shuffle_concat_backward", mutates_args=())
def _shuffle_concat_backward(
    dout: Tensor, x: Tensor, groups: int, scale: Tensor | None, want_x: bool, want_scale: bool
) -> list[Tensor]:
    dy, dx, dscale = outputs = _empty_gradients(dout, x, groups, scale, want_x, want_scale)
    if want_x:
        dx[:, : x.shape[1] // groups] = 0
    kernel = triton_kernel("shuffle_concat_backward", dout, x)
    if kernel:
        kernel(dy, dx if want_x else None, dscale if want_scale else None, dout, x, groups, scale)
        return outputs
    compiled = compiled_kernel("shuffle_concat_backward", x, dout)
    if compiled is None:
        _backward_reference(dout, x, groups, scale, *outputs)
        return outputs
    found, factor = x.new_empty(()) if want_scale else None, None if scale is None else scale.to(x.dtype)
    compiled(
        _shape(x, groups, dout),
        dout.data_ptr(),
        dout.stride(),
        x.data_ptr(),
        x.stride(),
        address(factor),
        dy.data_ptr(),
        dy.stride(),
        address(dx if want_x else None),
        dx.stride() if want_x else [0] * 4,
        address(found),
    )
    return [dy, dx, found.to(scale.dtype) if want_scale else dscale]


def _empty_gradients(dout: Tensor, x: Tensor, groups: int, scale: Tensor | None, want_x: bool, want_scale: bool):
    dy = _empty(x, x.shape[1] // groups, dout, dout.dtype)
    dx = _empty(x, x.shape[1], x, x.dtype) if want_x else x.new_empty(0)
    return [dy, dx, torch.empty_like(scale) if want_scale else x.new_empty(0)]


def _backward_reference(
    dout: Tensor, x: Tensor, groups: int, scale: Tensor | None, dy: Tensor, dx: Tensor, dscale: Tensor
) -> None:
    part, stride = x.shape[1] // groups, _stride(dout, x)
    dz = F.channel_shuffle(dout, part)  # the way back
    dy.copy_(dz[:, :part])
    rest, drest = x[:, part:], dz[:, part:]
    if dscale.ndim == 0:
        dscale.copy_((drest.to(wide(x)) * _passing(x, groups, stride)).sum())
    if dx.numel() and rest.numel():
        drest = (drest if scale is None else scale.to(drest.dtype) * drest).to(x.dtype)
        if stride == 2:
            window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
            _, places = torch.ops.aten.max_pool2d_with_indices(rest, *window)
            drest = torch.ops.aten.max_pool2d_with_indices_backward(drest, rest, *window, places)
        dx[:, part:] = drest


@_shuffle_concat_backward.register_fake
def _(dout, x, groups, scale, want_x, want_scale):
    return _empty_gradients(dout, x, groups, scale, want_x, want_scale)


def _save(ctx, inputs, output) -> None:
    y, x, ctx.groups, scale = inputs
    ctx.dtype = y.dtype
    ctx.save_for_backward(x, scale)


def _backward(ctx, dout):
    x, scale = ctx.saved_tensors
    want_y, want_x, _, want_scale = ctx.needs_input_grad
    dy, dx, dscale = call(_shuffle_concat_backward, dout, x, ctx.groups, scale, want_x, want_scale)
    return dy.to(ctx.dtype) if want_y else None, dx if want_x else None, None, dscale if want_scale else None


_shuffle_concat.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _shuffle_concat.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.srnas_fast.shuffle_concat)
def _(y, x, groups, scale, *args, **kwargs) -> int:
    return (groups - 1) * math.prod(y) * (scale is not None)
