"""Rows of logits to weights on the probability simplex, and back: one program per row, in float64."""

import triton
import triton.language as tl
from torch import Tensor

# These also stand in srnas_fast/primitives/simplex_project.py and in csrc/cpu/simplex_project.cpp.
ROUNDING = tl.constexpr(1e-6)
FLOOR = tl.constexpr(1e-4)
OUTSIDE = tl.constexpr(-2.0)


def simplex_project(weights: Tensor, logits: Tensor, radius: Tensor, as_published: bool) -> None:
    """Each row's nearest point on the simplex, at least the radius away from its centre.

    Args:
        weights: (..., K), contiguous, of the type of ``logits``; written. NaN for a row that holds NaN or +inf, or
            nothing but -inf.
        logits: (..., K), contiguous, float32 or float64.
        radius: () or (...), contiguous, float64.
        as_published: with the first radius of the published code.
    """
    _run(_forward, (weights,), logits, radius, as_published)


def simplex_project_backward(
    dlogits: Tensor, dweights: Tensor, logits: Tensor, radius: Tensor, as_published: bool
) -> None:
    """The gradient of the logits.

    Args:
        dlogits: (..., K), contiguous, of the type of ``logits``; written.
        dweights: (..., K), contiguous, of a floating type.
        logits, radius, as_published: as given to ``simplex_project``.
    """
    _run(_backward, (dlogits, dweights), logits, radius, as_published)


def _run(kernel, tensors: tuple[Tensor, ...], logits: Tensor, radius: Tensor, as_published: bool) -> None:
    choices = logits.shape[-1]
    if not logits.numel():
        return
    block, lines, warps = _blocks(choices)
    kernel[(logits.numel() // choices,)](
        *tensors,
        logits,
        radius,
        choices,
        1 if radius.ndim else 0,
        AS_PUBLISHED=as_published,
        BLOCK=block,
        LINES=lines,
        num_warps=warps,
        # A product that is not rounded before it is added to would leave rests where the weight is zero.
        enable_fp_fusion=False,
    )


def _blocks(choices: int) -> tuple[int, int, int]:
    """(entries, lines, warps) of a program: all entries of a row, and so many prefixes of it at a time that the table
    of one by the other has 4096 numbers at most, and a warp at most 512 of them, which fit the registers."""
    block = triton.next_power_of_2(choices)
    lines = min(block, max(1, 4096 // block))
    return block, lines, min(8, max(1, block * lines // 512))


@triton.jit
def _support(below, choices, square, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """(size, span, mean, norm) of the longest prefix of the falling row whose lowest weight is positive.

    Nothing is sorted: an entry's prefix is all that is above it, and what is level with it up to it. Mean and norm
    are those of its entries over the span, the distance from the first to the last one.
    """
    k = tl.arange(0, BLOCK)
    size = tl.full((), 0, tl.float64)
    span = tl.full((), 0, tl.float64)
    mean = tl.full((), 0, tl.float64)
    norm = tl.full((), 0, tl.float64)
    for start in range(0, BLOCK, LINES):
        line = start + tl.arange(0, LINES)
        last = tl.sum(tl.where(k[None, :] == line[:, None], below[None, :], 0.0), 1)
        above = below[None, :] > last[:, None]
        level = below[None, :] == last[:, None]
        inside = above | (level & (k[None, :] <= line[:, None]))
        count = tl.sum(inside.to(tl.float64), 1)
        spans = -last
        unit = tl.where(spans > 0, spans, 1.0)
        scaled = tl.where(inside, below[None, :] / unit[:, None], 0.0)
        means = tl.sum(scaled, 1) / count
        away = tl.where(inside, scaled - means[:, None], 0.0)
        norms = tl.sqrt(tl.sum(away * away, 1))
        radii = tl.sqrt(tl.maximum(square - (1 / count - 1 / choices), 0.0))
        slopes = tl.maximum(spans, radii / tl.where(spans > 0, norms, 1.0))
        lowest = tl.where(spans > 0, -1.0 - means, 0.0)
        longest = tl.max(tl.where(1 / count + slopes * lowest > 0, count, 0.0), 0)
        if longest > size:
            found = count == longest
            size = longest
            span = tl.sum(tl.where(found, spans, 0.0), 0)
            mean = tl.sum(tl.where(found, means, 0.0), 0)
            norm = tl.sum(tl.where(found, norms, 0.0), 0)
    return size, span, mean, norm


@triton.jit
def _solve(
    logits_ptr,
    radius_ptr,
    choices,
    radius_step,
    AS_PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """(weights, n, gain, broken) of the program's row: n is 0 where the radius does not bind; broken: no row of logits.

    Places beyond the row count as entries of -inf, which are no choices.
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    z = tl.load(logits_ptr + row * choices + k, mask=k < choices, other=float("-inf")).to(tl.float64)
    dtype = logits_ptr.dtype.element_ty
    broken = tl.max((z != z).to(tl.int32), 0) > 0
    broken = broken | (tl.abs(tl.max(tl.where(z != z, 0.0, z), 0)) == float("inf"))
    z = tl.where(broken, 0.0, z)
    legal = tl.sum((tl.abs(z) != float("inf")).to(tl.float64), 0)
    below = tl.maximum(z - tl.max(z, 0), OUTSIDE)

    radius = tl.minimum(tl.load(radius_ptr + row * radius_step), 1.0)
    square = radius * radius
    if AS_PUBLISHED:
        # Without a radius the support is that of sparsemax.
        size, span, mean, norm = _support(below, legal, 0.0, BLOCK, LINES)
        square += 1 / size - 1 / legal
    m, span, mean, norm = _support(below, legal, square, BLOCK, LINES)
    r = tl.sqrt(tl.maximum(square - (1 / m - 1 / legal), 0.0))
    tie = span == 0
    norm = tl.where(tie, 1.0, norm)
    slope = tl.maximum(span, r / norm)

    largest = below == 0
    first = k == tl.min(tl.where(largest, k, BLOCK), 0)
    away = tl.where(tie, 0.0, below / tl.where(tie, 1.0, span) - mean)
    weights = tl.where(tie, largest.to(tl.float64) / m, tl.maximum(1 / m + slope * away, 0.0))
    # In a tie of the largest the first one leads.
    lead = tl.where(tie & (m > 1), r / tl.sqrt(tl.maximum(m * (m - 1), 1.0)), 0.0)
    weights += tl.where(largest, lead * (m * first.to(tl.float64) - 1), 0.0)
    corner = square >= (1 - 1 / legal) * (1 - ROUNDING)
    weights = tl.where(corner, first.to(tl.float64), tl.maximum(weights, 0.0))
    weights = weights.to(dtype).to(tl.float64)  # what the caller sees decides who is alive

    distance = tl.where(tie, 0.0, span * norm)
    binds = distance < r
    n = tl.where(binds, tl.where(weights > 0, away / norm, 0.0), 0.0)
    floor = tl.full((), FLOOR, tl.float64)  # as a bare number it would be rounded to float32 first
    gain = tl.where(binds, tl.maximum(r / tl.maximum(distance, floor), 1.0), 1.0)
    return weights, n, gain, broken


@triton.jit
def _forward(
    weights_ptr,
    logits_ptr,
    radius_ptr,
    choices,
    radius_step,
    AS_PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """Reads the logits and the radii and writes the weights, each once: the least possible."""
    k = tl.arange(0, BLOCK)
    weights, _, _, broken = _solve(logits_ptr, radius_ptr, choices, radius_step, AS_PUBLISHED, BLOCK, LINES)
    weights = tl.where(broken, float("nan"), weights)
    row = tl.program_id(0).to(tl.int64)
    tl.store(weights_ptr + row * choices + k, weights.to(weights_ptr.dtype.element_ty), mask=k < choices)


@triton.jit
def _backward(
    dlogits_ptr,
    dweights_ptr,
    logits_ptr,
    radius_ptr,
    choices,
    radius_step,
    AS_PUBLISHED: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """Reads the logits, the radii and dweights and writes dlogits, each once: the least possible.

    The row is solved again, so that nothing is kept between the two passes.
    """
    k = tl.arange(0, BLOCK)
    weights, n, gain, broken = _solve(logits_ptr, radius_ptr, choices, radius_step, AS_PUBLISHED, BLOCK, LINES)
    alive = weights > 0
    place = tl.program_id(0).to(tl.int64) * choices + k
    g = tl.where(alive, tl.load(dweights_ptr + place, mask=k < choices, other=0.0).to(tl.float64), 0.0)
    g = tl.where(alive, g - tl.sum(g, 0) / tl.sum(alive.to(tl.float64), 0), 0.0)
    dlogits = gain * (g - n * tl.sum(n * g, 0))
    dlogits = tl.where(broken, float("nan"), dlogits)
    tl.store(dlogits_ptr + place, dlogits.to(dlogits_ptr.dtype.element_ty), mask=k < choices)
