"""Softmax over the legal entries of each row."""

import torch
from torch import Tensor

from srnas_fast.errors import InputError


def masked_softmax(logits: Tensor, legal: Tensor | None = None) -> Tensor:
    """Softmax over the legal entries of each row; illegal ones get weight and gradient exactly zero.

    Args:
        logits: (..., K), float32 or float64; an entry of -inf counts as illegal.
        legal: boolean, broadcastable to ``logits``: where a choice exists. None: everywhere.

    Returns:
        weights of the shape and dtype of ``logits``, each row non-negative and summing to 1.

    Raises:
        InputError: wrong dtype or shape, a NaN or +inf logit, or a row without a legal entry.

    >>> masked_softmax(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([True, False, True]))
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    if logits.dtype not in (torch.float32, torch.float64) or logits.ndim == 0:
        raise InputError(
            f"logits are {logits.dtype} of shape {tuple(logits.shape)}; give rows (..., K) in float32 or float64"
        )
    broken = (logits.isnan() | logits.isposinf()).any(-1)
    if broken.any():
        raise InputError(
            f"row {_first(broken)} of logits of shape {tuple(logits.shape)} holds NaN or +inf; the search "
            "has diverged: lower the architecture's learning rate or go back to an earlier checkpoint"
        )
    choices = ~logits.isneginf()
    if legal is not None:
        _check_mask(legal, logits)
        choices = choices & legal
    stuck = ~choices.any(-1)
    if stuck.any():
        raise InputError(
            f"row {_first(stuck)} of logits of shape {tuple(logits.shape)} has no legal entry; every row needs one"
        )
    return logits.masked_fill(~choices, float("-inf")).softmax(-1)


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


def _first(rows: Tensor) -> tuple[int, ...]:
    """Index of the first true entry."""
    return tuple(rows.nonzero()[0].tolist())
