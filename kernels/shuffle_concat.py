"""The store of partial channels, what was made of the first ones beside those that passed by, shuffled; and back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # entries of the result per program, eight for a thread


def shuffle_concat(out: Tensor, y: Tensor, x: Tensor, groups: int, scale: Tensor | None) -> None:
    """``out[:, j * groups]`` is channel j of ``y``; ``out[:, j * groups + i]`` is channel ``i * C / groups + j`` of x.

    The channels of x are multiplied by ``scale``, and at stride 2 those are the maxima of its 2 x 2 windows.

    Args:
        out: (N, C, H, W), or (N, C, H / 2, W / 2) at stride 2; written.
        y: (N, C / groups, *sizes of out*).
        x: (N, C, H, W); at stride 2 of even height and width.
        groups: a whole number from 1 up that divides C.
        scale: () on the device of the tensors, or None.
    """
    if not out.numel():
        return
    grid, blocks = _tiles(out)
    _forward[grid](
        out, y, x, scale, tuple(out.shape), out.stride(), y.stride(), x.stride(), **blocks, **_shape(out, x, groups)
    )


def shuffle_concat_backward(
    dy: Tensor | None,
    dx: Tensor | None,
    dscale: Tensor | None,
    dout: Tensor,
    x: Tensor,
    groups: int,
    scale: Tensor | None,
) -> None:
    """The gradients of ``shuffle_concat``, in one pass.

    The gradient of a maximum goes to the first one of its window, row by row; a NaN counts as the largest.

    Args:
        dy: (N, C / groups, *sizes of dout*); written; None where not wanted.
        dx: like ``x``; its channels from C / groups on are written, the first ones left as they are; None where not
            wanted.
        dscale: (); written; None where not wanted.
        dout: (N, C, *sizes of y*).
        x, groups, scale: as given to ``shuffle_concat``; at stride 1 ``x`` is read for ``dscale`` only.
    """
    grid, blocks = _tiles(dout)
    partial = None if dscale is None else torch.empty(grid, dtype=torch.float32, device=dout.device)
    if dout.numel():
        _backward[grid](
            dy,
            dx,
            partial,
            dout,
            x,
            scale,
            tuple(dout.shape),
            (0, 0, 0, 0) if dy is None else dy.stride(),
            (0, 0, 0, 0) if dx is None else dx.stride(),
            dout.stride(),
            x.stride(),
            **blocks,
            **_shape(dout, x, groups),
        )
    if dscale is not None:
        dscale.copy_(partial.sum())


def _shape(out: Tensor, x: Tensor, groups: int) -> dict:
    return dict(GROUPS=groups, STRIDE=1 if out.shape[2:] == x.shape[2:] else 2)


def _tiles(out: Tensor) -> tuple[tuple[int, int], dict]:
    """The grid, and the block sizes of a program's tile: channels by pixels of an image.

    A tile is long where memory is dense: along the channels in channels_last, up to 64 of them, so that also of the
    channels of x, of which a group's are together, whole pieces of memory are read; else along the pixels. What that
    leaves of the tile goes the other way.
    """
    images, channels, height, width = out.shape
    pixels = height * width
    many, long = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if channels > 1 and out.stride(1) < out.stride(3):
        many = min(many, 64)
        long = min(long, TILE // many)
    else:
        long = min(long, TILE)
        many = min(many, TILE // long)
    grid = images * triton.cdiv(pixels, long), triton.cdiv(channels, many)
    return grid, dict(CHANNELS=many, PIXELS=long)


@triton.jit
def _place(shape, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """(image, i, j, row, column, made, passed) of the program's tile: channel ``j * GROUPS + i`` of the result is made,
    where i is 0, or passed by; both masks are False outside the result."""
    pixels = shape[2] * shape[3]
    tiles = tl.cdiv(pixels, PIXELS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = (tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS))[None, :]
    channel = (tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    inside = (channel < shape[1]) & (pixel < pixels)
    i, j = channel % GROUPS, channel // GROUPS
    return image, i, j, pixel // shape[3], pixel % shape[3], inside & (i == 0), inside & (i > 0)


@triton.jit
def _offset(image, channel, row, column, strides):
    return image * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3]


@triton.jit
def _largest(corners, strides, mask, STRIDE: tl.constexpr):
    """(largest, place) of each 2 x 2 window, given its upper left corner: the first of equal ones, and a NaN whatever
    comes. At stride 1 the windows are single pixels."""
    largest = tl.load(corners, mask=mask, other=0.0).to(tl.float32)
    place = tl.zeros_like(largest).to(tl.int32)
    if STRIDE == 2:
        for tap in tl.static_range(1, 4):
            at = corners + tap // 2 * strides[2] + tap % 2 * strides[3]
            value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            better = (value > largest) | (value != value)
            largest = tl.where(better, value, largest)
            place = tl.where(better, tap, place)
    return largest, place


@triton.jit
def _forward(
    out_ptr,
    y_ptr,
    x_ptr,
    scale_ptr,
    shape,
    out_strides,
    y_strides,
    x_strides,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Reads y and the channels of x that pass by, and writes the result, each once: the least possible."""
    image, i, j, row, column, made, passed = _place(shape, GROUPS, CHANNELS, PIXELS)
    y = tl.load(y_ptr + _offset(image, j, row, column, y_strides), mask=made, other=0.0).to(tl.float32)
    source = i * (shape[1] // GROUPS) + j
    corners = x_ptr + _offset(image, source, row * STRIDE, column * STRIDE, x_strides)
    rest, _ = _largest(corners, x_strides, passed, STRIDE)
    if scale_ptr is not None:
        rest *= tl.load(scale_ptr).to(tl.float32)
    place = out_ptr + _offset(image, j * GROUPS + i, row, column, out_strides)
    tl.store(place, tl.where(made, y, rest).to(out_ptr.dtype.element_ty), mask=made | passed)


@triton.jit
def _backward(
    dy_ptr,
    dx_ptr,
    partial_ptr,
    dout_ptr,
    x_ptr,
    scale_ptr,
    shape,
    dy_strides,
    dx_strides,
    dout_strides,
    x_strides,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Reads dout, writes dy and the channels of dx that passed by, and reads those of x where a maximum or dscale
    wants them, each once: the least possible; and one number per program, its share of dscale."""
    image, i, j, row, column, made, passed = _place(shape, GROUPS, CHANNELS, PIXELS)
    place = dout_ptr + _offset(image, j * GROUPS + i, row, column, dout_strides)
    dout = tl.load(place, mask=made | passed, other=0.0).to(tl.float32)
    if dy_ptr is not None:
        tl.store(dy_ptr + _offset(image, j, row, column, dy_strides), dout.to(dy_ptr.dtype.element_ty), mask=made)
    source = i * (shape[1] // GROUPS) + j
    row, column = row * STRIDE, column * STRIDE
    if partial_ptr is not None or (dx_ptr is not None and STRIDE == 2):
        largest, first = _largest(x_ptr + _offset(image, source, row, column, x_strides), x_strides, passed, STRIDE)
    if partial_ptr is not None:
        share = tl.sum(tl.sum(tl.where(passed, dout * largest, 0.0), 1), 0)
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1), share)
    if dx_ptr is not None:
        drest = dout
        if scale_ptr is not None:
            drest *= tl.load(scale_ptr).to(tl.float32)
        drest = drest.to(dx_ptr.dtype.element_ty)
        targets = dx_ptr + _offset(image, source, row, column, dx_strides)
        if STRIDE == 1:
            tl.store(targets, drest, mask=passed)
        else:
            for tap in tl.static_range(4):
                target = targets + tap // 2 * dx_strides[2] + tap % 2 * dx_strides[3]
                tl.store(target, tl.where(first == tap, drest, 0.0), mask=passed)
