"""The radius of ``sparsestmax`` in the course of a search."""

import math

from srnas_fast.errors import InputError


def linear_radius(step: int, steps: int) -> float:
    """The published schedule: from 0 in the first step to 1 in the last one, evenly.

    1 is more than any row needs to be one-hot, and a row of K choices is from ``sqrt((K - 1) / K)`` on. (The published
    ``step / steps`` ends one step short of 1; a search of few steps would not be decided at its end.)

    Args:
        step: from 0; below, as in a warm-up, the radius is 0.
        steps: how many there are; a single one is the last.

    Raises:
        InputError: there are no steps.

    Source: SSN, arXiv 1903.03793.

    >>> [linear_radius(step, 5) for step in (-3, 0, 1, 4, 9)]
    [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    if steps < 1:
        raise InputError(f"steps are {steps}; give how many there are, from 1 up")
    if step < 0:
        return 0.0
    return min(1.0, step / (steps - 1)) if steps > 1 else 1.0


def radius_of(sparsity: float, choices: int) -> float:
    """The radius that is as far in a row of so many choices as in others: 0 none forced out, 1 all but one.

    Evenly between the distance of the simplex's centre from its sides, up to which all choices may live, and that
    from its corners, from which on one is left. One radius for rows of unlike lengths decides the short ones first;
    with ``torch.tensor([radius_of(sparsity, k) for k in lengths])`` all are decided together.

    Args:
        sparsity: from 0 to 1.
        choices: K, from 1 up.

    Raises:
        InputError: one of the two is out of its range.

    Source: a heuristic that stands, unused, in the code of SSN, arXiv 1903.03793.

    >>> [round(radius_of(sparsity, 4), 3) for sparsity in (0, 0.5, 1)], radius_of(1, 1)
    ([0.289, 0.577, 0.866], 0.0)
    """
    if not 0 <= sparsity <= 1 or choices < 1:
        raise InputError(f"sparsity is {sparsity} and choices are {choices}; give 0 to 1, and a number from 1 up")
    if choices == 1:
        return 0.0
    side, corner = math.sqrt(1 / (choices - 1) - 1 / choices), math.sqrt((choices - 1) / choices)
    return (1 - sparsity) * side + sparsity * corner
