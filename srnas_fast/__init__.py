"""Differentiable architecture search for image restoration that fits and flies on one small card.

``import srnas_fast`` is light: the public names are loaded at first use.
"""

from importlib import import_module

__version__ = "0.7.0"

_HOMES = {"MixedOp": "srnas_fast.mixed", "accelerate": "srnas_fast.mixed"}

__all__ = ["MixedOp", "__version__", "accelerate"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
