"""A mixed operation as ``torch.compile`` sees it: one operator where a program serves all of it, else a graph break."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srnas_fast.mixed.mixed_sum import kinds_of
from srnas_fast.mixed.prepared import Prepared, bits_of
from srnas_fast.mixed.unchanged import MODES
from srnas_fast.mixed.unfold import SETTINGS
from srnas_fast.primitives.images import wide

uncompiled: Callable[..., Tensor] | None = None  # calls a mixed operation as a graph break


def constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compiler.assume_constant_result does, which would import the compiler together with this module."""
    function._dynamo_marked_constant = True
    return function


@constant
def prepare_to_break() -> None:
    """Make ``uncompiled``, which takes the compiler that is at work by now."""
    global uncompiled
    if uncompiled is None:
        uncompiled = torch.compiler.disable(lambda op, *given: op.run(*given))


# Settings that show in the shapes of a layer's tensors, at which the compiler looks anyway.
SHOWN = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size"),
    nn.BatchNorm2d: ("num_features",),
    nn.PReLU: ("num_parameters",),
}


class Fact(NamedTuple):
    """What decides about a program in one module: its class, how many modules it holds, its settings, and which
    parameters and buffers it goes without."""

    path: list[str]
    cls: type
    children: int
    settings: list[tuple[str, Any]]
    absent: list[tuple[str, str]]


class Place(NamedTuple):
    """Where a tensor is found: in the parameters or the buffers of the module at a path."""

    path: list[str]
    kind: str
    name: str


class Traced(NamedTuple):
    """What a graph bakes in: a program, which candidates are alive, the paths of its tensors.

    Attributes:
        kind: the type of the result.
        facts: what decided about it.
    """

    text: str
    live: int
    kind: torch.dtype
    parameters: list[Place]
    statistics: list[Place]
    facts: list[Fact]


def look_up(ops: nn.ModuleList, prepared: Prepared, x: Tensor, support, partial: int) -> Traced | None:
    """What to bake in for images like ``x``, whose numbers do not matter; None where a program does not do it all."""
    live = prepared.live(support)
    if not prepared.takes(x, partial):
        return None
    share, alone = prepared.share(x, live, partial)
    if not alone:
        return None
    places = {}
    for path, module in ops.named_modules():
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                places[id(tensor)] = Place(_names(path), kind, name)
    kind = reduce(torch.promote_types, kinds_of(prepared.plan, live, x))
    parameters = [places[id(tensor)] for tensor in prepared.parameters]
    statistics = [places[id(tensor)] for tensor in share.statistics]
    return Traced(share.made.text, bits_of(live), kind, parameters, statistics, facts(ops))


def facts(ops: nn.ModuleList) -> list[Fact]:
    """What decides about a program, as far as the shapes of parameters and buffers do not tell."""
    found = []
    for path, module in ops.named_modules():
        cls = type(module)
        names = [name for name in SETTINGS.get(cls, ()) if name not in SHOWN.get(cls, ())]
        if isinstance(module, nn.BatchNorm2d):
            names += MODES
        settings = [(name, getattr(module, name)) for name in names]
        absent = [
            (kind, name)
            for kind in ("_parameters", "_buffers")
            for name, tensor in getattr(module, kind).items()
            if tensor is None
        ]
        found.append(Fact(_names(path), cls, len(module._modules), settings, absent))
    return found


def _names(path: str) -> list[str]:
    return path.split(".") if path else []


def confirm(ops: nn.ModuleList, found: list[Fact]) -> None:
    """Looks at them by their paths: iterating over modules would make the compiler guard three things for each."""
    for path, cls, children, settings, absent in found:
        module = _at(ops, path)
        assert type(module) is cls
        if children:
            assert len(module._modules) == children
        for name, value in settings:
            assert getattr(module, name) == value
        for kind, name in absent:
            assert getattr(module, kind)[name] is None


def run(ops: nn.ModuleList, found: Traced, x: Tensor, weights: Tensor, scale: Tensor | None) -> Tensor:
    """The mixed operation as operators; to be traced."""
    # The compiler guards what is looked at here: where it changes, it looks the program up anew.
    confirm(ops, found.facts)
    parameters = [_tensor(ops, path).contiguous() for path in found.parameters]
    statistics = [_tensor(ops, path) for path in found.statistics]
    y, _ = torch.ops.srnas_fast.mixed_sum(x.to(wide(x)), weights, scale, parameters, statistics, found.text, found.live)
    return y.to(found.kind)


def _tensor(ops: nn.ModuleList, place: Place) -> Tensor:
    return getattr(_at(ops, place.path), place.kind)[place.name]


def _at(module: nn.Module, path: list[str]) -> nn.Module:
    for name in path:
        module = module._modules[name]
    return module
