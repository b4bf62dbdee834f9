"""The one exception for what a user can mend, and the checks of numbers that raise it."""

import math
from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it, what is accepted and what to do.

    The command line prints it as one line and exits with status 2, without a traceback.

    >>> from srnas_fast.errors import InputError
    >>> raise InputError("patch is 0 pixels; give a whole number from 1 up")
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: patch is 0 pixels; give a whole number from 1 up
    """


def require_whole(settings: Any, group: str, **least: int) -> None:
    """Refuse a field of a configuration that is no whole number, or below its least one.

    Args:
        settings: has the fields.
        group: what stands before the field's name on the command line, with its dot, or "".
        least: field -> least value.

    Raises:
        InputError: names the field, its value and what is accepted.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < bound:
            raise InputError(f"{group}{name} is {value!r}; give a whole number from {bound} up")


def require_number(settings: Any, group: str, above: list[str], least: list[str]) -> None:
    """Refuse fields that are not finite, not above 0 (``above``) or below 0 (``least``); raises InputError."""
    for name in above + least:
        value = getattr(settings, name)
        if not (math.isfinite(value) and (value > 0 if name in above else value >= 0)):
            accepted = "above 0" if name in above else "from 0 up"
            raise InputError(f"{group}{name} is {value}; give a number {accepted}")
