"""``sum_k w_k pad(W_k)`` of dense kernels of different sizes and dilations, and its gradients."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TOGETHER = 8  # kernels per launch: a program's code grows with each
BLOCK = 256  # entries of the merged kernel per program: few, so that also small kernels fill a card


def merge_kernels(merged: Tensor, weights: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]) -> None:
    """``sum_k weights_k * kernels_k``, each kernel spread by its dilation and centred in ``merged``.

    Computed in float32; more than 8 kernels are added up in ``merged``, in its type, 8 at a time.

    Args:
        merged: (O, I, S, S), S = max(dilation * (k - 1) + 1); written.
        weights: (K,).
        kernels: K tensors (O, I, k, k), each k odd.
        dilations: K whole numbers from 1 up.
    """
    for first in range(0, len(kernels), TOGETHER):
        some = slice(first, first + TOGETHER)
        shape = _shape(merged, kernels[some], dilations[some])
        if merged.numel():
            _merge[(triton.cdiv(merged.numel(), BLOCK),)](
                merged,
                weights[some],
                tuple(kernels[some]),
                merged.stride(),
                weights.stride(0),
                _strides(kernels[some]),
                merged.numel(),
                merged.shape[1],
                **shape,
                ACCUMULATE=first > 0,
            )


def merge_kernels_backward(
    dweights: Tensor,
    dkernels: Sequence[Tensor],
    dmerged: Tensor,
    weights: Tensor,
    kernels: Sequence[Tensor],
    dilations: Sequence[int],
) -> None:
    """``dweights_k = <kernels_k, dmerged at its taps>``, ``dkernels_k = weights_k`` times those.

    Args:
        dweights: (K,); written.
        dkernels: K tensors of the shapes of ``kernels``; written.
        dmerged: (O, I, S, S).
        weights, kernels, dilations: as given to ``merge_kernels``.
    """
    programs = triton.cdiv(dmerged.numel(), BLOCK)
    partial = torch.empty(len(kernels), programs, dtype=torch.float32, device=dmerged.device)
    for first in range(0, len(kernels), TOGETHER):
        some = slice(first, first + TOGETHER)
        if programs:
            _merge_backward[(programs,)](
                partial[some],
                tuple(dkernels[some]),
                dmerged,
                weights[some],
                tuple(kernels[some]),
                _strides(dkernels[some]),
                dmerged.stride(),
                weights.stride(0),
                _strides(kernels[some]),
                dmerged.numel(),
                dmerged.shape[1],
                **_shape(dmerged, kernels[some], dilations[some]),
            )
    dweights.copy_(partial.sum(1))


def _strides(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride())


def _shape(merged: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]) -> dict:
    """What is known when a launch is compiled: its kernels' taps."""
    sizes = tuple(kernel.shape[-1] for kernel in kernels)
    return dict(SIZE=merged.shape[-1], SIZES=sizes, DILATIONS=tuple(dilations), BLOCK=BLOCK)


@triton.jit
def _entries(entries, inputs, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """(inside, output, input, row, column) of the program's entries of the merged kernel."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    plane = entry // (SIZE * SIZE)
    return entry < entries, plane // inputs, plane % inputs, entry // SIZE % SIZE, entry % SIZE


@triton.jit
def _taps(strides, k, inside, o, i, row, column, SIZE: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr):
    """(inside, offset): which entries a kernel's taps fall on, and the place of each tap in tensor k of those with
    these strides."""
    FIRST: tl.constexpr = (SIZE - 1 - DILATION * (TAPS - 1)) // 2
    LAST: tl.constexpr = SIZE - 1 - FIRST
    inside &= (row >= FIRST) & (row <= LAST) & (column >= FIRST) & (column <= LAST)
    down, right = row - FIRST, column - FIRST
    inside &= (down % DILATION == 0) & (right % DILATION == 0)
    offset = o * strides[4 * k] + i * strides[4 * k + 1]
    return inside, offset + down // DILATION * strides[4 * k + 2] + right // DILATION * strides[4 * k + 3]


@triton.jit
def _merge(
    merged_ptr,
    weights_ptr,
    kernel_ptrs,
    merged_strides,
    weights_stride,
    kernel_strides,
    entries,
    inputs,
    SIZE: tl.constexpr,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Reads each kernel and writes the merged one, each once: the least possible."""
    inside, o, i, row, column = _entries(entries, inputs, SIZE, BLOCK)
    place = merged_ptr + o * merged_strides[0] + i * merged_strides[1]
    place += row * merged_strides[2] + column * merged_strides[3]
    merged = tl.zeros((BLOCK,), tl.float32)
    if ACCUMULATE:
        merged = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(len(SIZES)):
        at_tap, offset = _taps(kernel_strides, k, inside, o, i, row, column, SIZE, SIZES[k], DILATIONS[k])
        weight = tl.load(weights_ptr + k * weights_stride).to(tl.float32)
        merged += weight * tl.load(kernel_ptrs[k] + offset, mask=at_tap, other=0.0).to(tl.float32)
    tl.store(place, merged.to(merged_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _merge_backward(
    partial_ptr,
    dkernel_ptrs,
    dmerged_ptr,
    weights_ptr,
    kernel_ptrs,
    dkernel_strides,
    dmerged_strides,
    weights_stride,
    kernel_strides,
    entries,
    inputs,
    SIZE: tl.constexpr,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reads dmerged and each kernel and writes each dkernel, each once: the least possible; and one number per kernel
    and program, the program's share of dweights."""
    inside, o, i, row, column = _entries(entries, inputs, SIZE, BLOCK)
    place = dmerged_ptr + o * dmerged_strides[0] + i * dmerged_strides[1]
    place += row * dmerged_strides[2] + column * dmerged_strides[3]
    dmerged = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(len(SIZES)):
        at_tap, offset = _taps(kernel_strides, k, inside, o, i, row, column, SIZE, SIZES[k], DILATIONS[k])
        kernel = tl.load(kernel_ptrs[k] + offset, mask=at_tap, other=0.0).to(tl.float32)
        tl.store(partial_ptr + k * tl.num_programs(0) + tl.program_id(0), tl.sum(dmerged * kernel, 0))
        at_tap, offset = _taps(dkernel_strides, k, inside, o, i, row, column, SIZE, SIZES[k], DILATIONS[k])
        dkernel = tl.load(weights_ptr + k * weights_stride).to(tl.float32) * dmerged
        tl.store(dkernel_ptrs[k] + offset, dkernel.to(dkernel_ptrs[k].dtype.element_ty), mask=at_tap)
