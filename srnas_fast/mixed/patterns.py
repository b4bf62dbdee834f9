"""What a candidate operation computes, read off its structure: an activation, a convolution or pooling, a batch norm.

A fused branch computes what the recognised layers would and never calls them. So only modules that do exactly what
their class says are recognised, without hooks or anything else that a call would run; all the others are opaque.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_VARARGS, CO_VARKEYWORDS
from operator import itemgetter
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as for_all_modules

from srnas_fast.errors import InputError
from srnas_fast.mixed.layers import Sine, Zero

# The layers that are understood, and what recognition reads of each besides its tensors.
_SETTINGS: dict[type, Callable[[dict], Any]] = {
    nn.Conv2d: itemgetter(
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
    ),
    nn.MaxPool2d: itemgetter("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: itemgetter("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.BatchNorm2d: itemgetter("num_features"),
    nn.ReLU: itemgetter("inplace"),
    nn.LeakyReLU: itemgetter("negative_slope", "inplace"),
    nn.PReLU: itemgetter("num_parameters"),
    Sine: lambda state: None,
    Zero: itemgetter("stride"),
}
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, Sine)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)

_UNFOLD: dict[type, Callable[[nn.Module], nn.Module | Sequence[nn.Module]]] = {}  # by register_pattern


@dataclass(frozen=True)
class Stage:
    """[activation -] convolution or pooling [- batch norm], where the convolution is dense or depthwise - pointwise.

    Attributes:
        activation: nn.ReLU, nn.LeakyReLU, nn.PReLU, Sine, or None.
        depthwise: the depthwise convolution, without bias, of stride 1 or 2; None for the other stages.
        conv: the dense or the pointwise convolution, of stride 1; None for a pooling stage.
        norm: the batch norm, or None.
        pool: nn.MaxPool2d or nn.AvgPool2d, of stride 1 or 2 and an odd size that it is padded for; None for the others.
    """

    activation: nn.Module | None
    depthwise: nn.Conv2d | None
    conv: nn.Conv2d | None
    norm: nn.BatchNorm2d | None
    pool: nn.Module | None = None

    @property
    def kind(self) -> str:
        """One of "dense", "separable" and "pool"."""
        if self.pool is not None:
            return "pool"
        return "dense" if self.depthwise is None else "separable"

    @property
    def spatial(self) -> nn.Module:
        """The layer that looks at neighbours: pooling, depthwise or dense convolution."""
        return self.pool or self.depthwise or self.conv

    @property
    def size(self) -> int:
        """Of its window."""
        return _one(self.spatial.kernel_size)

    @property
    def dilation(self) -> int:
        """Of its window."""
        return _one(getattr(self.spatial, "dilation", 1))  # an average pool has none

    @property
    def stride(self) -> int:
        """How many rows and columns of its input make one of its result."""
        return _one(self.spatial.stride)

    @property
    def activation_name(self) -> str:
        """The activation's class, with its slope where that is fixed."""
        slope = f"({self.activation.negative_slope:g})" if type(self.activation) is nn.LeakyReLU else ""
        return type(self.activation).__name__ + slope

    def __str__(self) -> str:
        parts = [] if self.activation is None else [self.activation_name]
        name = {nn.MaxPool2d: "max pool", nn.AvgPool2d: "average pool"}.get(type(self.spatial))
        name = name or ("dense" if self.depthwise is None else "depthwise")
        parts.append(f"{name} {self.size}x{self.size}")
        parts[-1] += f" dilation {self.dilation}" * (self.dilation != 1) + f" stride {self.stride}" * (self.stride != 1)
        if self.depthwise is not None:
            parts.append("pointwise")
        parts[-1] += " with bias" * (self.conv is not None and self.conv.bias is not None)
        parts[-1] += " with padding" * bool(getattr(self.pool, "count_include_pad", False))
        return " - ".join(parts + ["batch norm"] * (self.norm is not None))


def _one(value: int | tuple[int, int]) -> int:
    """What is given once or twice."""
    return value if type(value) is int else value[0]


@dataclass(frozen=True, eq=False)
class Recognised:
    """What :func:`recognise` found in a candidate.

    A copy of it, also a pickled one, is what is found in the copied candidate.

    Attributes:
        op: the candidate.
        kind: "zero", "identity", "dense", "separable", "pool" (one stage each), "two-stage" (two separable stages) or
            "opaque".
        stages: what the kinds that have stages consist of; empty for the others.
        stride: how many rows and columns of the input make one of the result; 1 for opaque candidates.
        reason: a short description, or why the candidate is opaque.
    """

    op: nn.Module
    kind: str
    stages: tuple[Stage, ...]
    stride: int
    reason: str
    _modules: tuple[nn.Module, ...] = field(repr=False)
    _photograph: list = field(repr=False)
    _attributes: list = field(repr=False)

    def unchanged(self) -> bool:
        """Whether everything that decided about this candidate is as it was, also about an opaque one.

        Looks at classes, submodules, hooks and settings, and at which parameters and buffers there are, of which
        shape, type and device; not at their values, nor at ``training``. A few microseconds.
        """
        return _photograph(self._modules) == self._photograph and all(
            now is before
            for module, values in self._attributes
            for now, before in zip(_attributes(module), values, strict=True)  # the photograph tells their number
        )

    def __reduce__(self):
        return recognise, (self.op,)


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
    if cls in (*_SETTINGS, nn.Sequential, nn.Identity):
        raise InputError(f"register_pattern got {cls.__name__}, which is understood already; give a class of your own")
    if not callable(unfold):
        raise InputError(f"register_pattern got unfold={unfold!r} for {cls.__name__}; give a function of the module")
    _UNFOLD[cls] = unfold


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
        return [layer for _, layer in _placed_layers(op)]
    except _Opaque as why:
        return str(why)


def recognise(op: nn.Module) -> Recognised:
    """Find out which pattern a candidate operation follows; its input is taken to be (N, C, H, W).

    Not for TorchScript, whose modules show new tensors each time one looks.

    >>> recognise(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False))).reason
    'LeakyReLU(0.2) - dense 3x3 dilation 2'
    """
    try:
        if any(_hooks_for_all()):
            raise _Opaque("hooks for all modules are registered (torch.nn.modules.module.register_module_*)")
        layers = _placed_layers(op)
        kind, stages, stride = _match(layers)
        _check_tensors(layers)
        reason = " - ".join(map(str, stages)) or kind
    except _Opaque as why:
        kind, stages, stride, reason = "opaque", (), 1, str(why)
    modules = tuple(op.modules())
    attributes = [(module, _attributes(module)) for module in modules if type(module) in _UNFOLD]
    return Recognised(op, kind, stages, stride, reason, modules, _photograph(modules), attributes)


# --- what decides, for a later look -----------------------------------------------------------------------------------


def _photograph(modules: tuple[nn.Module, ...]) -> list:
    """What recognition depends on, to be compared with ``==``.

    An attribute that is added to a module, such as a ``forward`` of its own, shows in their number. Tensors are told
    apart by id: a new one at the address of one that is gone can differ only in what stands beside the id.
    """
    shot = [_hooks_for_all(), (*_UNFOLD.values(),)]
    for module in modules:
        state, cls = module.__dict__, type(module)
        shot += (cls, len(state), _hooked(state))
        if children := state["_modules"]:
            shot += children.items()
        if settings := _SETTINGS.get(cls):
            shot.append(settings(state))
        for tensor in (*state["_parameters"].values(), *state["_buffers"].values()):
            if tensor is None:
                shot.append(None)
            else:
                # size(), since a tensor still to be initialised refuses to tell its shape
                shot += (id(tensor), type(tensor), tensor.dtype, tensor.device, tensor.size())
    return shot


def _hooked(state: dict) -> bool:
    """Whether calling a module of this state would run hooks."""
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def _hooks_for_all() -> tuple[bool, ...]:
    """Which kinds of hooks are registered for all modules there are."""
    return (
        bool(for_all_modules._global_forward_hooks),
        bool(for_all_modules._global_forward_pre_hooks),
        bool(for_all_modules._global_backward_hooks),
        bool(for_all_modules._global_backward_pre_hooks),
    )


def _attributes(module: nn.Module) -> list:
    """The values that an ``unfold`` may have looked at."""
    return [value for name, value in module.__dict__.items() if name != "training"]


# --- from modules to layers -------------------------------------------------------------------------------------------


class _Opaque(Exception):
    """Why a candidate cannot be recognised."""


_Placed = tuple[str, nn.Module]  # a module and its path inside the candidate


def _placed_layers(op: nn.Module) -> list[_Placed]:
    paths = {id(module): path for path, module in op.named_modules()}
    layers, unfolding = [], []

    def walk(path: str, module: nn.Module | None) -> None:
        if module is None:
            raise _Opaque(f"there is no module at '{path}'")
        placed, cls = (paths.get(id(module), path), module), type(module)
        path = placed[0]
        _check_plain(placed)
        if cls in _SETTINGS:
            if id(module) not in paths and (module._parameters or module._buffers):
                raise _Opaque(f"{_at(placed)} holds parameters or buffers and is no submodule of the candidate")
            layers.append(placed)
        elif cls is nn.Sequential:
            for name, child in module._modules.items():
                walk(f"{path}.{name}".lstrip("."), child)
        elif cls in _UNFOLD:
            if module in unfolding:
                raise _Opaque(f"{_at(placed)} unfolds to itself")
            unfolding.append(module)
            for i, child in enumerate(_unfolded(module)):
                walk(f"{path}[{i}]", child)
            unfolding.pop()
        elif name := _only_called_child(module):
            walk(f"{path}.{name}".lstrip("."), module._modules[name])
        elif cls is not nn.Identity and not _same_code(cls, _returning):
            raise _Opaque(
                f"{_at(placed)} is no layer that the planner knows, nor a module whose forward only calls one "
                "submodule; register_pattern can teach it"
            )

    walk("", op)
    return layers


def _unfolded(module: nn.Module) -> Sequence[nn.Module]:
    found = _UNFOLD[type(module)](module)
    found = [found] if isinstance(found, nn.Module) else found
    if not isinstance(found, Sequence) or not all(isinstance(layer, nn.Module) for layer in found):
        raise InputError(
            f"the pattern registered for {type(module).__name__} returned {found!r}; "
            "it must return one nn.Module or a sequence of them"
        )
    return found


def _at(placed: _Placed) -> str:
    path, module = placed
    return f"{type(module).__name__} at '{path}'" if path else type(module).__name__


def _check_plain(placed: _Placed) -> None:
    """Refuse a module of which a call does more, or other things, than its class says."""
    module = placed[1]
    state = module.__dict__
    if _hooked(state):
        raise _Opaque(f"{_at(placed)} has hooks")
    if state.get("_compiled_call_impl"):
        raise _Opaque(f"{_at(placed)} is compiled")
    registered = {*state["_parameters"], *state["_buffers"], *state["_modules"]}
    for name in state:
        if name in registered or callable(getattr(type(module), name, None)):
            raise _Opaque(f"{_at(placed)} has a {name} of its own, set as an attribute")


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


# --- from layers to patterns ------------------------------------------------------------------------------------------

_KINDS = {("dense",): "dense", ("separable",): "separable", ("separable",) * 2: "two-stage", ("pool",): "pool"}


def _match(layers: list[_Placed]) -> tuple[str, tuple[Stage, ...], int]:
    """The kind of a sequence of layers, its stages and its stride."""
    if not layers:
        return "identity", (), 1
    if [type(layer) for _, layer in layers] == [Zero]:
        return "zero", (), layers[0][1].stride
    if getattr(layers[0][1], "inplace", False):
        raise _Opaque(f"{_at(layers[0])} changes in place what all candidates read; build it with inplace=False")
    rest, stages = deque(layers), []
    while rest:
        stages.append(_take_stage(rest, strides=(1,) if stages else (1, 2)))
    kind = _KINDS.get(tuple(stage.kind for stage in stages))
    if kind is None:
        raise _Opaque(f"no pattern has the stages {'; '.join(map(str, stages))}")
    if kind == "two-stage" and stages[0].conv.out_channels != stages[1].depthwise.in_channels:
        raise _Opaque(f"{stages[0].conv} and {stages[1].depthwise} differ in the channels between them")
    return kind, tuple(stages), stages[0].stride


def _take_stage(rest: deque[_Placed], strides: tuple[int, ...]) -> Stage:
    """Take the layers of one stage; ``strides`` are those that its depthwise convolution or pooling may have."""
    activation = depthwise = conv = pool = norm = None
    if type(rest[0][1]) in _ACTIVATIONS:
        activation = rest.popleft()[1]
    if rest and type(rest[0][1]) in _POOLS:
        pool = _take_pool(rest, strides)
    else:
        conv = _take_convolution(rest, strides)
        if conv.groups != 1:
            depthwise, conv = conv, _take_convolution(rest, None)
            if conv.kernel_size != (1, 1) or conv.in_channels != depthwise.out_channels:
                raise _Opaque(f"{conv} is no pointwise convolution for {depthwise}")
    if rest and type(rest[0][1]) is nn.BatchNorm2d:
        norm = rest.popleft()[1]
    if type(activation) is nn.LeakyReLU and type(activation.negative_slope) not in (int, float):
        raise _Opaque("the slope of its LeakyReLU is no plain number")
    # A pooling has as many channels as its input: known by the norm, if at all.
    inputs = outputs = None if norm is None else norm.num_features
    if pool is None:
        inputs, outputs = (depthwise or conv).in_channels, conv.out_channels
    if type(activation) is nn.PReLU and inputs and activation.num_parameters not in (1, inputs):
        raise _Opaque(f"{activation} does not fit {inputs} channels")
    if norm is not None and norm.num_features != outputs:
        raise _Opaque(f"{norm} does not fit {outputs} channels")
    return Stage(activation, depthwise, conv, norm, pool)


def _take_pool(rest: deque[_Placed], strides: tuple[int, ...]) -> nn.Module:
    """Take a pooling that keeps height and width, but for its stride."""
    placed = rest.popleft()
    where, pool = _at(placed), placed[1]
    for name in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(pool, name, 1)  # an average has no dilation
        pair = value if type(value) is tuple else (value, value)
        if [type(number) for number in pair] != [int, int] or pair[0] != pair[1]:
            raise _Opaque(f"{where} has {name} {value}, not twice the same")
    size, stride, padding = _one(pool.kernel_size), _one(pool.stride), _one(pool.padding)
    if size % 2 == 0:
        raise _Opaque(f"{where} has windows of {size}x{size}, which have no middle")
    if stride not in strides:
        raise _Opaque(f"{where} has stride {stride}, not {' or '.join(map(str, strides))}")
    if padding != size // 2:
        raise _Opaque(f"{where} has padding {padding}, not {size // 2}, which keeps height and width")
    if _one(getattr(pool, "dilation", 1)) != 1:
        raise _Opaque(f"{where} has dilation {_one(pool.dilation)}")
    for name in ("return_indices", "ceil_mode", "divisor_override"):
        value = getattr(pool, name, None)
        if value is not None and value is not False:
            raise _Opaque(f"{where} has {name} {value}")
    return pool


def _take_convolution(rest: deque[_Placed], strides: tuple[int, ...] | None) -> nn.Conv2d:
    """Take a convolution that keeps height and width, but for its stride.

    It is a dense one or, where ``strides`` names those that it may then have, a depthwise one.
    """
    if not rest or type(rest[0][1]) is not nn.Conv2d:
        raise _Opaque(f"{_at(rest[0]) if rest else 'the end'} stands where a convolution is expected")
    placed = rest.popleft()
    where, conv = _at(placed), placed[1]
    for name in ("kernel_size", "stride", "dilation"):
        value = getattr(conv, name)
        if type(value) is not tuple or len(value) != 2 or value[0] != value[1]:
            raise _Opaque(f"{where} has {name} {value}, not twice the same")
    (size, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
    if size % 2 == 0:
        raise _Opaque(f"{where} has kernels of {size}x{size}, which have no middle")
    if conv.groups == 1 or strides is None:
        strides = (1,)
    if conv.groups != 1 and not conv.groups == conv.in_channels == conv.out_channels:
        raise _Opaque(f"{where} has {conv.groups} groups for {conv.in_channels} to {conv.out_channels} channels")
    if conv.groups != 1 and conv.bias is not None:
        raise _Opaque(f"{where} is depthwise and has a bias")
    if stride not in strides:
        raise _Opaque(f"{where} has stride {stride}, not {' or '.join(map(str, strides))}")
    padding = dilation * (size - 1) // 2
    if conv.padding != (padding, padding) and (conv.padding != "same" or stride != 1):
        raise _Opaque(f"{where} has padding {conv.padding}, not {padding}, which keeps height and width")
    if conv.padding_mode != "zeros":
        raise _Opaque(f"{where} has padding_mode '{conv.padding_mode}'")
    return conv


def _check_tensors(layers: list[_Placed]) -> None:
    """Refuse layers whose tensors are not those that their class makes, plain, in one format and each used once."""
    seen: list[Tensor] = []
    for placed in layers:
        layer = placed[1]
        parameters, buffers = _shapes(layer)
        for home, shapes in ((layer._parameters, parameters), (layer._buffers, buffers)):
            for name, shape in shapes.items():
                tensor, what = home.get(name), f"the {name} of {_at(placed)}"
                if tensor is None and name in home and (name == "bias" or type(layer) is nn.BatchNorm2d):
                    continue
                if type(tensor) not in (nn.Parameter, Tensor) or tensor.shape != shape:
                    raise _Opaque(f"{what} is no plain registered tensor of shape {shape}")
                if not tensor.is_floating_point():
                    raise _Opaque(f"{what} is {tensor.dtype}, not floating point")
                if any(tensor is other for other in seen):
                    raise _Opaque(f"{what} is used for the second time")
                seen.append(tensor)
                if (tensor.dtype, tensor.device) != (seen[0].dtype, seen[0].device):
                    raise _Opaque(
                        f"{what} is {tensor.dtype} on {tensor.device}, others are {seen[0].dtype} on {seen[0].device}"
                    )
            if type(layer) is nn.BatchNorm2d and len({home[name] is None for name in shapes}) != 1:
                raise _Opaque(f"{_at(placed)} has only one of {' and '.join(shapes)}")


def _shapes(layer: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes of the parameters and of the buffers that a layer's forward reads."""
    if type(layer) is nn.Conv2d:
        kernel = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return {"weight": kernel, "bias": (layer.out_channels,)}, {}
    if type(layer) is nn.BatchNorm2d:
        channels = (layer.num_features,)
        return dict.fromkeys(("weight", "bias"), channels), dict.fromkeys(("running_mean", "running_var"), channels)
    return ({"weight": (layer.num_parameters,)} if type(layer) is nn.PReLU else {}), {}
