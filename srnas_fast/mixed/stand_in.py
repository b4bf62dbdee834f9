"""A foreign mixed operation that computes as ``MixedOp`` does: the same module, of a subclass of its class."""

import copyreg
from functools import cache, wraps

import torch
from torch import nn

from srnas_fast.mixed.forms import Form, signature_of
from srnas_fast.mixed.mixed_op import MixedOp

_KEPT = "_srnas_fast_stand_in"  # where a module keeps its StandIn


class StandIn:
    """What takes the place of a module's forward: in which form it is called, and the mixed operation that runs.

    The mixed operation owns nothing: its candidates are looked up in the module at each call.
    """

    def __init__(self, form: Form, merge: bool):
        self.form, self.merge = form, merge
        self.op: MixedOp | None = None

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
        return self.__dict__ | {"op": None}  # made anew where it is loaded


def install(module: nn.Module, form: Form, merge: bool) -> None:
    """Let ``module`` compute as ``MixedOp`` wherever it is called in the form; other calls run its own forward."""
    # Past nn.Module's own __setattr__, and no submodule: the state_dict stays what it is.
    module.__dict__[_KEPT] = StandIn(form, merge)
    module.__class__ = _subclass(type(module))


def remove(module: nn.Module) -> None:
    """Undo :func:`install`."""
    del module.__dict__[_KEPT]
    module.__class__ = type(module).__base__


def stand_in_of(module: nn.Module) -> StandIn | None:
    """What was installed in a module, if anything was."""
    return module.__dict__.get(_KEPT)


@cache
def _subclass(cls: type[nn.Module]) -> type[nn.Module]:
    """The class with a forward that asks the module's StandIn first."""
    signature = signature_of(cls)
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}

    @torch.compiler.disable  # a graph break, like the autograd function inside
    @wraps(cls.forward)
    def forward(self, *args, **kwargs):
        own = super(subclass, self).forward
        if getattr(self, "_is_replica", False):  # of nn.DataParallel: its parameters are no parameters
            return own(*args, **kwargs)
        stand_in = stand_in_of(self)
        form = stand_in.form
        given = signature.bind(*args, **kwargs).arguments
        known = given if callable(form.weights) else (form.x, form.weights, form.index)
        op = stand_in.mixed_op(self)
        call = None
        if all(name in known or value is defaults.get(name) for name, value in given.items()):
            call = form.read(self, defaults | given, len(op.ops))
        return own(*args, **kwargs) if call is None else op(*call)

    def __reduce_ex__(self, protocol):
        make, args, *rest = super(subclass, self).__reduce_ex__(protocol)
        if make is not copyreg.__newobj__:  # the class makes copies in its own way
            return make, args, *rest
        return _new, (cls, *args[1:]), *rest

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
