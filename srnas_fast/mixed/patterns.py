"""What a candidate operation computes, read off its structure: an activation, a convolution or pooling, a batch norm.

What follows no pattern is opaque.
"""

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor, nn

from srnas_fast.mixed.layers import Sine, Zero
from srnas_fast.mixed.stage import Stage, one_of
from srnas_fast.mixed.unchanged import attributes_of, photograph
from srnas_fast.mixed.unfold import UNFOLD, Opaque, Placed, at, hooks_for_all, placed_layers

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, Sine)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


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
        return photograph(self._modules) == self._photograph and all(
            now is before
            for module, values in self._attributes
            for now, before in zip(attributes_of(module), values, strict=True)  # the photograph tells their number
        )

    def __reduce__(self):
        return recognise, (self.op,)


def recognise(op: nn.Module) -> Recognised:
    """Find out which pattern a candidate operation follows; its input is taken to be (N, C, H, W).

    Not for TorchScript, whose modules show new tensors each time one looks.

    >>> recognise(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False))).reason
    'LeakyReLU(0.2) - dense 3x3 dilation 2'
    """
    try:
        if any(hooks_for_all()):
            raise Opaque("hooks for all modules are registered (torch.nn.modules.module.register_module_*)")
        layers = placed_layers(op)
        kind, stages, stride = _match(layers)
        _check_tensors(layers)
        reason = " - ".join(map(str, stages)) or kind
    except Opaque as why:
        kind, stages, stride, reason = "opaque", (), 1, str(why)
    modules = tuple(op.modules())
    attributes = [(module, attributes_of(module)) for module in modules if type(module) in UNFOLD]
    return Recognised(op, kind, stages, stride, reason, modules, photograph(modules), attributes)


_KINDS = {("dense",): "dense", ("separable",): "separable", ("separable",) * 2: "two-stage", ("pool",): "pool"}


def _match(layers: list[Placed]) -> tuple[str, tuple[Stage, ...], int]:
    """The kind of a sequence of layers, its stages and its stride."""
    if not layers:
        return "identity", (), 1
    if [type(layer) for _, layer in layers] == [Zero]:
        return "zero", (), layers[0][1].stride
    if getattr(layers[0][1], "inplace", False):
        raise Opaque(f"{at(layers[0])} changes in place what all candidates read; build it with inplace=False")
    rest, stages = deque(layers), []
    while rest:
        stages.append(_take_stage(rest, strides=(1,) if stages else (1, 2)))
    kind = _KINDS.get(tuple(stage.kind for stage in stages))
    if kind is None:
        raise Opaque(f"no pattern has the stages {'; '.join(map(str, stages))}")
    if kind == "two-stage" and stages[0].conv.out_channels != stages[1].depthwise.in_channels:
        raise Opaque(f"{stages[0].conv} and {stages[1].depthwise} differ in the channels between them")
    return kind, tuple(stages), stages[0].stride


def _take_stage(rest: deque[Placed], strides: tuple[int, ...]) -> Stage:
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
                raise Opaque(f"{conv} is no pointwise convolution for {depthwise}")
    if rest and type(rest[0][1]) is nn.BatchNorm2d:
        norm = rest.popleft()[1]
    if type(activation) is nn.LeakyReLU and type(activation.negative_slope) not in (int, float):
        raise Opaque("the slope of its LeakyReLU is no plain number")
    # A pooling has as many channels as its input: known by the norm, if at all.
    inputs = outputs = None if norm is None else norm.num_features
    if pool is None:
        inputs, outputs = (depthwise or conv).in_channels, conv.out_channels
    if type(activation) is nn.PReLU and inputs and activation.num_parameters not in (1, inputs):
        raise Opaque(f"{activation} does not fit {inputs} channels")
    if norm is not None and norm.num_features != outputs:
        raise Opaque(f"{norm} does not fit {outputs} channels")
    return Stage(activation, depthwise, conv, norm, pool)


def _take_pool(rest: deque[Placed], strides: tuple[int, ...]) -> nn.Module:
    """Take a pooling that keeps height and width, but for its stride."""
    placed = rest.popleft()
    where, pool = at(placed), placed[1]
    for name in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(pool, name, 1)  # an average has no dilation
        pair = value if type(value) is tuple else (value, value)
        if [type(number) for number in pair] != [int, int] or pair[0] != pair[1]:
            raise Opaque(f"{where} has {name} {value}, not twice the same")
    size, stride, padding = one_of(pool.kernel_size), one_of(pool.stride), one_of(pool.padding)
    if size % 2 == 0:
        raise Opaque(f"{where} has windows of {size}x{size}, which have no middle")
    if stride not in strides:
        raise Opaque(f"{where} has stride {stride}, not {' or '.join(map(str, strides))}")
    if padding != size // 2:
        raise Opaque(f"{where} has padding {padding}, not {size // 2}, which keeps height and width")
    if one_of(getattr(pool, "dilation", 1)) != 1:
        raise Opaque(f"{where} has dilation {one_of(pool.dilation)}")
    for name in ("return_indices", "ceil_mode", "divisor_override"):
        value = getattr(pool, name, None)
        if value is not None and value is not False:
            raise Opaque(f"{where} has {name} {value}")
    return pool


def _take_convolution(rest: deque[Placed], strides: tuple[int, ...] | None) -> nn.Conv2d:
    """Take a convolution that keeps height and width, but for its stride.

    It is a dense one or, where ``strides`` names those that it may then have, a depthwise one.
    """
    if not rest or type(rest[0][1]) is not nn.Conv2d:
        raise Opaque(f"{at(rest[0]) if rest else 'the end'} stands where a convolution is expected")
    placed = rest.popleft()
    where, conv = at(placed), placed[1]
    for name in ("kernel_size", "stride", "dilation"):
        value = getattr(conv, name)
        if type(value) is not tuple or len(value) != 2 or value[0] != value[1]:
            raise Opaque(f"{where} has {name} {value}, not twice the same")
    (size, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
    if size % 2 == 0:
        raise Opaque(f"{where} has kernels of {size}x{size}, which have no middle")
    if conv.groups == 1 or strides is None:
        strides = (1,)
    if conv.groups != 1 and not conv.groups == conv.in_channels == conv.out_channels:
        raise Opaque(f"{where} has {conv.groups} groups for {conv.in_channels} to {conv.out_channels} channels")
    if conv.groups != 1 and conv.bias is not None:
        raise Opaque(f"{where} is depthwise and has a bias")
    if stride not in strides:
        raise Opaque(f"{where} has stride {stride}, not {' or '.join(map(str, strides))}")
    padding = dilation * (size - 1) // 2
    if conv.padding != (padding, padding) and (conv.padding != "same" or stride != 1):
        raise Opaque(f"{where} has padding {conv.padding}, not {padding}, which keeps height and width")
    if conv.padding_mode != "zeros":
        raise Opaque(f"{where} has padding_mode '{conv.padding_mode}'")
    return conv


def _check_tensors(layers: list[Placed]) -> None:
    """Refuse layers whose tensors are not those that their class makes, plain, in one format and each used once."""
    seen: list[Tensor] = []
    for placed in layers:
        layer = placed[1]
        parameters, buffers = _shapes(layer)
        for home, shapes in ((layer._parameters, parameters), (layer._buffers, buffers)):
            for name, shape in shapes.items():
                tensor, what = home.get(name), f"the {name} of {at(placed)}"
                if tensor is None and name in home and (name == "bias" or type(layer) is nn.BatchNorm2d):
                    continue
                if type(tensor) not in (nn.Parameter, Tensor) or tensor.shape != shape:
                    raise Opaque(f"{what} is no plain registered tensor of shape {shape}")
                if not tensor.is_floating_point():
                    raise Opaque(f"{what} is {tensor.dtype}, not floating point")
                if any(tensor is other for other in seen):
                    raise Opaque(f"{what} is used for the second time")
                seen.append(tensor)
                if (tensor.dtype, tensor.device) != (seen[0].dtype, seen[0].device):
                    raise Opaque(
                        f"{what} is {tensor.dtype} on {tensor.device}, others are {seen[0].dtype} on {seen[0].device}"
                    )
            if type(layer) is nn.BatchNorm2d and len({home[name] is None for name in shapes}) != 1:
                raise Opaque(f"{at(placed)} has only one of {' and '.join(shapes)}")


def _shapes(layer: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes of the parameters and of the buffers that a layer's forward reads."""
    if type(layer) is nn.Conv2d:
        kernel = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return {"weight": kernel, "bias": (layer.out_channels,)}, {}
    if type(layer) is nn.BatchNorm2d:
        channels = (layer.num_features,)
        return dict.fromkeys(("weight", "bias"), channels), dict.fromkeys(("running_mean", "running_var"), channels)
    return ({"weight": (layer.num_parameters,)} if type(layer) is nn.PReLU else {}), {}
