"""The primitives' operation counts for torch's FLOP counter, without importing that: it imports Triton where it can."""

import sys
from collections.abc import Callable

_COUNTER = "torch.utils.flop_counter"
_waiting: list[tuple[object, Callable[..., int]]] = []


def register_flop_formula(op: object) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator like ``torch.utils.flop_counter.register_flop_formula``, which may have to wait for that module."""

    def waits(formula: Callable[..., int]) -> Callable[..., int]:
        _waiting.append((op, formula))
        if _COUNTER in sys.modules:
            hand_over()
        return formula

    return waits


def hand_over() -> None:
    """Give torch's counter all formulas that still wait; call it before counting the primitives' operations.

    >>> from torch.utils.flop_counter import FlopCounterMode
    >>> import torch
    >>> from srnas_fast.primitives import separable_sum
    >>> hand_over()
    >>> with FlopCounterMode(display=False) as counter:
    ...     y = separable_sum(torch.ones(1, 2, 3, 3), [torch.ones(2, 1, 3, 3)], [torch.ones(4, 2)], None, None, [1])
    >>> counter.get_total_flops()  # twice nine pixels times 2 * 9 + 4 * 2
    468
    """
    from torch.utils.flop_counter import register_flop_formula as register

    while _waiting:
        op, formula = _waiting.pop()
        register(op)(formula)
