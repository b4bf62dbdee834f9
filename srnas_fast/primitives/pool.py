"""Maximum and average over a square window around every ``stride``-th pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.backends import compiled_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.images import check_images, dense_format, empty_output, output_size, wide

KINDS = ("max", "average")
COMPILED = (3, 5, 7)  # the sizes that csrc/cpu/pool.cpp has


def pool_reference(x: Tensor, kind: str, size: int, stride: int = 1, count_padding: bool = False) -> Tensor:
    """What ``pool`` computes, in plain torch."""
    if kind == "max":
        return F.max_pool2d(x, size, stride, size // 2)
    return F.avg_pool2d(x, size, stride, size // 2, count_include_pad=count_padding)


def pool(x: Tensor, kind: str, size: int, stride: int = 1, count_padding: bool = False) -> Tensor:
    """The maximum or the average over a window around every ``stride``-th pixel.

    A NaN in a window is its maximum. The gradient of a maximum goes to the first one of the window, row by row, as in
    torch; its place is found again in the backward pass, so that nothing but ``x`` is kept. float16 and bfloat16 are
    computed in float32.

    Args:
        x: (N, C, H, W), of any strides.
        kind: "max" or "average".
        size: height and width of the window, odd; 3, 5 and 7 are fast, others are as slow as in torch.
        stride: of the windows.
        count_padding: an average divides by ``size * size``, else by the number of the window's pixels inside the
            image. Without meaning for a maximum.

    Returns:
        (N, C, (H - 1) // stride + 1, (W - 1) // stride + 1) of the type and memory format of ``x``. Differentiable
        once.

    Raises:
        InputError: the input is no batch of images, or there are no such windows.

    Equivalent to ``F.max_pool2d(x, size, stride, size // 2)`` and, with ``count_include_pad=count_padding``,
    ``F.avg_pool2d(x, size, stride, size // 2)``.

    >>> x = torch.arange(6.0).view(1, 1, 2, 3)
    >>> pool(x, "max", 3), pool(x, "average", 3, stride=2)
    (tensor([[[[4., 5., 5.],
              [4., 5., 5.]]]]), tensor([[[[2., 3.]]]]))
    """
    _check(x, kind, size, stride)
    return call(_pool, x, kind, size, stride, count_padding)


def pool_backward(dy: Tensor, x: Tensor, kind: str, size: int, stride: int = 1, count_padding: bool = False) -> Tensor:
    """The gradient of ``pool`` for its input, from the one for its output and the input. Not differentiable.

    Args:
        dy: (N, C, (H - 1) // stride + 1, (W - 1) // stride + 1), of any strides.
        x: (N, C, H, W), of any strides; only its shape matters for an average.
        kind, size, stride, count_padding: as for ``pool``.

    Returns:
        dx of the shape, type and memory format of ``x``.

    Raises:
        InputError: as ``pool``, and if ``dy`` has another shape.

    >>> x = torch.tensor([[[[1.0, 2.0, 2.0]]]])
    >>> pool_backward(torch.ones(1, 1, 1, 3), x, "max", 3)
    tensor([[[[0., 3., 0.]]]])
    """
    _check(x, kind, size, stride)
    shape = (*x.shape[:2], *output_size(x, stride))
    if dy.shape != shape or not dy.dtype.is_floating_point:
        raise InputError(f"dy is {tuple(dy.shape)} of {dy.dtype}; give a floating tensor {shape}")
    return call(_pool_backward, dy, x, kind, size, stride, count_padding)


def _check(x: Tensor, kind: str, size: int, stride: int) -> None:
    check_images(x)
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; accepted: {', '.join(map(repr, KINDS))}")
    if size < 1 or size % 2 == 0 or stride < 1:
        raise InputError(f"size is {size}, stride is {stride}; give an odd size and a stride from 1 up")


def _layout(x: Tensor, form: torch.memory_format, size: int, stride: int) -> list[int]:
    """The shape of x as the compiled code sees it in ``form`` (PoolShape in csrc/cpu/pool.h)."""
    n, c, h, w = x.shape
    planes, unit = (n, c) if form is torch.channels_last else (n * c, 1)
    return [planes, h, w, unit, size, stride]


def _readable(x: Tensor, form: torch.memory_format) -> Tensor:
    """x itself where neighbours in ``form`` are neighbours in memory, as in slices of channels, rows and columns."""
    step = x.stride(1) if form is torch.channels_last else x.stride(3)
    return x if step == 1 else x.contiguous(memory_format=form)


def _places(x: Tensor, form: torch.memory_format) -> list[int]:
    """Where the rows and pixels of x are (PoolInput in csrc/cpu/pool.h)."""
    image, channel, row, column = x.stride()
    return [1, image, 0, row, column] if form is torch.channels_last else [x.shape[1], image, channel, row, 1]


@torch.library.custom_op("srnas_fast::pool", mutates_args=())
def _pool(x: Tensor, kind: str, size: int, stride: int, count_padding: bool) -> Tensor:
    dtype, form = wide(x), dense_format(x)
    x_wide = _readable(x.to(dtype), form)
    compiled = compiled_kernel(f"{kind}_pool", x_wide) if size in COMPILED else None
    if compiled is None:
        y = pool_reference(x_wide, kind, size, stride, count_padding)
        return y.to(x.dtype).contiguous(memory_format=form)
    y = empty_output(x, x.shape[1], stride, dtype)
    rule = [] if kind == "max" else [count_padding]
    compiled(_layout(x, form, size, stride), *rule, x_wide.data_ptr(), _places(x_wide, form), y.data_ptr())
    return y.to(x.dtype)


@_pool.register_fake
def _(x, kind, size, stride, count_padding):
    return empty_output(x, x.shape[1], stride, x.dtype)


@torch.library.custom_op("srnas_fast::pool_backward", mutates_args=())
def _pool_backward(dy: Tensor, x: Tensor, kind: str, size: int, stride: int, count_padding: bool) -> Tensor:
    dtype, form = wide(x), dense_format(x)
    dy = dy.to(dtype).contiguous(memory_format=form)
    x_wide = _readable(x.to(dtype), form) if kind == "max" else x.to(dtype)
    compiled = compiled_kernel(f"{kind}_pool_backward", dy, x_wide) if size in COMPILED else None
    if compiled is None:
        dx = _backward_reference(dy, x_wide, kind, size, stride, count_padding)
        return dx.to(x.dtype).contiguous(memory_format=form)
    dx = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=form)
    shape = _layout(x, form, size, stride)
    if kind == "max":
        compiled(shape, dy.data_ptr(), x_wide.data_ptr(), _places(x_wide, form), dx.data_ptr())
    else:
        compiled(shape, count_padding, dy.data_ptr(), dx.data_ptr())
    return dx.to(x.dtype)


def _backward_reference(dy: Tensor, x: Tensor, kind: str, size: int, stride: int, count_padding: bool) -> Tensor:
    window = ([size] * 2, [stride] * 2, [size // 2] * 2)
    if kind == "average":
        return torch.ops.aten.avg_pool2d_backward(dy, x, *window, False, count_padding, None)
    _, places = torch.ops.aten.max_pool2d_with_indices(x, *window)
    return torch.ops.aten.max_pool2d_with_indices_backward(dy, x, *window, [1, 1], False, places)


@_pool_backward.register_fake
def _(dy, x, kind, size, stride, count_padding):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))


def _save(ctx, inputs, output) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _backward(ctx, dy):
    return call(_pool_backward, dy, *ctx.saved_tensors, *ctx.window), None, None, None, None


_pool.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _pool.register_autocast(_device, torch.float32)
