"""A foreign mixed operation that computes as ``MixedOp`` does: the same module, of a subclass of its class."""

import copyreg
from collections.abc import Iterator
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.mixed.forms import Form, signature_of
from srnas_fast.mixed.mixed_op import MixedOp
from srnas_fast.mixed.unchanged import watch_attributes
from srnas_fast.primitives.direct import autocast_is_on, transforms_are_on

_KEPT = "_srnas_fast_stand_in"  # where a module keeps its StandIn
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {_KEPT}


class StandIn:
    """What takes the place of a module's forward: in which form it is called, and the mixed operation that runs.

    The mixed operation owns nothing: its candidates are looked up in the module at each call.

    Args:
        module: where it is to stand in.
        form: how the module is called.
        merge: as of ``MixedOp``.
        one_type: whether the module was found to compute the same only where all numbers are of one type.
    """

    def __init__(self, module: nn.Module, form: Form, merge: bool, one_type: bool):
        self.form, self.merge, self.one_type = form, merge, one_type
        self.settings = settings_of(module, form)
        self.op: MixedOp | None = None
        self._watch = None

    def ready(self, module: nn.Module) -> MixedOp | None:
        """The mixed operation over the candidates that the module has now; None where its settings are others than
        those that were compared.

        A watch over the attributes of the module and of what is around its candidates confirms both in a microsecond.
        """
        if self._watch is not None and self._watch.holds():
            return self.op
        if settings_of(module, self.form) != self.settings:
            return None
        op = self.mixed_op(module)
        self._watch = self._watched(module)
        return op

    def _watched(self, module: nn.Module):
        """The watch; None where something can change behind its back: lists, and candidates that are no submodules."""
        lists = any(type(value) is list for value in self.settings.values())
        if lists or not isinstance(getattr(module, self.form.ops), nn.ModuleList | nn.ModuleDict):
            return None
        return watch_attributes((part for _, part in around(module, self.form)), without=("training", self.form.index))

    def call(self, module: nn.Module, given: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """x and the weights of a call like those that were compared; None where it is another."""
        read = self.form.read(module, given, len(self.op.ops))
        if read is None:
            return None
        x, weights = read
        # Images of odd size may be pooled in another way where they pass by.
        odd = self.op.partial > 1 and any(size % 2 for size in x.shape[2:])
        mixed = self.one_type and (weights.dtype != x.dtype or autocast_is_on(x))
        return None if odd or mixed else read

    def mixed_op(self, module: nn.Module) -> MixedOp:
        """The mixed operation over the candidates that the module has now."""
        candidates, parts = self.form.candidates(module), self.form.parts(module)
        held = self.op
        if (
            held is None
            or held.partial != parts
            or len(held.ops) != len(candidates)
            or any(a is not b for a, b in zip(held.ops, candidates, strict=True))
        ):
            self.op = held = MixedOp(candidates, merge=self.merge, partial=parts)
        return held

    def __getstate__(self) -> dict:
        return self.__dict__ | {"op": None, "_watch": None}  # made anew where it is loaded


def install(module: nn.Module, form: Form, merge: bool, one_type: bool) -> None:
    """Let ``module`` compute as ``MixedOp`` wherever it is called as the form says; else its own forward runs."""
    # Past nn.Module's own __setattr__, and no submodule: the state_dict stays what it is.
    module.__dict__[_KEPT] = StandIn(module, form, merge, one_type)
    module.__class__ = _subclass(type(module))


def remove(module: nn.Module) -> None:
    """Undo :func:`install`."""
    del module.__dict__[_KEPT]
    module.__class__ = type(module).__base__


def stand_in_of(module: nn.Module) -> StandIn | None:
    """What was installed in a module, if anything was."""
    return module.__dict__.get(_KEPT)


def around(module: nn.Module, form: Form) -> Iterator[tuple[str, nn.Module]]:
    """The module and what it holds besides its candidates, such as a pooling, with their paths."""
    inside = {part for candidate in form.candidates(module) for part in candidate.modules()}
    return ((path, part) for path, part in module.named_modules() if part not in inside)


def settings_of(module: nn.Module, form: Form) -> dict[tuple[str, str], Any]:
    """The plain values among the attributes of a module and of what is around its candidates.

    They decide what its forward does: where one has changed, what was compared no longer counts.
    """
    return {
        (path, name): list(value) if type(value) is list else value
        for path, part in around(module, form)
        for name, value in vars(part).items()
        if name not in _OF_EVERY_MODULE and name != form.index and is_plain(value)
    }


def is_plain(value: Any) -> bool:
    """Whether it is a number, a word or None, or a list or tuple of these."""
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


@cache
def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    """The class with a forward that asks the module's StandIn first."""
    signature, own = signature_of(cls), cls.forward
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}

    names = [p.name for p in signature.parameters.values()]
    positional = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())

    @wraps(own)
    def forward(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            return uncompiled(self, *args, **kwargs)
        return run(self, *args, **kwargs)

    def run(self, *args, **kwargs):
        stand_in = stand_in_of(self)
        if stand_in is None or cls.forward is not own or not _serves(self):
            return cls.forward(self, *args, **kwargs)
        if positional and not kwargs and len(args) <= len(names):
            given = dict(zip(names, args, strict=False))  # what is missing has a default, or is missed below
        else:
            given = signature.bind(*args, **kwargs).arguments
        known = stand_in.form.arguments(given)
        call, op = None, stand_in.ready(self)
        if op is not None and all(name in known or _equal(value, defaults.get(name)) for name, value in given.items()):
            call = stand_in.call(self, defaults | given)
        return cls.forward(self, *args, **kwargs) if call is None else op(*call)

    @torch.compiler.disable  # one graph break
    def uncompiled(self, *args, **kwargs):
        return run(self, *args, **kwargs)

    def __reduce_ex__(self, protocol):
        make, args, *rest = super(subclass, self).__reduce_ex__(max(protocol, 2))
        if make is copyreg.__newobj__:
            return _new, (cls, *args[1:]), *rest
        # The class makes copies in its own way, and they compute in its own way.
        return cls if make is subclass else make, args, *rest

    subclass = type(
        cls.__name__,
        (cls,),
        {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": forward,
            "__reduce_ex__": __reduce_ex__,
        },
    )
    return subclass


def _new(cls: type[nn.Module], *args) -> nn.Module:
    """An empty module of the subclass, which a copy or an unpickled module is filled into."""
    return copyreg.__newobj__(_subclass(cls), *args)


def _serves(module: nn.Module) -> bool:
    """Whether an autograd function can do what is asked for, with a module that owns its parameters."""
    replica = "_is_replica" in module.__dict__  # of nn.DataParallel, which owns none
    return not (replica or torch.jit.is_tracing() or transforms_are_on())


def _equal(value: Any, default: Any) -> bool:
    """Whether an argument is its default."""
    return value is default or (type(value) is type(default) and is_plain(value) and value == default)
