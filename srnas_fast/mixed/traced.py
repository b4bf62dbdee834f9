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


class Traced(NamedTuple):
    """What a graph bakes in: a program, which candidates are alive, the paths of its tensors.

    Attributes:
        kind: the type of the result.
        facts: what decided about it.
    """

    text: str
    live: int
    kind: torch.dtype
    parameters: list[str]
    statistics: list[str]
    facts: list


def look_up(ops: nn.ModuleList, prepared: Prepared, x: Tensor, support, partial: int) -> Traced | None:
    """What to bake in for images like ``x``, whose numbers do not matter; None where a program does not do it all."""
    live = prepared.live(support)
    if not prepared.takes(x, partial):
        return None
    share, alone = prepared.share(x, live, partial)
    if not alone:
        return None
    names = {id(tensor): name for name, tensor in [*ops.named_parameters(), *ops.named_buffers()]}
    kind = reduce(torch.promote_types, kinds_of(prepared.plan, live, x))
    parameters = [names[id(tensor)] for tensor in prepared.parameters]
    statistics = [names[id(tensor)] for tensor in share.statistics]
    return Traced(share.made.text, bits_of(live), kind, parameters, statistics, facts(ops))


def facts(ops: nn.ModuleList) -> list:
    """What decides about a program besides the modules' types."""
    found = []
    for module in ops.modules():
        for name in SETTINGS.get(type(module), ()):
            found.append(getattr(module, name))
        if isinstance(module, nn.BatchNorm2d):
            for name in MODES:
                found.append(getattr(module, name))
    return found


def run(ops: nn.ModuleList, found: Traced, x: Tensor, weights: Tensor, scale: Tensor | None) -> Tensor:
    """The mixed operation as operators; to be traced."""
    # The compiler guards what is looked at here: where it changes, it looks the program up anew.
    for now, baked in zip(facts(ops), found.facts, strict=True):
        assert now == baked
    parameters = [_tensor(ops, path).contiguous() for path in found.parameters]
    statistics = [_tensor(ops, path) for path in found.statistics]
    y, _ = torch.ops.srnas_fast.mixed_sum(x.to(wide(x)), weights, scale, parameters, statistics, found.text, found.live)
    return y.to(found.kind)


def _tensor(ops: nn.ModuleList, path: str) -> Tensor:
    *parents, name = path.split(".")
    module = ops
    for parent in parents:
        module = getattr(module, parent)
    return getattr(module, name)
