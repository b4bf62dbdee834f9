"""Gradients through depthwise convolutions d_k that are computed again from x, never stored whole for all candidates.

The candidates take turns, and each takes two steps: its sums of products with ``dy``, then its ``dd_k``, which is
written to the one scratch image that they share, because the transposed convolution needs it at neighbouring pixels.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from srnas_fast.kernels.depthwise_tile import (
    channel_block,
    image_index,
    pack_depthwise,
    padded_tile,
    pixel_block,
    tile_places,
)
from srnas_fast.kernels.separable_sum import PROGRAMS, block_channels, precision
from srnas_fast.kernels.tuning import Tile, tuned

# Of products of up to 64 x 64 channels; the first one is the rule's: 32 pixels are the neighbours that a warp reads at
# once, and leave four warps registers for their addresses.
PRODUCT_TILES: list[Tile] = [
    {"BLOCK_P": pixels, "num_warps": warps} for pixels, warps in ((32, 4), (16, 4), (32, 8), (64, 4), (64, 8))
]


def separable_gradient(
    dx: Tensor | None,
    dysum: Tensor | None,
    ddepthwise: Sequence[Tensor] | None,
    products: Sequence[Tensor] | None,
    accumulate: bool,
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor] | None,
    right: Sequence[Tensor] | None,
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
) -> None:
    """Writes what follows from ``dd_k = left_k dy + right_k (d_k - centres_k) + offsets_k``, with d_k from ``x``.

    All sums are float32 and repeat to the bit. Scratch is one d_k in float32, the partial sums of at most ``PROGRAMS``
    programs (8 MiB for products, 2 MiB for kernels up to 7x7), and, where ``dx`` is narrower than float32 and there are
    several candidates, a float32 ``dx``.

    Bytes, with up to 64 channels and outputs, for each candidate: products read x and dy; dd reads dy, and x if there
    are ``right``, and writes one d_k; dx and ddepthwise read that d_k, and x for the latter, and read and write dx. The
    least possible for all candidates together would be x and dy once and dx once.

    Args:
        dx: (N, C, H, W), of any strides, for ``sum_k depthwise_k^T dd_k``, or None.
        dysum: (O,) for the sum over pixels of ``dy``, or None.
        ddepthwise: K tensors (C, 1, k, k) for the weight gradients for ``dd_k``, or None.
        products: K tensors (O, C) for the sums over pixels of ``dy (d_k - centres_k)^T``, or None.
        accumulate: ``dx`` is added to; everything else is written.
        x: (N, C, H, W), of any strides, sharing no memory with ``dx``.
        dy: (N, O, Ho, Wo), of any strides, or None for zeros, with neither ``dysum`` nor ``products``.
        depthwise: K tensors (C, 1, k, k), k odd.
        left: K tensors (C, O); None without ``dy``.
        right: K tensors (C, C), or None or empty for zeros.
        offsets: (K, C) or None for zeros.
        centres: (K, C) or None for zeros.
        dilations: K whole numbers.
        stride: of the depthwise convolutions.
    """
    if not x.shape[0]:
        for result in (dysum, *(ddepthwise or ()), *(products or ())):
            if result is not None:
                result.zero_()
        return
    if dysum is not None:
        dysum.copy_(dy.sum((0, 2, 3), dtype=torch.float32))
    blocks = pack_depthwise(depthwise).split([kernel.numel() for kernel in depthwise])
    dd = _empty_dd(x, stride) if dx is not None or ddepthwise else None
    total = dx
    if dx is not None and dx.dtype != torch.float32 and len(depthwise) > 1:
        total = torch.empty_like(dx, dtype=torch.float32)  # a dx rounded after each candidate would lose digits
    index = image_index(x, dx, dy, dd)
    before = dx if accumulate else None
    for k, kernel in enumerate(depthwise):
        form = (kernel.shape[-1], dilations[k], stride, index)
        centre = None if centres is None else centres[k].contiguous()
        if products:
            _add_products(products[k], x, dy, blocks[k], centre, form)
        if dd is None:
            continue
        left_k = None if dy is None else left[k]
        right_k = right[k] if right else None
        offset = None if offsets is None else offsets[k].contiguous()
        _fill_dd(dd, x, dy, blocks[k], left_k, right_k, offset, centre, form)
        after = dx if k == len(depthwise) - 1 else total
        _transpose(after, before, ddepthwise[k] if ddepthwise else None, dd, x, blocks[k], form)
        before = after


def _empty_dd(x: Tensor, stride: int) -> Tensor:
    """A float32 image as large as one d_k, whose channels are neighbours in memory if those of ``x`` are."""
    size = (x.shape[0], x.shape[1], (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1)
    near = x.stride(1) == 1 and not x.is_contiguous()
    form = torch.channels_last if near else torch.contiguous_format
    return torch.empty(size, dtype=torch.float32, device=x.device, memory_format=form)


@triton.jit
def _centred(
    x,
    kernels,
    centre,
    shape,
    strides,
    channels,
    rows,
    columns,
    inside,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """d - centre of one candidate in one image, float32 [channels, pixels]; 0 for pixels that do not exist.

    Args: x, the image; kernels, the (C, SIZE * SIZE) matrix; centre (C,) or None; shape (C, H, W) and strides of x;
    channels (A,), those from C on give 0; rows and columns (B,) of output pixels, inside (B,), those that exist.
    """
    d = tl.zeros((channels.shape[0], rows.shape[0]), tl.float32)
    for tap in range(SIZE * SIZE):  # not unrolled: the reads of all taps at once do not fit into the registers
        row = rows * STRIDE + (tap // SIZE - SIZE // 2) * DILATION
        column = columns * STRIDE + (tap % SIZE - SIZE // 2) * DILATION
        weight = tl.load(kernels + channels * (SIZE * SIZE) + tap, mask=channels < shape[0], other=0.0)
        d += weight[:, None] * padded_tile(x, shape, strides, channels, row, column, inside)
    if centre is not None:
        # subtracted before the product: afterwards, two large numbers would cancel
        d -= tl.load(centre + channels, mask=channels < shape[0], other=0.0).to(tl.float32)[:, None]
    return tl.where(inside[None, :], d, 0.0)


# ------------------------------------------------------------------------------------------------------- products


@triton.jit
def products_kernel(
    partials,
    x,
    dy,
    kernels,
    centre,
    x_shape,
    x_strides,
    dy_shape,
    dy_strides,
    images,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partials[program] = the sum of dy (d - centre)^T over every so many blocks of pixels, d computed from x.

    Reads x once for each block of outputs and dy once for each block of channels: both once, the least possible for one
    candidate, up to 64 channels and outputs. The taps' further reads of x come from the cache. Writes O * C numbers a
    program.
    """
    outputs = channel_block(tl.program_id(1), BLOCK_O, INDEX)
    channels = channel_block(tl.program_id(2), BLOCK_C, INDEX)
    count, height, width = dy_shape[0], dy_shape[1], dy_shape[2]
    sums = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for block in range(tl.program_id(0), images * tl.cdiv(height * width, BLOCK_P), tl.num_programs(0)):
        image, rows, columns, inside = pixel_block(block, height, width, BLOCK_P, INDEX)
        plane = x + image * x_strides[0]
        d = _centred(
            plane, kernels, centre, x_shape, x_strides[1:], channels, rows, columns, inside, SIZE, DILATION, STRIDE
        )
        g = padded_tile(dy + image * dy_strides[0], dy_shape, dy_strides[1:], outputs, rows, columns, inside)
        sums = tl.dot(g, tl.trans(d), sums, input_precision=PRECISION)
    places = (tl.program_id(0) * count + outputs)[:, None].to(tl.int64) * x_shape[0] + channels[None, :]
    tl.store(partials + places, sums, mask=(outputs < count)[:, None] & (channels < x_shape[0])[None, :])


def _add_products(product, x, dy, kernels, centre, form) -> None:
    images, channels = x.shape[:2]
    outputs, pixels = dy.shape[1], dy.shape[2] * dy.shape[3]
    block_o, block_c = block_channels(outputs), block_channels(channels)
    tiles = (triton.cdiv(outputs, block_o), triton.cdiv(channels, block_c))

    def launch(tile):
        programs = max(1, min(images * triton.cdiv(pixels, tile["BLOCK_P"]), PROGRAMS // (tiles[0] * tiles[1])))
        partials = torch.empty((programs, outputs, channels), dtype=torch.float32, device=x.device)
        products_kernel[(programs, *tiles)](
            partials,
            x,
            dy,
            kernels,
            centre,
            tuple(x.shape[1:]),
            x.stride(),
            tuple(dy.shape[1:]),
            dy.stride(),
            images,
            *form,
            BLOCK_O=block_o,
            BLOCK_C=block_c,
            PRECISION=precision(),
            num_stages=1,  # more of them, to read ahead, would multiply the shared memory
            **tile,
        )
        return partials

    tile = tuned("separable products", PRODUCT_TILES, launch, x, dy, centre is None, form, precision())
    product.copy_(launch(tile).sum(0))


# ------------------------------------------------------------------------------------------------------------- dd


@triton.jit
def dd_kernel(
    dd,
    x,
    dy,
    kernels,
    left,
    right,
    offset,
    centre,
    x_shape,
    x_strides,
    dy_shape,
    dy_strides,
    left_strides,
    right_strides,
    dd_shape,
    dd_strides,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dd = left dy + right (d - centre) + offset, the parts that are None left out, d computed from x.

    Reads dy, and x if there is a right matrix, once for each block of 64 channels: the least possible up to 64 of them.
    Writes dd once.
    """
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    count, height, width = dd_shape[0], dd_shape[1], dd_shape[2]
    image, rows, columns, inside = pixel_block(tl.program_id(0), height, width, BLOCK_P, INDEX)
    known = channels < count
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    if offset is not None:
        total += tl.load(offset + channels, mask=known, other=0.0).to(tl.float32)[:, None]
    if dy is not None:
        for start in range(0, dy_shape[0], BLOCK_O):
            outputs = channel_block(start // BLOCK_O, BLOCK_O, INDEX)
            places = channels[:, None] * left_strides[0] + outputs[None, :] * left_strides[1]
            mask = known[:, None] & (outputs < dy_shape[0])[None, :]
            matrix = tl.load(left + places, mask=mask, other=0.0).to(tl.float32)
            g = padded_tile(dy + image * dy_strides[0], dy_shape, dy_strides[1:], outputs, rows, columns, inside)
            total = tl.dot(matrix, g, total, input_precision=PRECISION)
    if right is not None:
        plane = x + image * x_strides[0]
        for start in range(0, count, BLOCK_C):
            sources = channel_block(start // BLOCK_C, BLOCK_C, INDEX)
            d = _centred(
                plane, kernels, centre, x_shape, x_strides[1:], sources, rows, columns, inside, SIZE, DILATION, STRIDE
            )
            places = channels[:, None] * right_strides[0] + sources[None, :] * right_strides[1]
            mask = known[:, None] & (sources < count)[None, :]
            matrix = tl.load(right + places, mask=mask, other=0.0).to(tl.float32)
            total = tl.dot(matrix, d, total, input_precision=PRECISION)
    places = tile_places(dd_strides[1:], channels, rows, columns)
    tl.store(dd + image * dd_strides[0] + places, total, mask=known[:, None] & inside[None, :])


def _fill_dd(dd, x, dy, kernels, left, right, offset, centre, form) -> None:
    images, channels, height, width = dd.shape
    block_c = block_channels(channels)

    def launch(tile):
        dd_kernel[(images * triton.cdiv(height * width, tile["BLOCK_P"]), triton.cdiv(channels, block_c))](
            dd,
            x,
            dy,
            kernels,
            left,
            right,
            offset,
            centre,
            tuple(x.shape[1:]),
            x.stride(),
            None if dy is None else tuple(dy.shape[1:]),
            None if dy is None else dy.stride(),
            None if left is None else left.stride(),
            None if right is None else right.stride(),
            (channels, height, width),
            dd.stride(),
            *form,
            BLOCK_O=16 if dy is None else block_channels(dy.shape[1]),
            BLOCK_C=block_c,
            PRECISION=precision(),
            num_stages=1,  # more of them, to read ahead, would multiply the shared memory
            **tile,
        )

    launch(tuned("separable dd", PRODUCT_TILES, launch, x, dy, right is None, form, precision()))


# ------------------------------------------------------------------------------------- transposed convolution of dd


@triton.jit
def transpose_kernel(
    after,
    before,
    partials,
    dd,
    x,
    kernels,
    shape,
    after_strides,
    before_strides,
    x_strides,
    dd_shape,
    dd_strides,
    images,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """after = before + depthwise^T dd; partials[program] = the weight gradient over every so many blocks of pixels.

    Both are sums over the same reads: pixel q of x and tap t meet the one pixel p of dd that reads q by t, for
    ``dx[q] += depthwise[t] dd[p]`` and ``ddepthwise[t] += x[q] dd[p]``. Reads dd, before and x (for the weight gradient
    only) once, the further taps from the cache, and writes after once: the least possible for one candidate. Writes
    C * SIZE**2 numbers a program. TAPS is SIZE**2 rounded up to a power of two.
    """
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    known = channels < shape[0]
    taps = tl.arange(0, TAPS)
    height, width = shape[1], shape[2]
    sums = tl.zeros((BLOCK_C, TAPS), tl.float32)
    for block in range(tl.program_id(0), images * tl.cdiv(height * width, BLOCK_P), tl.num_programs(0)):
        image, rows, columns, inside = pixel_block(block, height, width, BLOCK_P, INDEX)
        if partials is not None:
            values = padded_tile(x + image * x_strides[0], shape, x_strides[1:], channels, rows, columns, inside)
        if after is not None:
            total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
            if before is not None:
                place = before + image * before_strides[0]
                total += padded_tile(place, shape, before_strides[1:], channels, rows, columns, inside)
        plane = dd + image * dd_strides[0]
        for tap in range(SIZE * SIZE):
            row = rows - (tap // SIZE - SIZE // 2) * DILATION
            column = columns - (tap % SIZE - SIZE // 2) * DILATION
            hit = inside & (row >= 0) & (column >= 0) & (row % STRIDE == 0) & (column % STRIDE == 0)
            g = padded_tile(plane, dd_shape, dd_strides[1:], channels, row // STRIDE, column // STRIDE, hit)
            if after is not None:
                weight = tl.load(kernels + channels * (SIZE * SIZE) + tap, mask=known, other=0.0)
                total += weight[:, None] * g
            if partials is not None:
                tap_sum = tl.sum(values * g, axis=1)
                sums += tl.where(taps[None, :] == tap, tap_sum[:, None], 0.0)
        if after is not None:
            places = after + image * after_strides[0] + tile_places(after_strides[1:], channels, rows, columns)
            tl.store(places, total.to(after.dtype.element_ty), mask=known[:, None] & inside[None, :])
    if partials is not None:
        places = (tl.program_id(0) * shape[0] + channels)[:, None] * (SIZE * SIZE) + taps[None, :]
        tl.store(partials + places, sums, mask=known[:, None] & (taps < SIZE * SIZE)[None, :])


def _transpose(after, before, ddepthwise, dd, x, kernels, form) -> None:
    images, channels, height, width = x.shape
    taps = form[0] ** 2

    def launch(tile, after=after):
        tiles = triton.cdiv(channels, tile["BLOCK_C"])
        programs = max(1, min(images * triton.cdiv(height * width, tile["BLOCK_P"]), PROGRAMS // tiles))
        partials = None
        if ddepthwise is not None:
            partials = torch.empty((programs, channels, taps), dtype=torch.float32, device=x.device)
        transpose_kernel[(programs, tiles)](
            after,
            before,
            partials,
            dd,
            x,
            kernels,
            (channels, height, width),
            None if after is None else after.stride(),
            None if before is None else before.stride(),
            x.stride(),
            tuple(dd.shape[1:]),
            dd.stride(),
            images,
            *form,
            TAPS=triton.next_power_of_2(taps),
            **tile,
        )
        return partials

    def rehearse(tile):
        launch(tile, None if after is None else torch.empty_like(after))  # before may be the same tensor

    wanted = after is None, before is None, ddepthwise is None
    partials = launch(tuned("separable transpose", transpose_tiles(channels), rehearse, x, dd, wanted, form))
    if ddepthwise is not None:
        ddepthwise.copy_(partials.sum(0).view(ddepthwise.shape))


@cache
def transpose_tiles(channels: int) -> list[Tile]:
    """Up to 16 channels by 64 pixels, and other tiles to be tried beside it.

    There is no matrix product here, so the tile is small: a thread has 8 of its numbers, and registers left for their
    addresses.
    """
    most = triton.next_power_of_2(channels)
    shapes = (16, 64, 4), (16, 32, 4), (16, 128, 8), (4, 128, 4), (1, 512, 4)
    return [{"BLOCK_C": min(most, block_c), "BLOCK_P": block_p, "num_warps": n} for block_c, block_p, n in shapes]
