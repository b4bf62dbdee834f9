"""The forms that mixed operations have in other people's code: what their candidates and arguments are called."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError

_FORMS: dict[type, "Form"] = {}  # by register_form


@dataclass(frozen=True)
class Form:
    """How a class of mixed operations is called and where it keeps its candidates; data that can be pickled.

    Args:
        ops: the attribute that holds the candidates: a list of modules (``nn.ModuleList``) or a dict of them, in order.
        x: the argument of ``forward`` that the candidates read.
        weights: the argument that gives their weights: a tensor of shape (candidates,) or as many scalars. Or a
            function of the module and the dict of all arguments that returns one of these; a named function where
            models are to be pickled.
        index: the argument, or else the attribute, that picks the weights out of the argument ``weights``:
            ``weights[index]``. None where it is one row already.
        partial: of how many parts of the channels the candidates see the first, as in PC-DARTS: a number or the
            attribute that holds it.

    >>> Form("_ops", x="x", weights="alphas", index="edge")
    Form(ops='_ops', x='x', weights='alphas', index='edge', partial=1)
    """

    ops: str
    x: str
    weights: str | Callable[[nn.Module, dict[str, Any]], Any]
    index: str | None = None
    partial: int | str = 1

    def candidates(self, module: nn.Module) -> list[nn.Module]:
        """The candidates that the module holds now."""
        held = _attribute(self, module, self.ops)
        return list(held.values() if isinstance(held, Mapping | nn.ModuleDict) else held)

    def parts(self, module: nn.Module) -> int:
        """Of how many parts of the channels the candidates see the first."""
        return _attribute(self, module, self.partial) if isinstance(self.partial, str) else self.partial

    def arguments(self, given: Collection[str]) -> Collection[str]:
        """The names of the arguments that it reads; a function of the arguments may read all that are given."""
        return given if callable(self.weights) else (self.x, self.weights, self.index)

    def read(self, module: nn.Module, arguments: dict[str, Any], count: int) -> tuple[Tensor, Tensor] | None:
        """x and the row of ``count`` weights of a call; None where it is a call of another kind."""
        x = arguments.get(self.x)
        weights = self.weights(module, arguments) if callable(self.weights) else arguments.get(self.weights)
        if not callable(self.weights) and self.index is not None:
            row = arguments[self.index] if self.index in arguments else _attribute(self, module, self.index)
            try:
                weights = weights[row]
            except (TypeError, LookupError):  # the module's own forward will tell what is wrong
                return None
        if not isinstance(x, Tensor):
            return None
        if isinstance(weights, list | tuple | nn.ParameterList):
            weights = _row(weights, x)
        is_row = isinstance(weights, Tensor) and weights.shape == (count,) and weights.is_floating_point()
        return (x, weights) if is_row else None


def _attribute(form: Form, module: nn.Module, name: str) -> Any:
    if not hasattr(module, name):
        raise InputError(f"{type(module).__name__} has no attribute '{name}', which {form} names")
    return getattr(module, name)


def _row(scalars: Sequence[Any], x: Tensor) -> Tensor | None:
    """Scalars, tensors or numbers, as one tensor; None where they are none."""
    tensors = [w if isinstance(w, Tensor) else x.new_tensor(w) for w in scalars]
    if any(tensor.numel() != 1 for tensor in tensors):
        return None
    return torch.stack([tensor.reshape(()) for tensor in tensors])


def register_form(cls: type[nn.Module], form: Form) -> None:
    """Teach :func:`srnas_fast.accelerate` where a class of mixed operations has its candidates and weights.

    What is taught is tried first and is not trusted either: a module is replaced only where both versions agree.
    A later call for the same class replaces what was taught before; its subclasses are not affected.

    Args:
        cls: the exact class.
        form: how it is called.

    Raises:
        InputError: ``cls`` is no module class; ``form`` is no Form or names arguments that its forward has not.

    >>> class Blend(nn.Module):
    ...     def __init__(self, *branches, edge=0):
    ...         super().__init__()
    ...         self.branches, self.edge = nn.ModuleList(branches), edge
    ...
    ...     def forward(self, alphas, features):
    ...         return sum(w * branch(features) for w, branch in zip(alphas[self.edge].softmax(-1), self.branches))
    >>> register_form(
    ...     Blend,
    ...     Form("branches", x="features", weights=lambda blend, given: given["alphas"][blend.edge].softmax(-1)),
    ... )
    >>> from srnas_fast import accelerate
    >>> blend = Blend(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1))
    >>> accelerate(blend, torch.randn(2, 2), torch.ones(1, 4, 8, 8)).replaced
    ['']
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"register_form got {cls!r}; give a class derived from nn.Module")
    if not isinstance(form, Form):
        raise InputError(f"register_form got {form!r} for {cls.__name__}; give a srnas_fast.mixed.Form")
    known = signature_of(cls).parameters
    for name in (form.x, form.weights):
        if isinstance(name, str) and name not in known:
            raise InputError(f"{form} names the argument '{name}'; {cls.__name__}.forward takes {', '.join(known)}")
    _FORMS[cls] = form


@cache
def signature_of(cls: type[nn.Module]) -> inspect.Signature:
    """What ``forward`` of a class takes besides the module."""
    signature = inspect.signature(cls.forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def required(cls: type[nn.Module]) -> list[str] | None:
    """The names of the arguments that a forward cannot do without; None where it takes any number of them."""
    parameters = signature_of(cls).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None
    return [p.name for p in parameters if p.default is p.empty]


def containers(module: nn.Module) -> list[str]:
    """The names of what may hold candidates: lists and dicts of at least two modules."""
    kinds = (nn.ModuleList, nn.ModuleDict)
    return [name for name, child in module._modules.items() if isinstance(child, kinds) and len(child) > 1]


def forms_of(module: nn.Module) -> Iterator[Form]:
    """The forms that the module may have: what was registered for its class, else all that its structure allows."""
    cls = type(module)
    if cls in _FORMS:
        yield _FORMS[cls]
        return
    names = required(cls) or []
    for ops in containers(module):
        if len(names) == 2:
            for x, weights in permutations(names):
                yield Form(ops, x, weights)
            for x, weights in permutations(names):
                yield from (Form(ops, x, weights, index) for index in _numbers(module))
        elif len(names) == 3:
            yield from (Form(ops, x, weights, index) for x, weights, index in permutations(names))


def is_registered(cls: type[nn.Module]) -> bool:
    """Whether a form was registered for the class."""
    return cls in _FORMS


def _numbers(module: nn.Module) -> list[str]:
    """The attributes that may pick a row: whole numbers from 0 up, as few as a cell has edges."""
    return [name for name, value in vars(module).items() if type(value) is int and 0 <= value < 1000]
