"""A mixed operation as ``torch.compile`` sees it: one operator where a program serves all of it, else a graph break."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.mixed.gpu import stored
from srnas_fast.mixed.mixed_sum import kinds_of
from srnas_fast.mixed.prepared import Prepared, bits_of
from srnas_fast.mixed.unchanged import MODES
from srnas_fast.mixed.unfold import SETTINGS, UNFOLD

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
    """What decides about a program in the module at a path: its class, the names of its children, its settings, and
    which parameters and buffers it goes without."""

    path: list[str]
    cls: type
    children: list[str]
    settings: list[tuple[str, Any]]
    absent: list[tuple[str, str]]


class Place(NamedTuple):
    """Where a tensor is found: in the parameters or the buffers of the module at a path."""

    path: list[str]
    kind: str
    name: str


class Found(NamedTuple):
    """A tensor that an operator takes: where it is, and where else; its shape and type."""

    place: Place
    also: list[Place]
    shape: tuple[int, ...]
    dtype: torch.dtype


class Traced(NamedTuple):
    """What a graph bakes in: a program, which candidates are alive, the paths of its tensors.

    Attributes:
        kind: the type of the result.
        facts: what decided about it.
    """

    text: str
    live: int
    kind: torch.dtype
    parameters: list[Found]
    statistics: list[Found]
    facts: list[Fact]


def look_up(ops: nn.ModuleList, prepared: Prepared, x: Tensor, support, partial: int) -> Traced | None:
    """What to bake in for images like ``x``, whose numbers do not matter; None where a program does not do it all."""
    live = prepared.live(support)
    if not prepared.takes(x, partial):
        return None
    share, alone = prepared.share(x, live, partial)
    if not alone:
        return None
    places: dict[int, list[Place]] = {}
    for path, module in ops.named_modules(remove_duplicate=False):
        for kind, name, tensor in _tensors_of(module):
            places.setdefault(id(tensor), []).append(Place(_names(path), kind, name))

    def found(tensor: Tensor) -> Found:
        first, *also = places[id(tensor)]
        return Found(first, also, tuple(tensor.shape), tensor.dtype)

    kind = reduce(torch.promote_types, kinds_of(prepared.plan, live, x))
    parameters, statistics = [*map(found, prepared.parameters)], [*map(found, share.statistics)]
    return Traced(share.made.text, bits_of(live), kind, parameters, statistics, facts(ops))


def facts(ops: nn.ModuleList) -> list[Fact]:
    """What decides about a program, as far as the shapes of parameters and buffers do not tell."""
    found = []
    for path, module in ops.named_modules(remove_duplicate=False):
        cls = type(module)
        names = [name for name in SETTINGS.get(cls, ()) if name not in SHOWN.get(cls, ())]
        if isinstance(module, nn.BatchNorm2d):
            names += MODES
        if cls in UNFOLD:  # which may have looked at any attribute but this one
            names += [name for name, value in vars(module).items() if name != "training" and _is_plain(value)]
        absent = [(kind, name) for kind, name, tensor in _tensors_of(module) if tensor is None]
        settings = [(name, getattr(module, name)) for name in names]
        found.append(Fact(_names(path), cls, list(module._modules), settings, absent))
    return found


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    """The module's own parameters and buffers, also those that it goes without."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, kind).items():
            yield kind, name, tensor


def _is_plain(value: Any) -> bool:
    """Whether an attribute is one that the compiler can compare."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _names(path: str) -> list[str]:
    return path.split(".") if path else []


def confirm(ops: nn.ModuleList, found: list[Fact]) -> None:
    """Looks at them by their paths, which makes the compiler guard less than iterating over the modules does."""
    for path, cls, children, settings, absent in found:
        module = _at(ops, path)
        assert type(module) is cls
        assert "forward" not in module.__dict__
        if cls not in SETTINGS:  # a layer calls none
            assert list(module._modules) == children
        for name, value in settings:
            assert getattr(module, name) == value
        for kind, name in absent:
            assert getattr(module, kind)[name] is None


def run(ops: nn.ModuleList, found: Traced, x: Tensor, weights: Tensor, scale: Tensor | None) -> Tensor:
    """The mixed operation as operators; to be traced."""
    # The compiler guards what is looked at here: where it changes, it looks the program up anew.
    confirm(ops, found.facts)
    parameters = [_tensor(ops, each).contiguous() for each in found.parameters]
    statistics = [_tensor(ops, each) for each in found.statistics]
    y, _ = torch.ops.srnas_fast.mixed_sum(
        x.to(stored(x)), weights, scale, parameters, statistics, found.text, found.live
    )
    return y.to(found.kind)


def _tensor(ops: nn.ModuleList, found: Found) -> Tensor:
    """The tensor as it is now; raises InputError where it is none that the program can read."""
    tensor = _held(ops, found.place)
    for place in found.also:
        assert _held(ops, place) is tensor
    if tensor.shape != found.shape or tensor.dtype != found.dtype:
        raise InputError(
            f"a parameter or buffer of a MixedOp is {tuple(tensor.shape)} of {tensor.dtype}, while the module holds "
            f"{found.shape} of {found.dtype}; convert the module, not a copy of its tensors"
        )
    return tensor


def _held(ops: nn.ModuleList, place: Place) -> Tensor:
    return getattr(_at(ops, place.path), place.kind)[place.name]


def _at(module: nn.Module, path: list[str]) -> nn.Module:
    for name in path:
        module = module._modules[name]
    return module
