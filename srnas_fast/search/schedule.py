"""How a rate falls over a run."""

from collections.abc import Sequence

from srnas_fast.errors import InputError


def halved(rate: float, shares: Sequence[float], now: int, end: int) -> float:
    """The rate, halved once for each share of the way to ``end`` that lies behind.

    >>> [halved(8.0, [0.5, 0.75], now, 4) for now in range(4)]
    [8.0, 8.0, 4.0, 2.0]
    >>> halved(8.0, [0.07], 7, 100)
    4.0
    """
    return rate * 0.5 ** sum(now >= round(share * end, 6) for share in shares)  # 0.07 * 100 is more than 7


def require_shares(name: str, shares: Sequence[float]) -> None:
    """Raise InputError for a share that is not between 0 and 1."""
    for share in shares:
        if not 0 < share < 1:
            raise InputError(f"{name} holds {share}; give shares of the run between 0 and 1, such as 0.2 0.4 0.6")
