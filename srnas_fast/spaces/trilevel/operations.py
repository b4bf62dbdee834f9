"""The four candidate operations of TrilevelNAS, of any width: no batch norm, no bias, a ReLU at the end.

Two forms of them stand in the code that they come from. In the supernet's, a block's shortcut is always a convolution,
and the hidden channels of ``dwsblock`` are four times the supernet's width, whatever its input. In the derived one, a
shortcut that keeps the number of channels is the identity, and the hidden channels are four times the input's.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.metrics.candidates import candidate_costs
from srnas_fast.spaces.own import candidate, is_own, require_candidates, short_name

EXPANSION = 4  # of dwsblock
WIDTHS = (3, 4, 5, 7, 8)  # eighths of the full width: of 64 channels 24, 32, 40, 56, 64, as published


class Form(NamedTuple):
    """Which form a candidate has: what tells it from the derived one.

    ``hidden``: channels inside dwsblock; 0: four times those of its input. ``shortcut``: whether a shortcut is a
    convolution also where it could be the identity.
    """

    hidden: int = 0
    shortcut: bool = False


DERIVED = Form()


def supernet_form(width: int) -> Form:
    """That of a supernet's candidates.

    >>> supernet_form(64)
    Form(hidden=256, shortcut=True)
    """
    return Form(EXPANSION * width, shortcut=True)


def channels_of(width: int) -> list[int]:
    """The widths that a position chooses from.

    >>> channels_of(64)
    [24, 32, 40, 56, 64]
    """
    return [eighths * width // 8 for eighths in WIDTHS]


class Block(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class FullWidth(nn.Module):
    """A module of the user's own, which keeps the number of channels, between others than it was made of.

    Its input is filled up with channels of zeros, and the first channels of its result are kept.

    Args:
        module: keeps the shape of its input.
        width: channels that it was made of.
        outputs: of its channels that are kept.

    >>> FullWidth(nn.Identity(), 8, 5)(torch.rand(1, 3, 2, 2)).shape
    torch.Size([1, 5, 2, 2])
    """

    def __init__(self, module: nn.Module, width: int, outputs: int):
        super().__init__()
        self.module, self.width = module, width
        # Its rows are the channels that are kept; a parameter, as kernels are, so that they are narrowed together.
        self.window = nn.Parameter(torch.empty(outputs, 0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(F.pad(x, (0, 0, 0, 0, 0, self.width - x.shape[1])))[:, : self.window.shape[0]]


def _conv(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


def _shortcut(inputs: int, outputs: int, form: Form) -> nn.Module:
    return _conv(inputs, outputs, 1) if form.shortcut or inputs != outputs else nn.Identity()


def _skip(inputs: int, outputs: int, form: Form) -> nn.Module:
    return nn.Sequential(_conv(inputs, outputs, 1), nn.ReLU())


def _conv3x3(inputs: int, outputs: int, form: Form) -> nn.Module:
    return nn.Sequential(_conv(inputs, outputs, 3), nn.ReLU())


def _residual(inputs: int, outputs: int, form: Form) -> nn.Module:
    body = nn.Sequential(_conv(inputs, outputs, 3), nn.ReLU(), _conv(outputs, outputs, 3))
    return Block(body, _shortcut(inputs, outputs, form))


def _dwsblock(inputs: int, outputs: int, form: Form) -> nn.Module:
    hidden = form.hidden or EXPANSION * inputs
    body = nn.Sequential(
        _conv(inputs, hidden, 1), nn.ReLU(), _conv(hidden, hidden, 3, hidden), nn.ReLU(), _conv(hidden, outputs, 1)
    )
    return Block(body, _shortcut(inputs, outputs, form))


# In the order of alpha's columns. Each takes (inputs, outputs, form).
CANDIDATES = {"skip": _skip, "conv3x3": _conv3x3, "residual": _residual, "dwsblock": _dwsblock}

# The kernels of a superkernel whose first outputs, and whose first inputs, a narrower one is made of: True, or False
# where it keeps them all; and whether its inputs are the outputs of the kernel before.
_ENDS, _INNER = (True, True, False), (True, True, True)
_SLICES = {
    "skip": {"0": _ENDS},
    "conv3x3": {"0": _ENDS},
    "residual": {"body.0": _ENDS, "body.2": _INNER, "shortcut": _ENDS},
    "dwsblock": {"body.0": (False, True, False), "body.4": (True, False, False), "shortcut": _ENDS},
}


def made(name: str, inputs: int, outputs: int, form: Form, width: int) -> nn.Module:
    """A candidate by its name: one of the four, or a class of the user's own from a loaded file.

    Args:
        name: of the candidate.
        inputs, outputs: its channels.
        form: of the four.
        width: channels of which one of the user's own is made, whatever it stands between.

    Raises:
        InputError: there is no such candidate, or the user's class fails.

    >>> sum(p.numel() for p in made("dwsblock", 64, 24, DERIVED, 64).parameters())
    26368
    """
    make = candidate(short_name(name), CANDIDATES)
    return FullWidth(make(width), width, outputs) if is_own(name) else make(inputs, outputs, form)


def narrowed(name: str, op: nn.Module, inputs: int, outputs: int, share: Tensor | None = None) -> dict[str, Tensor]:
    """What stands in for the kernels of a candidate in the supernet's form where it is narrower: their first channels.

    Args:
        name: of the candidate.
        op: the candidate, of full width.
        inputs, outputs: channels of the narrower one.
        share: (outputs,) what the hidden channels of ``residual`` are multiplied with, as its result will be; None: 1.

    Returns:
        tensors by the names of parameters; views, where nothing is multiplied. Empty if the candidate is not narrower.

    >>> op = made("residual", 8, 8, supernet_form(8), 8)
    >>> {name: tuple(kernel.shape) for name, kernel in narrowed("residual", op, 3, 5).items()}
    {'body.0.weight': (5, 3, 3, 3), 'body.2.weight': (5, 5, 3, 3), 'shortcut.weight': (5, 3, 1, 1)}
    """
    if is_own(name):
        return {"window": op.window[:outputs]} if outputs < op.window.shape[0] else {}
    found = {}
    for place, (rows, columns, inner) in _SLICES[name].items():
        kernel = whole = op.get_parameter(f"{place}.weight")
        if rows and outputs < kernel.shape[0]:
            kernel = kernel[:outputs]
        read = outputs if inner else inputs
        if columns and read < kernel.shape[1]:
            kernel = kernel[:, :read]
        if share is not None and name == "residual" and place == "body.0":
            kernel = share.view(-1, 1, 1, 1) * kernel
        if kernel is not whole:
            found[f"{place}.weight"] = kernel
    return found


def parameters_of(name: str, inputs: int, outputs: int, form: Form = DERIVED) -> int:
    """The parameters of one of the four, which are its Multi-Adds for a pixel, too.

    >>> parameters_of("residual", 64, 24), parameters_of("residual", 24, 24, supernet_form(64))
    (20544, 10944)
    """
    ends = inputs * outputs
    shortcut = ends if form.shortcut or inputs != outputs else 0
    if name == "dwsblock":
        hidden = form.hidden or EXPANSION * inputs
        return hidden * (inputs + 9 + outputs) + shortcut
    return {"skip": ends, "conv3x3": 9 * ends, "residual": 9 * (ends + outputs**2) + shortcut}[name]


def costs_of(name: str, width: int, by: str) -> list[list[int]]:
    """The cost of a candidate in the derived form between all widths: a row for each input, a column for each output.

    Args:
        name: of the candidate; one of the user's own costs the same everywhere.
        width: the full one.
        by: params, or madds for one pixel.
    """
    channels = channels_of(width)
    if not is_own(name):
        return [[parameters_of(name, inputs, outputs) for outputs in channels] for inputs in channels]
    module, side = candidate(short_name(name), CANDIDATES)(width), 32
    (cost,) = candidate_costs([module], by, (1, width, side, side))
    return [[cost if by == "params" else round(cost / side**2)] * len(channels) for _ in channels]


def require_operations(names: Iterable[str]) -> None:
    """Refuse candidates that a user typed if one is unknown or named twice; raises InputError."""
    require_candidates("supernet.candidates", names, CANDIDATES)


def require_width(group: str, width: int) -> None:
    """Refuse a width of which there are no eighths; raises InputError."""
    if width % 8:
        raise InputError(f"{group}width is {width}; give a multiple of 8, of which 3, 4, 5, 7 and 8 eighths are widths")
