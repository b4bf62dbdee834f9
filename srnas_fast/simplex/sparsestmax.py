"""Sparsemax and SparsestMax: weights of which some are exactly zero, up to all but one."""

import torch
from torch import Tensor

from srnas_fast.primitives import simplex_project


def sparsemax(logits: Tensor, return_support: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The nearest point on the simplex for each row of logits: ``sparsestmax`` at radius 0.

    Source: Martins and Astudillo, arXiv 1602.02068.

    >>> sparsemax(torch.tensor([0.9, 0.6, -1.0]), return_support=True)
    (tensor([0.6500, 0.3500, 0.0000]), tensor([ True,  True, False]))
    """
    return sparsestmax(logits, 0.0, return_support)


def sparsestmax(
    logits: Tensor,
    radius: float | Tensor,
    return_support: bool = False,
    as_published: bool = False,
    look: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """The nearest point on the simplex, at least ``radius`` from its centre, for each row of logits.

    With a radius that grows in the course of a search, from 0 (sparsemax) to 1 (every row one-hot), candidates leave
    one by one. One call serves all edges of a supernet, each with its own radius if need be. What it computes in
    ties, and its gradient with the floor near them: :func:`srnas_fast.primitives.simplex_project`.

    Args:
        logits: (..., K), floating; float16 and bfloat16 are computed in float32. An entry of -inf is no choice.
        radius: from 0 up; a number, or a tensor that broadcasts to (...). It gets no gradient.
        return_support: whether to return, too, which weights are not zero. Off the support the gradient is zero as
            well, so that a candidate there need not run: ``MixedOp(...)(x, weights[i], support=support[i])``.
        as_published: with the first radius of the published code, which is larger than the definition's where
            sparsemax makes some weights zero.
        look: whether to look for numbers that are none, which waits for a GPU; without, rows that hold them become NaN.

    Returns:
        weights of the shape and type of ``logits``, and if asked for the support, booleans of that shape.
        Differentiable once.

    Raises:
        InputError: logits of another type or shape; a row that holds NaN or +inf, or nothing but -inf; a radius that
            is negative, infinite or NaN, or does not broadcast. All values are looked at once, together.

    Source: Shao et al., SSN, arXiv 1903.03793; TrilevelNAS, arXiv 2101.06658, weighs paths and operations with it.

    >>> logits = torch.tensor([[0.9, 0.6, -1.0], [0.0, 0.1, 0.2]])
    >>> sparsestmax(logits, 0.6)
    tensor([[0.8109, 0.1891, 0.0000],
            [0.0000, 0.1891, 0.8109]])
    >>> sparsestmax(logits, torch.tensor([0.0, 1.0]), return_support=True)[1]
    tensor([[ True,  True, False],
            [False, False,  True]])
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    weights = simplex_project(wide, radius, as_published, look)
    return (weights.to(logits.dtype), weights > 0) if return_support else weights.to(logits.dtype)
