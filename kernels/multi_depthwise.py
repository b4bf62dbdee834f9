"""Several depthwise convolutions of one input, and their gradients."""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from srnas_fast.kernels.depthwise_tile import (
    channel_block,
    depthwise_input_gradient_tile,
    depthwise_tile,
    image_index,
    pack_depthwise,
    padded_tile,
    pixel_block,
    tile_places,
)
from srnas_fast.kernels.tuning import Tile, tuned

# Of the kernels' gradients, for ``gradient_blocks``; the first one is the rule's.
SUM_TILES: list[Tile] = [
    {"SUMS": sums, "num_warps": warps} for sums, warps in ((4096, 4), (2048, 4), (4096, 8), (8192, 8))
]
PROGRAMS = 1024  # of a reduction, about: a few per multiprocessor of any card, and the bound of its scratch


def blocks(near: bool, channels: int, pixels: int, entries: int = 1024) -> tuple[int, int]:
    """Channels and pixels of a program's tile, powers of two with a product of about ``entries``.

    By rule that is 8 numbers per thread of 4 warps. The tile first follows the axis that is dense in memory, so that
    neighbouring threads read neighbouring elements: up to 32 channels where those are the ``near`` ones, as in
    channels_last, else as many pixels as there are; the other axis takes what is left.
    """
    most_channels, most_pixels = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if near:
        block_c = min(32, most_channels)
        return block_c, min(entries // block_c, most_pixels)
    block_p = min(entries, most_pixels)
    return min(entries // block_p, most_channels), block_p


@cache
def tiles(near: bool, channels: int, pixels: int) -> list[Tile]:
    """The tile of ``blocks``, and others with more or less numbers per thread to be tried beside it."""
    found = []
    for entries, warps in ((1024, 4), (512, 4), (256, 2), (1024, 8), (2048, 4), (2048, 8)):
        block_c, block_p = blocks(near, channels, pixels, entries)
        found.append({"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps})
    return found


def gradient_blocks(x: Tensor, channels: int, sizes: Sequence[int], pixels: int, sums: int = 4096):
    """Channels of a program's tile, and taps and pixels of it for each kernel, in the sums of the kernels' gradients.

    All are powers of two with a product up to ``sums``, by rule 32 of them per thread of 4 warps: all taps, one channel
    (8 in channels_last, where a channel's neighbours in memory are other channels), and as many pixels as are left.
    """
    block_c = min(8, triton.next_power_of_2(channels)) if x.stride(1) == 1 else 1
    blocks_t = tuple(triton.next_power_of_2(size * size) for size in sizes)
    most = triton.next_power_of_2(pixels)
    return block_c, blocks_t, tuple(min(max(sums // (block_c * block_t), 1), most) for block_t in blocks_t)


def multi_depthwise(
    outputs: Sequence[Tensor], x: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int], stride: int
) -> None:
    """Several depthwise convolutions of one input, zero-padded to the size ``(H - 1) // stride + 1``.

    Args:
        outputs: K tensors (N, C, Ho, Wo) of one layout, written.
        x: (N, C, H, W), of any strides.
        kernels: K tensors (C, 1, k, k), k odd.
        dilations: K whole numbers.
        stride: of all of them.
    """
    images, channels, height, width = outputs[0].shape
    if not images:
        return
    plan = {"SIZES": tuple(kernel.shape[-1] for kernel in kernels), "DILATIONS": tuple(dilations), "STRIDE": stride}
    plan["INDEX"] = image_index(x, outputs[0])
    packed = pack_depthwise(kernels)

    def launch(tile):
        grid = images * triton.cdiv(height * width, tile["BLOCK_P"]), triton.cdiv(channels, tile["BLOCK_C"])
        _outputs[grid](tuple(outputs), x, packed, tuple(x.shape), x.stride(), outputs[0].stride(), **plan, **tile)

    candidates = tiles(x.stride(1) == 1, channels, height * width)
    launch(tuned("depthwise outputs", candidates, launch, x, plan))


def multi_depthwise_backward(
    dx: Tensor | None,
    dkernels: Sequence[Tensor] | None,
    dys: Sequence[Tensor],
    x: Tensor,
    kernels: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
) -> None:
    """The gradients of ``multi_depthwise`` for the input and for the kernels.

    Args:
        dx: (N, C, H, W), of any strides, written; None if not wanted.
        dkernels: K tensors (C, 1, k, k), written; None if not wanted.
        dys: K tensors (N, C, Ho, Wo), each of any strides.
        x: (N, C, H, W), of any strides.
        kernels: K tensors (C, 1, k, k), k odd.
        dilations: K whole numbers.
        stride: of all of them.
    """
    images, channels, height, width = x.shape
    plan = {"SIZES": tuple(kernel.shape[-1] for kernel in kernels), "DILATIONS": tuple(dilations), "STRIDE": stride}
    plan["INDEX"] = image_index(x, dx, *dys)
    dy_strides = tuple(dy.stride() for dy in dys)
    if dx is not None and images:
        packed, dy_shape = pack_depthwise(kernels), tuple(dys[0].shape)

        def launch(tile):
            grid = images * triton.cdiv(height * width, tile["BLOCK_P"]), triton.cdiv(channels, tile["BLOCK_C"])
            shapes = tuple(dx.shape), dx.stride(), dy_shape, dy_strides
            _input_gradient[grid](dx, tuple(dys), packed, *shapes, **plan, **tile)

        candidates = tiles(dx.stride(1) == 1, channels, height * width)
        launch(tuned("depthwise input gradient", candidates, launch, dx, dys[0], plan))
    if dkernels is not None:
        pixels = dys[0].shape[2] * dys[0].shape[3]
        numbers = [kernel.numel() for kernel in kernels]

        def add(tile):
            block_c, blocks_t, blocks_p = gradient_blocks(x, channels, plan["SIZES"], pixels, tile["SUMS"])
            most = images * triton.cdiv(pixels, min(blocks_p))
            programs = min(max(1, PROGRAMS // triton.cdiv(channels, block_c)), most)
            partials = x.new_empty((programs, sum(numbers)), dtype=torch.float32)
            if programs:
                _kernel_gradients[(programs, triton.cdiv(channels, block_c))](
                    partials,
                    tuple(dys),
                    x,
                    tuple(x.shape),
                    x.stride(),
                    dy_strides,
                    programs,
                    **plan,
                    BLOCK_C=block_c,
                    BLOCKS_T=blocks_t,
                    BLOCKS_P=blocks_p,
                    num_warps=tile["num_warps"],
                )
            return partials

        partials = add(tuned("depthwise kernel gradients", SUM_TILES, add, x, dys[0], plan))
        sums = partials.sum(0).split(numbers)
        for dkernel, total in zip(dkernels, sums, strict=True):
            dkernel.copy_(total.view(dkernel.shape))


@triton.jit
def _outputs(
    outputs,
    x,
    kernels,
    x_shape,
    x_strides,
    strides,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One tile of every output.

    Bytes: x is read and the K outputs are written once, the least possible, where the cache holds the few rows of x
    that the taps and the candidates read again.
    """
    height, width = (x_shape[2] - 1) // STRIDE + 1, (x_shape[3] - 1) // STRIDE + 1
    image, rows, columns, inside = pixel_block(tl.program_id(0), height, width, BLOCK_P, INDEX)
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    places = tile_places(strides[1:], channels, rows, columns)
    mask = (channels < x_shape[1])[:, None] & inside[None, :]
    x += image * x_strides[0]
    for k in tl.static_range(len(SIZES)):
        d = depthwise_tile(
            x, kernels, x_shape[1:], x_strides[1:], channels, rows, columns, inside, k, SIZES, DILATIONS, STRIDE
        )
        tl.store(outputs[k] + image * strides[0] + places, d.to(outputs[k].dtype.element_ty), mask=mask)


@triton.jit
def _input_gradient(
    dx,
    dys,
    kernels,
    shape,
    strides,
    dy_shape,
    dy_strides,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One tile of dx, gathered from all dys.

    Bytes: the K dys are read and dx is written once, the least possible, where the cache holds the few rows of dy that
    the taps read again.
    """
    image, rows, columns, inside = pixel_block(tl.program_id(0), shape[2], shape[3], BLOCK_P, INDEX)
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for k in tl.static_range(len(SIZES)):
        total += depthwise_input_gradient_tile(
            dys[k] + image * dy_strides[k][0],
            kernels,
            dy_shape[1:],
            dy_strides[k][1:],
            channels,
            rows,
            columns,
            inside,
            k,
            SIZES,
            DILATIONS,
            STRIDE,
        )
    places = tile_places(strides[1:], channels, rows, columns)
    tl.store(
        dx + image * strides[0] + places,
        total.to(dx.dtype.element_ty),
        mask=(channels < shape[1])[:, None] & inside[None, :],
    )


@triton.jit
def _kernel_gradients(
    partials,
    dys,
    x,
    shape,
    strides,
    dy_strides,
    programs,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCKS_T: tl.constexpr,
    BLOCKS_P: tl.constexpr,
):
    """A program's share of all kernels' gradients, for a few channels.

    A row of ``partials`` (programs, sum of C k * k) is packed as the depthwise kernels are.

    Bytes: the K dys are read once and x K times, which is once where the cache holds a program's share, the least
    possible; the partials are a fixed number of bytes.
    """
    taps = 0
    for k in tl.static_range(len(SIZES)):
        taps += SIZES[k] * SIZES[k]
    partials += tl.program_id(0).to(tl.int64) * shape[1] * taps
    for k in tl.static_range(len(SIZES)):
        _kernel_gradient(
            partials,
            dys[k],
            x,
            shape,
            strides,
            dy_strides[k],
            programs,
            SIZES[k],
            DILATIONS[k],
            STRIDE,
            INDEX,
            BLOCK_C,
            BLOCKS_T[k],
            BLOCKS_P[k],
        )
        partials += shape[1] * (SIZES[k] * SIZES[k])


@triton.jit
def _kernel_gradient(
    partial,
    dy,
    x,
    shape,
    strides,
    dy_strides,
    programs,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The sums over a program's pixels of dy times x at each tap: ``partial`` (C, SIZE * SIZE).

    The taps are an axis of the tile beside channels and pixels: the sums stay in registers over all of a program's
    pixels and are added up across threads once.
    """
    height, width = (shape[2] - 1) // STRIDE + 1, (shape[3] - 1) // STRIDE + 1
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    taps = tl.arange(0, BLOCK_T)
    row_shifts, column_shifts = (taps // SIZE - SIZE // 2) * DILATION, (taps % SIZE - SIZE // 2) * DILATION
    total = tl.zeros((BLOCK_C, BLOCK_T, BLOCK_P), tl.float32)
    for index in tl.range(tl.program_id(0), shape[0] * tl.cdiv(height * width, BLOCK_P), programs, num_stages=1):
        image, rows, columns, inside = pixel_block(index, height, width, BLOCK_P, INDEX)
        dz = padded_tile(dy + image * dy_strides[0], shape[1:], dy_strides[1:], channels, rows, columns, inside)
        row = rows[None, :] * STRIDE + row_shifts[:, None]
        column = columns[None, :] * STRIDE + column_shifts[:, None]
        hit = inside[None, :] & (row >= 0) & (row < shape[2]) & (column >= 0) & (column < shape[3])
        places = (channels * strides[1])[:, None, None] + (row * strides[2] + column * strides[3])[None, :, :]
        mask = (channels < shape[1])[:, None, None] & (hit & (taps < SIZE * SIZE)[:, None])[None, :, :]
        total += dz[:, None, :] * tl.load(x + image * strides[0] + places, mask=mask, other=0.0).to(tl.float32)
    mask = (channels < shape[1])[:, None] & (taps < SIZE * SIZE)[None, :]
    tl.store(partial + channels[:, None] * (SIZE * SIZE) + taps[None, :], tl.sum(total, 2), mask=mask)
