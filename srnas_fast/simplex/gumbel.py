"""Gumbel-softmax: weights drawn at random, softmax of noisy logits."""

import math

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.primitives.simplex_project import check_rows


def gumbel_softmax(
    logits: Tensor,
    temperature: float = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
    return_support: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax of the logits plus Gumbel noise, over a temperature; ``hard`` makes the largest weight 1, others 0.

    Hard weights have the gradient of the soft ones (straight-through): it is not zero where the weight is. So their
    support, the entries that matter to values or gradients, is that of the soft weights, and a ``MixedOp`` that gets
    it runs all candidates. To run only the drawn one, give ``support=weights > 0``: right where no gradient of the
    logits is wanted (a step of the network's parameters, an evaluation), and wrong where it is, since what the other
    candidates would have given then counts as zero.

    Args:
        logits: (..., K), floating; float16 and bfloat16 are computed in float32. An entry of -inf is never drawn.
        temperature: above 0; near 0 soft weights become one-hot, and their gradient noisy.
        hard: exactly one-hot rows, 1 with the probabilities ``softmax(logits)``.
        generator: on the device of ``logits``; default: torch's own.
        return_support: whether to return, too, where a weight or its gradient is not zero.

    Returns:
        weights of the shape and type of ``logits``, and if asked for the support, booleans of that shape.

    Raises:
        InputError: logits of another type or shape; a row that holds NaN or +inf, or nothing but -inf; a temperature
            that is not above 0.

    Source: Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712.

    >>> weights, support = gumbel_softmax(torch.zeros(2, 3), hard=True, return_support=True)
    >>> weights.sum(-1), support.all()
    (tensor([1., 1.]), tensor(True))
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature is {temperature}; give a number above 0")
    check_rows(logits)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    waits = torch.empty_like(wide).exponential_(generator=generator)
    noisy = wide - waits.clamp(min=torch.finfo(wide.dtype).tiny).log()
    soft = ((noisy - noisy.detach().amax(-1, keepdim=True)) / temperature).softmax(-1)
    weights = soft
    if hard:
        drawn = torch.zeros_like(soft).scatter(-1, soft.detach().argmax(-1, keepdim=True), 1.0)
        weights = drawn + (soft - soft.detach())  # exactly drawn
    return (weights.to(logits.dtype), soft > 0) if return_support else weights.to(logits.dtype)
