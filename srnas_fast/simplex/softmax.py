"""Softmax, and softmax over the legal entries of each row."""

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.primitives.simplex_project import check_rows


def softmax(logits: Tensor, return_support: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax along the last dimension.

    Args:
        logits: (..., K), floating; float16 and bfloat16 are computed in float32. An entry of -inf is no choice.
        return_support: whether to return, too, which weights are not zero.

    Returns:
        weights of the shape and type of ``logits``, and if asked for the support, booleans of that shape: all but the
        entries of -inf and what underflows to zero, where the gradient is zero as well.

    Raises:
        InputError: logits of another type or shape; a row that holds NaN or +inf, or nothing but -inf.

    Equivalent to ``logits.softmax(-1)``.

    >>> softmax(torch.tensor([0.0, 0.0, -torch.inf]), return_support=True)
    (tensor([0.5000, 0.5000, 0.0000]), tensor([ True,  True, False]))
    """
    check_rows(logits)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    weights = weights.to(logits.dtype)
    return (weights, weights > 0) if return_support else weights


def masked_softmax(logits: Tensor, legal: Tensor | None = None) -> Tensor:
    """Softmax over the legal entries of each row; illegal ones get weight and gradient exactly zero.

    Args:
        logits: (..., K), floating; an entry of -inf counts as illegal.
        legal: boolean, broadcastable to ``logits``: where a choice exists. None: everywhere. What stands in an
            illegal entry does not matter.

    Returns:
        weights of the shape and dtype of ``logits``, each row non-negative and summing to 1.

    Raises:
        InputError: wrong dtype or shape, a NaN or +inf logit, or a row without a legal entry.

    >>> masked_softmax(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([True, False, True]))
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    if legal is not None:
        _check_mask(legal, logits)
        logits = logits.masked_fill(~legal, float("-inf"))
    return softmax(logits)


def _check_mask(legal: Tensor, logits: Tensor) -> None:
    try:
        fits = legal.dtype == torch.bool and legal.expand(logits.shape) is not None
    except RuntimeError:  # expand: not broadcastable
        fits = False
    if not fits:
        raise InputError(
            f"legal is {legal.dtype} of shape {tuple(legal.shape)}; give booleans that broadcast to the "
            f"logits' shape {tuple(logits.shape)}"
        )
