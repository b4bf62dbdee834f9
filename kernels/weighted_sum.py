"""``y = shift + sum_k weights_k (z_k - centres_k)`` over tensors of one shape and any strides, and its gradients."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TOGETHER = 8  # tensors per launch
TILE = 1024  # entries of each tensor per program: eight for a thread, so that it loads 16 bytes and more at once


def weighted_sum(
    y: Tensor, accumulate: bool, weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None, centres: Tensor | None
) -> None:
    """``shift + sum_k weights_k * (z_k - centres_k)``, per channel where wanted.

    Computed in float32; more than 8 tensors are added up in ``y``, in its type, 8 at a time.

    Args:
        y: of the shape of ``zs``; written, or added to where ``accumulate``.
        weights: (K,), or (K, C) for one weight per channel.
        zs: K tensors of one shape, (N, C, ...) where C is used, any shape otherwise.
        shift: (C,) or None.
        centres: (K, C) or None.

    Raises:
        ValueError: more than four dimensions, in strides that do not let them be taken together.
    """
    if not y.numel():
        return
    channels = weights.ndim == 2 or shift is not None or centres is not None
    sizes, (y_strides, *z_strides) = _layout([y, *zs], channels)
    _, blocks, grid = _tiles(sizes, y_strides)
    for first in range(0, len(zs), TOGETHER):
        some = slice(first, first + TOGETHER)
        _forward[grid](
            y,
            weights[some],
            tuple(zs[some]),
            None if first else shift,
            None if centres is None else centres[some],
            sizes,
            y_strides,
            _steps(weights),
            tuple(z_strides[some]),
            0 if shift is None else shift.stride(0),
            _steps(centres),
            **blocks,
            ACCUMULATE=accumulate or first > 0,
        )


def weighted_sum_backward(
    dweights: Tensor | None,
    dysum: Tensor | None,
    dzs: Sequence[Tensor | None],
    dy: Tensor,
    weights: Tensor,
    zs: Sequence[Tensor],
    centres: Tensor | None,
) -> None:
    """The gradients of ``weighted_sum``, in one pass over memory for each 8 tensors.

    Args:
        dweights: like ``weights``, ``<dy, z_k - centres_k>``; written; None where not wanted.
        dysum: (C,), the sums of dy, or (1,) for tensors of fewer than two dimensions; written; None where not wanted.
        dzs: K tensors of the shape of ``dy``, ``weights_k dy``; written; None where not wanted.
        dy: (N, C, ...), or any shape where C is not used.
        weights, zs, centres: as given to ``weighted_sum``; ``zs`` is not looked at without ``dweights``.

    Raises:
        ValueError: as ``weighted_sum``.
    """
    count = len(dzs)
    zs = [None] * count if dweights is None else zs
    channels = dy.ndim > 1 and (weights.ndim == 2 or centres is not None or dysum is not None)
    sizes, (dy_strides, *strides) = _layout([dy, *zs, *dzs], channels)
    z_strides, dz_strides = strides[:count], strides[count:]
    shares, blocks, grid = _tiles(sizes, dy_strides)
    # For each tensor, and last for dy alone, one row of numbers per share of the pixels.
    partial = torch.empty(count + 1, shares, sizes[0], dtype=torch.float32, device=dy.device)
    for first in range(0, count if dy.numel() else 0, TOGETHER):
        some = slice(first, first + TOGETHER)
        _backward[grid](
            None if dweights is None else partial[some],
            None if dysum is None or first else partial[count],
            tuple(dzs[some]),
            dy,
            weights[some],
            tuple(zs[some]),
            None if centres is None else centres[some],
            sizes,
            tuple(dz_strides[some]),
            dy_strides,
            _steps(weights),
            tuple(z_strides[some]),
            _steps(centres),
            **blocks,
        )
    if dweights is not None:
        products = partial[:count].sum(1)
        dweights.copy_(products if weights.ndim == 2 else products.sum(1))
    if dysum is not None:
        dysum.copy_(partial[count].sum(0))


def _steps(values: Tensor | None) -> tuple[int, int]:
    """From one tensor's coefficients to the next one's, and from one channel's to the next one's."""
    if values is None:
        return 0, 0
    return values.stride(0), values.stride(1) if values.ndim == 2 else 0


def _layout(
    tensors: Sequence[Tensor | None], channels: bool
) -> tuple[tuple[int, ...], list[tuple[int, int, int, int]]]:
    """Four sizes, and the four strides of each tensor; the first size is that of the channels where they are asked for,
    else of the largest dimension but the last.

    The other dimensions are taken in the order of the first tensor's memory, the nearest neighbours last, and
    together wherever all tensors let them: dense tensors of one format have one but for the channels.
    """
    shape = tensors[0].shape
    given = [tensor for tensor in tensors if tensor is not None]
    taken = []  # (size, strides of all tensors)
    for d in sorted(range(len(shape)), key=lambda d: -tensors[0].stride(d)):
        steps = [tensor.stride(d) for tensor in given]
        if shape[d] == 1 or (channels and d == 1):
            continue
        if taken and all(outer == shape[d] * step for outer, step in zip(taken[-1][1], steps, strict=True)):
            taken[-1] = (taken[-1][0] * shape[d], steps)
        else:
            taken.append((shape[d], steps))
    one = (1, [0] * len(given))
    if channels:
        first = (shape[1], [tensor.stride(1) for tensor in given])
    else:
        first = taken.pop(max(range(len(taken) - 1), key=lambda i: taken[i][0])) if len(taken) > 1 else one
    taken = [first] + [one] * (3 - len(taken)) + taken
    if len(taken) > 4:
        strides = [tensor.stride() for tensor in given]
        raise ValueError(
            f"tensors of shape {tuple(shape)} and strides {strides}; give four dimensions or dense tensors"
        )
    strides = iter(zip(*(steps for _, steps in taken), strict=True))
    sizes = tuple(size for size, _ in taken)
    return sizes, [(0, 0, 0, 0) if tensor is None else next(strides) for tensor in tensors]


def _tiles(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, dict, tuple[int]]:
    """How many tiles cover the pixels, their block sizes (channels by neighbours along the last dimension), the grid.

    The grid has a program for each tile of each block of channels, along the one axis that takes more than 65,535.

    A tile is long where memory is dense: along the channels where they are the nearest neighbours, up to 32 of them,
    which are 64 bytes and more; else along the last dimension. What that leaves of the tile goes the other way.
    """
    channels, last = (triton.next_power_of_2(max(1, size)) for size in (sizes[0], sizes[3]))
    if sizes[0] > 1 and strides[0] < strides[3]:
        channels = min(channels, 32)
        last = min(last, TILE // channels)
    else:
        last = min(last, TILE)
        channels = min(channels, TILE // last)
    shares = sizes[1] * sizes[2] * triton.cdiv(sizes[3], last)
    return shares, dict(CHANNELS=channels, LAST=last), (shares * triton.cdiv(sizes[0], channels),)


@triton.jit
def _shares(sizes, LAST: tl.constexpr):
    return sizes[1] * sizes[2] * tl.cdiv(sizes[3], LAST)


@triton.jit
def _place(sizes, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """(channels, their mask, place, the tile's mask); place has the four indices of the program's tile."""
    tiles = tl.cdiv(sizes[3], LAST)
    share = (tl.program_id(0) % _shares(sizes, LAST)).to(tl.int64)
    last = share % tiles * LAST + tl.arange(0, LAST)
    outer = share // tiles
    c = (tl.program_id(0) // _shares(sizes, LAST)).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (c < sizes[0])[:, None] & (last < sizes[3])[None, :]
    return c, c < sizes[0], (c[:, None], outer // sizes[2], outer % sizes[2], last[None, :]), inside


@triton.jit
def _offset(place, strides):
    return place[0] * strides[0] + place[1] * strides[1] + place[2] * strides[2] + place[3] * strides[3]


@triton.jit
def _forward(
    y_ptr,
    weights_ptr,
    z_ptrs,
    shift_ptr,
    centres_ptr,
    sizes,
    y_strides,
    weights_strides,
    z_strides,
    shift_stride,
    centres_strides,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Reads each z and writes y, each once, and reads y where it accumulates: the least possible."""
    c, channel, place, inside = _place(sizes, CHANNELS, LAST)
    y = tl.zeros((CHANNELS, LAST), tl.float32)
    if ACCUMULATE:
        y = tl.load(y_ptr + _offset(place, y_strides), mask=inside, other=0.0).to(tl.float32)
    if shift_ptr is not None:
        y += tl.load(shift_ptr + c * shift_stride, mask=channel, other=0.0).to(tl.float32)[:, None]
    for k in tl.static_range(len(z_ptrs)):
        z = tl.load(z_ptrs[k] + _offset(place, z_strides[k]), mask=inside, other=0.0).to(tl.float32)
        if centres_ptr is not None:
            at = centres_ptr + k * centres_strides[0] + c * centres_strides[1]
            z -= tl.load(at, mask=channel, other=0.0).to(tl.float32)[:, None]
        at = weights_ptr + k * weights_strides[0] + c * weights_strides[1]
        y += tl.load(at, mask=channel, other=0.0).to(tl.float32)[:, None] * z
    tl.store(y_ptr + _offset(place, y_strides), y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    products_ptr,
    sums_ptr,
    dz_ptrs,
    dy_ptr,
    weights_ptr,
    z_ptrs,
    centres_ptr,
    sizes,
    dz_strides,
    dy_strides,
    weights_strides,
    z_strides,
    centres_strides,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Reads dy and, for dweights, each z, and writes each dz that is wanted, each once: the least possible; and for
    each tile at most K + 1 numbers per channel, the tile's share of dweights and dysum."""
    c, channel, place, inside = _place(sizes, CHANNELS, LAST)
    dy = tl.load(dy_ptr + _offset(place, dy_strides), mask=inside, other=0.0).to(tl.float32)
    share = (tl.program_id(0) % _shares(sizes, LAST)).to(tl.int64) * sizes[0] + c
    one = (tl.zeros((), tl.int64) + _shares(sizes, LAST)) * sizes[0]  # numbers of a tensor
    if sums_ptr is not None:
        tl.store(sums_ptr + share, tl.sum(dy, 1), mask=channel)
    for k in tl.static_range(len(dz_strides)):  # Triton before 3.7 knows no length of dz_ptrs, where some are None
        if products_ptr is not None:
            z = tl.load(z_ptrs[k] + _offset(place, z_strides[k]), mask=inside, other=0.0).to(tl.float32)
            if centres_ptr is not None:
                at = centres_ptr + k * centres_strides[0] + c * centres_strides[1]
                z -= tl.load(at, mask=channel, other=0.0).to(tl.float32)[:, None]
            # Outside the tile dy is 0, whatever the centre made of z.
            tl.store(products_ptr + k * one + share, tl.sum(dy * z, 1), mask=channel)
        if dz_ptrs[k] is not None:
            at = weights_ptr + k * weights_strides[0] + c * weights_strides[1]
            dz = tl.load(at, mask=channel, other=0.0).to(tl.float32)[:, None] * dy
            tl.store(dz_ptrs[k] + _offset(place, dz_strides[k]), dz.to(dz_ptrs[k].dtype.element_ty), mask=inside)
