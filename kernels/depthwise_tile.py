"""A tile of a depthwise convolution, or of its input gradient, in registers: the part that several kernels share.

The depthwise kernels of all K candidates travel in one flat float32 tensor (``pack_depthwise``): the block of candidate
k is its (C, s_k * s_k) matrix, row by row, and begins at element ``C * (s_0**2 + ... + s_(k-1)**2)``. Their sides s_k
(``SIZES``) and ``DILATIONS`` are ``tl.constexpr`` tuples of K numbers, and ``K``, the number of the candidate, is a
``tl.constexpr`` too. ``shape`` is the tuple (C, H, W) of the image that is read, ``strides`` the tuple of its strides
in elements for channel, row and column, and the pointer already stands at the image. Coordinates, of channels, rows
and columns, are of the type ``INDEX`` that holds every offset inside of an image, as ``image_index`` tells it: most
registers of these kernels hold addresses.

The taps of a kernel's row unroll, its rows are a loop: with all taps unrolled the compiler loads ahead of its
registers, spills, and takes minutes for a handful of candidates. A loop around these functions wants
``tl.range(..., num_stages=1)``: a pipelined one would stage the tiles of all taps in shared memory.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


def pack_depthwise(kernels: Sequence[Tensor]) -> Tensor:
    """All depthwise kernels in one flat float32 tensor, as the device functions below read them.

    Args:
        kernels: K tensors (C, 1, s_k, s_k) of any strides.
    """
    return torch.cat([kernel.to(torch.float32).reshape(-1) for kernel in kernels])


def image_index(*tensors: Tensor | None) -> tl.dtype:
    """The type of the offsets inside of an image, ``INDEX``: int32 where that holds them all, else int64.

    Args:
        tensors: (N, C, H, W), of any strides; None counts as no tensor.
    """
    images = [(tensor.shape[1:], tensor.stride()[1:]) for tensor in tensors if tensor is not None]
    farthest = max(sum((size - 1) * step for size, step in zip(*image, strict=True)) for image in images)
    return tl.int32 if farthest < 2**31 else tl.int64


@triton.jit
def pixel_block(index, height, width, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """Block ``index`` of all images' pixels, BLOCK of them in a row: (image, rows, columns, inside).

    An image of height x width has ``cdiv(height * width, BLOCK)`` blocks of its own; ``inside`` (BLOCK,) tells which
    pixels of the last one exist. The image is int64, rows and columns are INDEX.
    """
    blocks = tl.cdiv(height * width, BLOCK)
    pixels = (index % blocks) * BLOCK + tl.arange(0, BLOCK)
    rows, columns = (pixels // width).to(INDEX), (pixels % width).to(INDEX)
    return (index // blocks).to(tl.int64), rows, columns, pixels < height * width


@triton.jit
def channel_block(index, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """Block ``index`` of the channels, BLOCK of them in a row."""
    return (index * BLOCK + tl.arange(0, BLOCK)).to(INDEX)


@triton.jit
def tile_places(strides, channels, rows, columns):
    """Where [channels, pixels] stand in an image of strides (channel, row, column), in elements."""
    return (channels * strides[0])[:, None] + (rows * strides[1] + columns * strides[2])[None, :]


@triton.jit
def padded_tile(x, shape, strides, channels, rows, columns, inside):
    """x[channels, rows, columns] of one image as float32 [channels, pixels]; 0 outside of the image.

    ``channels`` (A,), ``rows`` and ``columns`` (B,) are whole numbers of any value, ``inside`` (B,) tells which of the
    pixels are wanted.
    """
    inside = inside & (rows >= 0) & (rows < shape[1]) & (columns >= 0) & (columns < shape[2])
    places = tile_places(strides, channels, rows, columns)
    return tl.load(x + places, mask=(channels < shape[0])[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def candidate_kernels(kernels, count, K: tl.constexpr, SIZES: tl.constexpr):
    """The pointer to the block of candidate K among the packed kernels of ``count`` channels."""
    for k in tl.static_range(K):
        kernels += count * (SIZES[k] * SIZES[k])
    return kernels


@triton.jit
def depthwise_tile(
    x,
    kernels,
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
    """d_K[channels, rows, columns] of one image: float32 [channels, pixels], zero-padded, computed from x.

    Args: x, the image; kernels, the packed ones; shape (C, H, W) and strides of x; channels (A,), those from C on give
    0; rows and columns (B,) of *output* pixels, inside (B,), those that are not give 0; K, the candidate.
    """
    size: tl.constexpr = SIZES[K]
    dilation: tl.constexpr = DILATIONS[K]
    block = candidate_kernels(kernels, shape[0], K, SIZES) + channels * (size * size)
    d = tl.zeros((channels.shape[0], rows.shape[0]), tl.float32)
    for i in tl.range(0, size, num_stages=1):
        for j in tl.static_range(size):
            row = rows * STRIDE + (i - size // 2) * dilation
            column = columns * STRIDE + (j - size // 2) * dilation
            tap = tl.load(block + (i * size + j), mask=channels < shape[0], other=0.0)
            d += tap[:, None] * padded_tile(x, shape, strides, channels, row, column, inside)
    return d


@triton.jit
def depthwise_input_gradient_tile(
    dz,
    kernels,
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
    """What dz, the gradient of d_K, gives to dx[channels, rows, columns]: float32 [channels, pixels], gathered.

    Args: dz, the image; kernels, the packed ones; shape (C, Ho, Wo) and strides of dz; channels (A,), those from C on
    give 0; rows and columns (B,) of *input* pixels, inside (B,), those that are not give 0; K, the candidate.
    """
    size: tl.constexpr = SIZES[K]
    dilation: tl.constexpr = DILATIONS[K]
    block = candidate_kernels(kernels, shape[0], K, SIZES) + channels * (size * size)
    dx = tl.zeros((channels.shape[0], rows.shape[0]), tl.float32)
    for i in tl.range(0, size, num_stages=1):
        for j in tl.static_range(size):
            # an output pixel p read this input pixel with tap (i, j) if p * STRIDE is this place, shifted back
            row = rows - (i - size // 2) * dilation
            column = columns - (j - size // 2) * dilation
            hit = inside & (row >= 0) & (column >= 0) & (row % STRIDE == 0) & (column % STRIDE == 0)
            tap = tl.load(block + (i * size + j), mask=channels < shape[0], other=0.0)
            tile = padded_tile(dz, shape, strides, channels, row // STRIDE, column // STRIDE, hit)
            dx += tap[:, None] * tile
    return dx
