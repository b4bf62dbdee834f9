"""Which backend the user forces: the environment variable SRNAS_FAST_BACKEND, looked at anew at each call."""

import os

from srnas_fast.errors import InputError

VARIABLE = "SRNAS_FAST_BACKEND"
BACKENDS = ("reference", "cpu", "triton", "cuda")


def forced() -> str | None:
    """The backend that SRNAS_FAST_BACKEND names; None if it is not set, which means the best available one.

    Raises:
        InputError: it names something else than a backend.

    >>> forced() in (None, "reference", "cpu", "triton", "cuda")
    True
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in BACKENDS:
        raise InputError(f"{VARIABLE} is {name!r}; accepted are {', '.join(BACKENDS)}, or unset it for the best one")
    return name
