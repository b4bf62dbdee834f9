"""From a candidate operation to the plain layers that it calls one after the other.

A fused branch computes what these layers would and never calls them. So only modules that do exactly what their class
says are taken apart, without hooks or anything else that a call would run.
"""

from collections.abc import Callable, Sequence
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_VARARGS, CO_VARKEYWORDS
from types import FunctionType

from torch import nn
from torch.nn.modules import module as for_all_modules

from srnas_fast.errors import InputError
from srnas_fast.mixed.layers import Sine, Zero

# The layers that are understood, and what is read of each besides its tensors.
SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    ),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.BatchNorm2d: ("num_features",),
    nn.ReLU: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.PReLU: ("num_parameters",),
    Sine: (),
    Zero: ("stride",),
}  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS_FOR_ALL = tuple(f"_global{name}" for name in HOOKS)

UNFOLD: dict[type, Callable[[nn.Module], nn.Module | Sequence[nn.Module]]] = {}  # by register_pattern


class Opaque(Exception):
    """Why a candidate cannot be recognised."""


Placed = tuple[str, nn.Module]  # a module and its path inside the candidate


def register_pattern(cls: type[nn.Module], unfold: Callable[[nn.Module], nn.Module | Sequence[nn.Module]]) -> None:
    """Teach the planner what the modules of a class compute, so that they need not be opaque.

    A later call for the same class replaces what was taught before. Subclasses are not meant.

    Args:
        cls: the exact class.
        unfold: takes a module of the class and returns the layers that, called one after the other, compute its
            forward pass: one module or a sequence. Layers with parameters or buffers must be submodules of the
            candidate, others may be new. It is called again when something in the candidate has changed; it may
            look at the module's own attributes and at its plain layers, but not at ``training``.

    Raises:
        InputError: ``cls`` is no module class or one that is understood already; ``unfold`` cannot be called.

    >>> import torch
    >>> from torch import nn
    >>> from srnas_fast.mixed.patterns import recognise
    >>> class Block(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
    ...
    ...     def forward(self, x):
    ...         return self.norm(self.conv(torch.relu(x)))
    >>> recognise(Block(4)).kind
    'opaque'
    >>> register_pattern(Block, lambda block: [nn.ReLU(), block.conv, block.norm])
    >>> recognise(Block(4)).reason
    'ReLU - dense 3x3 with bias - batch norm'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"register_pattern got {cls!r}; give a class derived from nn.Module")
    if cls in (*SETTINGS, nn.Sequential, nn.Identity):
        raise InputError(f"register_pattern got {cls.__name__}, which is understood already; give a class of your own")
    if not callable(unfold):
        raise InputError(f"register_pattern got unfold={unfold!r} for {cls.__name__}; give a function of the module")
    UNFOLD[cls] = unfold


def layers_of(op: nn.Module) -> list[nn.Module] | str:
    """The plain layers that compute ``op`` when called one after the other, or why there are none.

    nn.Sequential and modules whose forward only calls one submodule are flattened however deep, nn.Identity and
    modules whose forward only returns its input are dropped, registered classes are unfolded.

    >>> layers_of(nn.Sequential(nn.Sequential(nn.ReLU(), nn.Identity()), nn.Conv2d(1, 1, 3)))
    [ReLU(), Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1))]
    >>> layers_of(nn.Sequential(nn.ReLU(), nn.Tanh()))
    "Tanh at '1' is no layer that the planner knows, ..."
    """
    try:
        return [layer for _, layer in placed_layers(op)]
    except Opaque as why:
        return str(why)


def placed_layers(op: nn.Module) -> list[Placed]:
    paths = {id(module): path for path, module in op.named_modules()}
    layers, unfolding = [], []

    def walk(path: str, module: nn.Module | None) -> None:
        if module is None:
            raise Opaque(f"there is no module at '{path}'")
        placed, cls = (paths.get(id(module), path), module), type(module)
        path = placed[0]
        _check_plain(placed)
        if cls in SETTINGS:
            if id(module) not in paths and (module._parameters or module._buffers):
                raise Opaque(f"{at(placed)} holds parameters or buffers and is no submodule of the candidate")
            layers.append(placed)
        elif cls is nn.Sequential:
            for name, child in module._modules.items():
                walk(f"{path}.{name}".lstrip("."), child)
        elif cls in UNFOLD:
            if module in unfolding:
                raise Opaque(f"{at(placed)} unfolds to itself")
            unfolding.append(module)
            for i, child in enumerate(_unfolded(module)):
                walk(f"{path}[{i}]", child)
            unfolding.pop()
        elif name := _only_called_child(module):
            walk(f"{path}.{name}".lstrip("."), module._modules[name])
        elif cls is not nn.Identity and not _same_code(cls, _returning):
            raise Opaque(
                f"{at(placed)} is no layer that the planner knows, nor a module whose forward only calls one "
                "submodule; register_pattern can teach it"
            )

    walk("", op)
    return layers


def _unfolded(module: nn.Module) -> Sequence[nn.Module]:
    found = UNFOLD[type(module)](module)
    found = [found] if isinstance(found, nn.Module) else found
    if not isinstance(found, Sequence) or not all(isinstance(layer, nn.Module) for layer in found):
        raise InputError(
            f"the pattern registered for {type(module).__name__} returned {found!r}; "
            "it must return one nn.Module or a sequence of them"
        )
    return found


def at(placed: Placed) -> str:
    path, module = placed
    return f"{type(module).__name__} at '{path}'" if path else type(module).__name__


def _check_plain(placed: Placed) -> None:
    """Refuse a module of which a call does more, or other things, than its class says."""
    module = placed[1]
    state = module.__dict__
    if hooked(state):
        raise Opaque(f"{at(placed)} has hooks")
    if state.get("_compiled_call_impl"):
        raise Opaque(f"{at(placed)} is compiled")
    registered = {*state["_parameters"], *state["_buffers"], *state["_modules"]}
    for name in state:
        if name in registered or callable(getattr(type(module), name, None)):
            raise Opaque(f"{at(placed)} has a {name} of its own, set as an attribute")


def _forwarding(self, x):
    return self.child(x)


def _returning(self, x):
    return x


_NOT_PLAIN = CO_VARARGS | CO_VARKEYWORDS | CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
_CALLING = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__getattribute__")


def _same_code(cls: type[nn.Module], template: FunctionType) -> bool:
    """Whether a class's forward does what the template does, but for the names that it uses.

    The same interpreter compiled both, so the same instructions mean the same; they know names by number only.
    """
    if type(cls.forward) is not FunctionType or any(getattr(cls, n) is not getattr(nn.Module, n) for n in _CALLING):
        return False
    code, expected = cls.forward.__code__, template.__code__
    return (
        code.co_code == expected.co_code
        and (code.co_argcount, code.co_kwonlyargcount, len(code.co_names)) == (2, 0, len(expected.co_names))
        and not code.co_flags & _NOT_PLAIN
    )


def _only_called_child(module: nn.Module) -> str | None:
    """The name of the submodule that a forward calls, doing nothing else: ``return self.<name>(x)``."""
    cls = type(module)
    if not _same_code(cls, _forwarding):
        return None
    (name,) = cls.forward.__code__.co_names
    # A class attribute of that name would be found before the submodule.
    return name if name in module._modules and not hasattr(cls, name) else None


def hooked(state: dict) -> bool:
    """Whether calling a module of this state would run hooks."""
    return any(state[name] for name in HOOKS)


def hooks_for_all() -> tuple[bool, ...]:
    """Which kinds of hooks are registered for all modules there are."""
    return tuple(bool(getattr(for_all_modules, name)) for name in HOOKS_FOR_ALL)
