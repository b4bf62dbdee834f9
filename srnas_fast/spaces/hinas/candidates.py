"""The candidate operations by their names: the seven of the paper, and the user's own."""

from collections.abc import Iterable

from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.hinas.operations import CANDIDATES
from srnas_fast.spaces.own import candidate, is_own, require_candidates, short_name

OPERATIONS = {name: make for name, make in CANDIDATES.items() if name != "none"}  # what a derived edge can be


def make(name: str, channels: int, activation: str, affine: bool) -> nn.Module:
    """The candidate of that name; one of the user's own, from a loaded file, is made of the number of channels alone.

    Raises:
        InputError: there is no such candidate, or the user's class fails.

    >>> make("skip_connect", 8, "leaky", affine=True)
    Identity()
    """
    settings = () if is_own(name) else (activation, affine)
    return candidate(name, CANDIDATES)(channels, *settings)


def names_of(candidates: Iterable[str]) -> list[str]:
    """The names by which genotypes know them.

    >>> names_of(["con_c_3x3", "code/my_ops.py:MyBlock"])
    ['con_c_3x3', 'my_ops.py:MyBlock']
    """
    return [short_name(name) for name in candidates]


def require_operations(candidates: list[str]) -> None:
    """Refuse candidates that the user typed if one is unknown or named twice, or if there is none but ``none``.

    Raises:
        InputError: names the fault.

    >>> require_operations(["none"])
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: supernet.candidates is ['none']; give at least one operation that does something
    """
    require_candidates("supernet.candidates", candidates, CANDIDATES)
    if not {*candidates} - {"none"}:
        raise InputError(f"supernet.candidates is {candidates}; give at least one operation that does something")
