"""What each of several candidate operations costs."""

from collections.abc import Sequence

import torch
from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.metrics.cost import count_parameters, multi_adds


def candidate_costs(candidates: Sequence[nn.Module], by: str, shape: Sequence[int] | None = None) -> list[int]:
    """The cost of each candidate: its parameters, or its Multi-Adds for an input of ``shape``.

    Args:
        candidates: the candidate operations of one position.
        by: params or madds.
        shape: (N, C, H, W) of the input; needed for madds.

    Raises:
        InputError: no candidates, another ``by``, madds without a shape, or a candidate that cannot take the shape.

    >>> candidates = [nn.Identity(), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)]
    >>> candidate_costs(candidates, "params")
    [0, 64, 576]
    >>> candidate_costs(candidates, "madds", (1, 8, 10, 10))
    [0, 6400, 57600]
    """
    if not len(candidates):
        raise InputError("no candidates to count; give at least one")
    if by == "params":
        return [count_parameters(candidate) for candidate in candidates]
    if by != "madds":
        raise InputError(f"costs by {by!r}; give params or madds")
    if shape is None:
        raise InputError("Multi-Adds depend on the size of the input; give its shape, (N, C, H, W)")
    costs = []
    for candidate in candidates:
        like = next(candidate.parameters(), torch.zeros(()))  # its device and number type
        try:
            costs.append(multi_adds(candidate, like.new_zeros(*shape)))
        except RuntimeError as error:
            raise InputError(f"{candidate} cannot take an input of shape {tuple(shape)}: {error}") from None
    return costs
