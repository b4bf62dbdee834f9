"""Sums of separable convolutions, and the moments of their depthwise outputs, which are never stored."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from srnas_fast.kernels.depthwise_tile import (
    channel_block,
    depthwise_tile,
    image_index,
    pack_depthwise,
    pixel_block,
    tile_places,
)
from srnas_fast.kernels.tuning import Tile, tuned

PROGRAMS = 512  # of a reduction, about: a few per multiprocessor of any card, and the bound of its scratch


# Of the sum; the first one is the rule's: beside 64 outputs, 16 channels by 32 pixels fit the registers of four warps.
SUM_TILES: list[Tile] = [
    {"BLOCK_C": channels, "BLOCK_P": pixels, "num_warps": warps}
    for channels, pixels, warps in ((16, 32, 4), (16, 16, 4), (32, 32, 4), (16, 64, 4), (16, 64, 8), (16, 128, 8))
]
# Of the means; the first one is the rule's: 8 numbers per thread of four warps.
MEAN_TILES: list[Tile] = [
    {"BLOCK_C": channels, "BLOCK_P": pixels, "num_warps": warps}
    for channels, pixels, warps in ((16, 64, 4), (32, 32, 4), (4, 256, 4), (1, 1024, 4), (16, 128, 8))
]


def block_channels(channels: int, most: int = 64) -> int:
    """Channels on one side of a tile product: the power of two that holds them, from 16 (the least) to ``most``."""
    return min(max(triton.next_power_of_2(channels), 16), most)


def precision() -> str:
    """How float32 numbers are multiplied in a tile product, as torch is told to do it in its own."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, where reading the old name may be an error
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def separable_sum(
    y: Tensor,
    accumulate: bool,
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    shift: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
) -> None:
    """``shift + sum_k pointwise_k (d_k - centres_k)`` with ``d_k = depthwise_k * x``; nothing but ``y`` is written.

    Args:
        y: (N, O, Ho, Wo), of any strides, written, or added to with ``accumulate``; shares no memory with ``x``.
        accumulate: whether the sum is added to ``y``.
        x: (N, C, H, W), of any strides.
        depthwise: K tensors (C, 1, k, k), k odd.
        pointwise: K tensors (O, C).
        shift: (O,) or None.
        centres: (K, C) or None.
        dilations: K whole numbers.
        stride: of the depthwise convolutions, which are zero-padded to the size ``(H - 1) // stride + 1``.
    """
    images, outputs, height, width = y.shape
    if not images:
        return
    block_o = block_channels(outputs)
    parameters = (
        pack_depthwise(depthwise),
        torch.stack([matrix.to(torch.float32) for matrix in pointwise]),
        None if shift is None else shift.to(torch.float32).contiguous(),
        None if centres is None else centres.to(torch.float32).contiguous(),
    )
    plan = {"SIZES": tuple(kernel.shape[-1] for kernel in depthwise), "DILATIONS": tuple(dilations), "STRIDE": stride}
    plan |= {"INDEX": image_index(x, y), "ACCUMULATE": accumulate, "PRECISION": precision(), "BLOCK_O": block_o}

    def launch(tile, y=y):
        grid = images * triton.cdiv(height * width, tile["BLOCK_P"]), triton.cdiv(outputs, block_o)
        _sum[grid](y, x, *parameters, tuple(y.shape), y.stride(), tuple(x.shape), x.stride(), **plan, **tile)

    def rehearse(tile):
        launch(tile, torch.empty_like(y) if accumulate else y)

    launch(tuned("separable sum", SUM_TILES, rehearse, x, y, plan))


def separable_moments(
    means: Tensor, covariances: Tensor, x: Tensor, depthwise: Sequence[Tensor], dilations: Sequence[int], stride: int
) -> None:
    """Mean and biased covariance, over all pixels, of each depthwise convolution's output; nothing else is written.

    Args:
        means: (K, C), written.
        covariances: (K, C, C), written.
        x: (N, C, H, W), of any strides, N at least 1.
        depthwise: K tensors (C, 1, k, k), k odd.
        dilations: K whole numbers.
        stride: of the depthwise convolutions, which are zero-padded to the size ``(H - 1) // stride + 1``.
    """
    images, channels, height, width = x.shape
    pixels = ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
    kernels = pack_depthwise(depthwise)
    rest = (tuple(x.shape), x.stride())
    plan = {"SIZES": tuple(kernel.shape[-1] for kernel in depthwise), "DILATIONS": tuple(dilations), "STRIDE": stride}
    plan["INDEX"] = image_index(x)

    def add(tile):
        groups = triton.cdiv(channels, tile["BLOCK_C"])
        programs = min(max(PROGRAMS // groups, 1), images * triton.cdiv(pixels, tile["BLOCK_P"]))
        sums = x.new_empty((programs, len(depthwise), channels), dtype=torch.float32)
        _sums[(programs, groups)](sums, x, kernels, *rest, programs, **plan, **tile)
        return sums

    centres = add(tuned("separable means", MEAN_TILES, add, x, plan)).sum(0) / (images * pixels)

    block_c = block_channels(channels)  # all channels if possible: each block more computes d_k again
    groups = triton.cdiv(channels, block_c)
    product_plan = plan | {"PRECISION": precision(), "BLOCK_C": block_c}

    def multiply(tile):
        programs = min(max(PROGRAMS // groups**2, 1), images * triton.cdiv(pixels, tile["BLOCK_P"]))
        products = x.new_empty((programs, len(depthwise), channels, channels), dtype=torch.float32)
        _products[(programs, groups, groups)](products, x, kernels, centres, *rest, programs, **product_plan, **tile)
        return products

    warps = 8 if block_c == 64 else 4  # 64 x 64 sums and their operands fill the registers of 4 warps
    shapes = (16, warps), (32, warps), (16, 12 - warps), (64, 8)
    tiles = [{"BLOCK_P": block_p, "num_warps": count} for block_p, count in shapes]
    products = multiply(tuned("separable covariances", tiles, multiply, x, product_plan))
    upper = (products.sum(0) / (images * pixels)).triu()
    means.copy_(centres)
    covariances.copy_(upper + upper.triu(1).transpose(1, 2))


@triton.jit
def _sum(
    y,
    x,
    kernels,
    pointwise,
    shift,
    centres,
    shape,
    strides,
    x_shape,
    x_strides,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One tile of y: each depthwise tile goes from registers straight into the product with the pointwise matrix.

    Bytes: with up to BLOCK_O outputs x is read and y is written (with ACCUMULATE: read, too) once, the least possible,
    where the cache holds the few rows of x that the taps and the candidates read again; else x once per BLOCK_O
    outputs.
    """
    image, rows, columns, inside = pixel_block(tl.program_id(0), shape[2], shape[3], BLOCK_P, INDEX)
    outputs = channel_block(tl.program_id(1), BLOCK_O, INDEX)
    x += image * x_strides[0]
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for k in tl.static_range(len(SIZES)):
        # channels inside of candidates: the other way round, all candidates' addresses would stay in registers
        for first in tl.range(0, x_shape[1], BLOCK_C, num_stages=1):
            channels = channel_block(first // BLOCK_C, BLOCK_C, INDEX)
            d = depthwise_tile(
                x, kernels, x_shape[1:], x_strides[1:], channels, rows, columns, inside, k, SIZES, DILATIONS, STRIDE
            )
            if centres is not None:
                # subtracted before the product: afterwards, two large numbers would cancel
                d -= tl.load(centres + k * x_shape[1] + channels, mask=channels < x_shape[1], other=0.0)[:, None]
            places = (k * shape[1] + outputs)[:, None] * x_shape[1] + channels[None, :]
            mask = (outputs < shape[1])[:, None] & (channels < x_shape[1])[None, :]
            matrix = tl.load(pointwise + places, mask=mask, other=0.0)
            total = tl.dot(matrix, d, total, input_precision=PRECISION)
    if shift is not None:
        total += tl.load(shift + outputs, mask=outputs < shape[1], other=0.0)[:, None]
    y += image * strides[0] + tile_places(strides[1:], outputs, rows, columns)
    mask = (outputs < shape[1])[:, None] & inside[None, :]
    if ACCUMULATE:
        total += tl.load(y, mask=mask, other=0.0).to(tl.float32)
    tl.store(y, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums(
    sums,
    x,
    kernels,
    shape,
    strides,
    programs,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A program's share of the sums over pixels of each d_k, for a few channels; sums: (programs, K, C).

    Bytes: x is read K times, which is once where the cache holds a program's share, the least possible; the sums are
    few.
    """
    height, width = (shape[2] - 1) // STRIDE + 1, (shape[3] - 1) // STRIDE + 1
    channels = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    for k in tl.static_range(len(SIZES)):
        total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        for index in tl.range(tl.program_id(0), shape[0] * tl.cdiv(height * width, BLOCK_P), programs, num_stages=1):
            image, rows, columns, inside = pixel_block(index, height, width, BLOCK_P, INDEX)
            d = depthwise_tile(
                x + image * strides[0],
                kernels,
                shape[1:],
                strides[1:],
                channels,
                rows,
                columns,
                inside,
                k,
                SIZES,
                DILATIONS,
                STRIDE,
            )
            total += tl.where(inside[None, :], d, 0.0)  # a tap that is infinite gives NaN beyond the image
        places = (tl.program_id(0) * len(SIZES) + k) * shape[1] + channels
        tl.store(sums + places, tl.sum(total, 1), mask=channels < shape[1])


@triton.jit
def _products(
    products,
    x,
    kernels,
    centres,
    shape,
    strides,
    programs,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A program's share of the sums over pixels of (d_k - centres_k) (d_k - centres_k)^T, for two blocks of channels.

    ``products``: (programs, K, C, C), of which the blocks below the diagonal are not written.

    Bytes: with up to BLOCK_C channels x is read K times, which is once where the cache holds a program's share, the
    least possible; with B blocks of channels, B + 1 times that. The products are a fixed number of bytes.
    """
    if tl.program_id(1) > tl.program_id(2):
        return
    height, width = (shape[2] - 1) // STRIDE + 1, (shape[3] - 1) // STRIDE + 1
    left = channel_block(tl.program_id(1), BLOCK_C, INDEX)
    right = channel_block(tl.program_id(2), BLOCK_C, INDEX)
    for k in tl.static_range(len(SIZES)):
        total = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
        for index in tl.range(tl.program_id(0), shape[0] * tl.cdiv(height * width, BLOCK_P), programs, num_stages=1):
            image, rows, columns, inside = pixel_block(index, height, width, BLOCK_P, INDEX)
            plane = x + image * strides[0]
            a = _centred(
                plane,
                kernels,
                centres,
                shape[1:],
                strides[1:],
                left,
                rows,
                columns,
                inside,
                k,
                SIZES,
                DILATIONS,
                STRIDE,
            )
            b = a
            if tl.program_id(1) < tl.program_id(2):
                b = _centred(
                    plane,
                    kernels,
                    centres,
                    shape[1:],
                    strides[1:],
                    right,
                    rows,
                    columns,
                    inside,
                    k,
                    SIZES,
                    DILATIONS,
                    STRIDE,
                )
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
        row = (tl.program_id(0).to(tl.int64) * len(SIZES) + k) * shape[1] + left
        mask = (left < shape[1])[:, None] & (right < shape[1])[None, :]
        tl.store(products + row[:, None] * shape[1] + right[None, :], total, mask=mask)


@triton.jit
def _centred(
    x,
    kernels,
    centres,
    shape,
    strides,
    channels,
    rows,
    columns,
    inside,
    K: tl.constexpr,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """d_K - centres_K as ``depthwise_tile`` gives d_K; 0 for pixels that do not exist."""
    d = depthwise_tile(x, kernels, shape, strides, channels, rows, columns, inside, K, SIZES, DILATIONS, STRIDE)
    d -= tl.load(centres + K * shape[0] + channels, mask=channels < shape[0], other=0.0)[:, None]
    return tl.where(inside[None, :], d, 0.0)
