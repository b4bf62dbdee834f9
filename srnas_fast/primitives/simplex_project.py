"""Rows of logits to weights on the probability simplex: sparsemax, and sparsestmax where a radius is above 0."""

import math

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call, has_values

# These also stand in csrc/cpu/simplex_project.cpp.
ROUNDING = 1e-6  # relative: a squared radius so close to that of a corner makes the row one-hot, also from float32
FLOOR = 1e-4  # of the distance d in the gradient's gain r / d
_TYPES = (torch.float32, torch.float64)
OUTSIDE = -2.0  # this far below its row's largest, a logit has no weight at any radius: it stands for all lower ones


def simplex_project_reference(logits: Tensor, radius: float | Tensor = 0.0, as_published: bool = False) -> Tensor:
    """What ``simplex_project`` computes, in plain torch, without a look at any value."""
    return _solve(logits, radius, as_published)[0]


def simplex_project(
    logits: Tensor, radius: float | Tensor = 0.0, as_published: bool = False, look: bool = True
) -> Tensor:
    """For each row of logits the nearest point on the simplex that is at least ``radius`` away from its centre.

    ``argmin ||p - logits||^2`` over ``p >= 0, sum(p) = 1, ||p - 1/K||_2 >= radius``: sparsemax at radius 0,
    SparsestMax above, one-hot rows from ``sqrt((K - 1) / K)`` on, also where no point is as far out as the radius.
    Weights keep the order of the logits and depend on their differences alone.

    Where the largest logits are equal, they share their weight evenly as long as the radius allows the centre of
    their face. Beyond it the nearest point is not unique; then the first of them takes from the others evenly, until
    it has everything: what the nearest point tends to when the first one is raised by less and less.

    The gradient on the support S, of m entries, is that of sparsemax, P = I - 1/m, where the radius does not bind.
    Where it binds, it is ``(r / d) (P - n n^T)`` with ``d = ||P logits||``, ``n = P logits / d`` and r the radius in
    the plane of the face, ``r^2 = radius^2 - (1/m - 1/K)``: the product over the rounds of the published recursion is
    the last round's alone. The gain r / d is not bounded near ties; it is computed with d >= 1e-4, and is never below
    1, where it begins when the radius begins to bind. (Logits come in units in which a lead of 1 decides, so that the
    floor needs no scale.) In an exact tie n is 0, so that the tied logits can part. Off the support, and for one-hot
    rows, the gradient is exactly zero, and so it is where the radius binds a support of two.

    Args:
        logits: (..., K), float32 or float64. An entry of -inf is no choice: its weight and gradient are zero, and its
            row is projected as if it had one entry less.
        radius: from 0 up; a number, or a tensor that broadcasts to (...). It gets no gradient.
        as_published: with the published code's first radius, which does not know of the entries that sparsemax had
            made zero: ``radius^2 + 1/m - 1/K`` in place of ``radius^2``, m the size of sparsemax's support. Sparser.
        look: whether to look for numbers that are none, which waits for a GPU; without, rows that hold them become NaN.

    Returns:
        weights of the shape and type of ``logits``, contiguous, computed in float64. Differentiable once.

    Raises:
        InputError: logits of another type or shape; a row that holds NaN or +inf, or nothing but -inf; a radius that
            is negative, infinite or NaN, or does not broadcast. All values are looked at once, together.

    Source: sparsemax is arXiv 1602.02068; SparsestMax is SSN, arXiv 1903.03793.

    >>> logits = torch.tensor([0.9, 0.6, -1.0])
    >>> simplex_project(logits), simplex_project(logits, 0.6), simplex_project(logits, 0.6, as_published=True)
    (tensor([0.6500, 0.3500, 0.0000]), tensor([0.8109, 0.1891, 0.0000]), tensor([0.9243, 0.0757, 0.0000]))
    """
    if logits.dtype not in _TYPES:
        raise InputError(f"logits are {logits.dtype}; give float32 or float64")
    check_rows(logits, radius, look)
    if isinstance(radius, Tensor):
        radius = _of_rows(radius, logits).contiguous()
    else:
        radius = torch.full((), radius, dtype=torch.float64, device=logits.device)
    return call(_simplex_project, logits, radius, as_published)


def check_rows(logits: Tensor, radius: float | Tensor = 0.0, look: bool = True) -> None:
    """Refuses logits that are no rows of choices and radii that are none, with one look at all values there are.

    Args:
        logits: (..., K), of a floating type.
        radius: a number, or a tensor that broadcasts to (...).
        look: whether to look at values at all; where a CUDA graph is captured, there are none to see.

    Raises:
        InputError: as ``simplex_project``.
    """
    shape = tuple(logits.shape)
    if not logits.dtype.is_floating_point or logits.ndim == 0:
        raise InputError(f"logits are {logits.dtype} of shape {shape}; give floating rows (..., K)")
    if shape[-1] == 0:
        raise InputError(f"logits of shape {shape} have no legal entry in a row; give rows (..., K), K from 1 up")
    radii = _of_rows(radius, logits) if isinstance(radius, Tensor) else None
    if radii is None and not (math.isfinite(radius) and radius >= 0):
        raise InputError(f"radius is {radius}; give a number from 0 up")
    if not look or not has_values(logits) or _is_captured(logits):
        return
    # NaN and +inf are their row's maximum, and so is -inf where a row has nothing else.
    largest = logits.detach().amax(-1)
    good = largest.isfinite()
    if radii is not None:
        good = good & radii.isfinite() & (radii >= 0)
    if good.all():
        return
    row = tuple((~good).nonzero()[0].tolist())
    if largest[row].isneginf():
        raise InputError(
            f"row {row} of logits of shape {shape} has no legal entry, none above -inf; every row needs one"
        )
    if largest[row].isfinite():
        raise InputError(f"radius of row {row} is {radii[row].item()}; give numbers from 0 up")
    raise InputError(
        f"row {row} of logits of shape {shape} holds NaN or +inf; the search has diverged: lower the architecture's "
        "learning rate or go back to an earlier checkpoint"
    )


def _is_captured(tensor: Tensor) -> bool:
    """Whether what is launched on the tensor's device is recorded for a CUDA graph and not executed."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _of_rows(radius: Tensor, logits: Tensor) -> Tensor:
    """The radius of each row; raises InputError."""
    rows = tuple(logits.shape[:-1])
    try:
        return radius.detach().to(logits.device, torch.float64).expand(rows)
    except RuntimeError:  # expand: not broadcastable
        raise InputError(
            f"radius is of shape {tuple(radius.shape)}; give a number, or a tensor that broadcasts to the rows {rows} "
            "of the logits"
        ) from None


def _solve(logits: Tensor, radius: float | Tensor, as_published: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, n, gain): weights like logits, the others in float64; n is 0 where the radius does not bind.

    No recursion: on the m largest logits the nearest point is ``1/m + max(1, r / d) P logits``, with r and d as in
    ``simplex_project``, and the support is the largest m for which that is positive. Of larger m none is: the share
    of squares in the squared sum of ``logits - threshold`` grows with the threshold, so that one which reaches the
    radius lies too high for them. Written with the logits' distances from their largest over the range of those
    on the support, so that neither huge nor tiny logits leave the numbers' range.
    """
    z = logits.double()
    choices = z.isfinite().sum(-1, keepdim=True, dtype=torch.float64)
    below = (z - z.amax(-1, keepdim=True)).clamp(min=OUTSIDE)
    # One line per size m of the support: (..., m, entries).
    entries = below.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, dtype=torch.float64, device=z.device)
    spans = -entries
    inside = torch.ones(z.shape[-1:] * 2, dtype=torch.bool, device=z.device).tril()
    unit = torch.where(spans > 0, spans, 1.0)[..., :, None]
    scaled = (entries[..., None, :] / unit).masked_fill(~inside, 0.0)
    means = scaled.sum(-1) / count
    norms = (scaled - means[..., None]).masked_fill(~inside, 0.0).norm(dim=-1)
    lowest = torch.where(spans > 0, -1.0 - means, 0.0)  # each line's last entry, from the mean

    def largest(slopes: Tensor) -> Tensor:
        """The largest m whose lowest weight is positive."""
        return ((1 / count + slopes * lowest > 0) * count).amax(-1, keepdim=True)

    square = torch.as_tensor(radius, dtype=torch.float64, device=z.device).clamp(max=1).square()[..., None]
    if as_published:
        square = square + 1 / largest(spans) - 1 / choices
    radii = (square - (1 / count - 1 / choices)).clamp(min=0).sqrt()  # in the plane of the face
    slopes = torch.maximum(spans, radii / torch.where(spans > 0, norms, 1.0))
    size = (largest(slopes).long() - 1).clamp(min=0)
    m, span, mean, norm, slope, r = (
        t.gather(-1, size) for t in torch.broadcast_tensors(count, spans, means, norms, slopes, radii)
    )

    tie = span == 0
    first = torch.zeros_like(z).scatter(-1, below.argmax(-1, keepdim=True), 1.0)
    away = torch.where(tie, 0.0, below / torch.where(tie, 1.0, span) - mean)
    weights = torch.where(tie, (below == 0) / m, (1 / m + slope * away).clamp(min=0))
    lead = torch.where(tie & (m > 1), r / (m * (m - 1)).clamp(min=1).sqrt(), 0.0)
    weights = weights + torch.where(below == 0, lead * (m * first - 1), 0.0)
    bound = (1 - 1 / choices) * (1 - ROUNDING)
    weights = torch.where(square >= bound, first, weights.clamp(min=0)).to(logits.dtype)
    # Nobody may have looked at the logits: then what is no row of them shows in the result.
    weights = weights.masked_fill(~z.amax(-1, keepdim=True).isfinite(), torch.nan)

    alive = weights > 0
    distance = span * norm
    binds = distance < r
    n = torch.where(alive & binds & ~tie, away / torch.where(tie, 1.0, norm), 0.0)
    gain = torch.where(binds, (r / distance.clamp(min=FLOOR)).clamp(min=1), 1.0)
    return weights, n, gain


@torch.library.custom_op("srnas_fast::simplex_project", mutates_args=())
def _simplex_project(logits: Tensor, radius: Tensor, as_published: bool) -> Tensor:
    logits = logits.contiguous()
    weights = torch.empty_like(logits)
    kernel = triton_kernel("simplex_project", logits, types=_TYPES)
    if kernel:
        kernel(weights, logits, radius, as_published)
        return weights
    compiled = compiled_kernel("simplex_project", logits)
    if compiled is None:
        return simplex_project_reference(logits, radius, as_published)
    _run(compiled, logits, radius, as_published, weights.data_ptr())
    return weights


@_simplex_project.register_fake
def _(logits, radius, as_published):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op("srnas_fast::simplex_project_backward", mutates_args=())
def _simplex_project_backward(dweights: Tensor, logits: Tensor, radius: Tensor, as_published: bool) -> Tensor:
    dweights, logits = dweights.to(logits.dtype).contiguous(), logits.contiguous()
    dlogits = torch.empty_like(logits)
    kernel = triton_kernel("simplex_project_backward", dweights, logits, types=_TYPES)
    if kernel:
        kernel(dlogits, dweights, logits, radius, as_published)
        return dlogits
    compiled = compiled_kernel("simplex_project_backward", dweights, logits)
    if compiled is None:
        return _backward_reference(dweights, logits, radius, as_published)
    _run(compiled, logits, radius, as_published, dweights.data_ptr(), dlogits.data_ptr())
    return dlogits


def _backward_reference(dweights: Tensor, logits: Tensor, radius: Tensor, as_published: bool) -> Tensor:
    weights, n, gain = _solve(logits, radius, as_published)
    alive = weights > 0
    g = dweights.double().masked_fill(~alive, 0.0)
    g = (g - g.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)).masked_fill(~alive, 0.0)
    dlogits = gain * (g - n * (n * g).sum(-1, keepdim=True))
    return dlogits.masked_fill(weights.isnan(), torch.nan).to(logits.dtype)


@_simplex_project_backward.register_fake
def _(dweights, logits, radius, as_published):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _run(compiled, logits: Tensor, radius: Tensor, as_published: bool, *addresses: int) -> None:
    """Calls compiled code: one radius for all rows, or one for each."""
    compiled(
        [logits.shape[:-1].numel(), logits.shape[-1], 1 if radius.ndim else 0],
        logits.data_ptr(),
        radius.data_ptr(),
        as_published,
        *addresses,
    )


def _save(ctx, inputs, output) -> None:
    logits, radius, ctx.as_published = inputs
    ctx.save_for_backward(logits, radius)


def _backward(ctx, dweights):
    return call(_simplex_project_backward, dweights, *ctx.saved_tensors, ctx.as_published), None, None


_simplex_project.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _simplex_project.register_autocast(_device, torch.float32)
