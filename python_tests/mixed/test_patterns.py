"""Recognised candidates compute what their stages say; whatever would make that untrue makes them opaque."""

import copy
import functools
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn.modules import module as for_all_modules
from torch.nn.utils import parametrizations, parametrize, prune

from srnas_fast.errors import InputError
from srnas_fast.mixed.layers import Sine, Zero
from srnas_fast.mixed.patterns import recognise
from srnas_fast.mixed.unfold import layers_of, register_pattern
from srnas_fast.spaces.hinas.operations import CANDIDATES

C = 4


def dense(size=3, dilation=1, inputs=C, outputs=C, bias=False, **kwargs):
    kwargs = {"padding": dilation * (size // 2)} | kwargs
    return nn.Conv2d(inputs, outputs, size, dilation=dilation, bias=bias, **kwargs)


def depthwise(size=3, dilation=1, channels=C, **kwargs):
    return dense(size, dilation, channels, channels, **({"groups": channels} | kwargs))


def separable(size=3, dilation=1, stride=1, norm=False, affine=False, act=nn.ReLU):
    layers = [act(), depthwise(size, dilation, stride=stride), dense(1)]
    return layers + [nn.BatchNorm2d(C, affine=affine)] * norm


def twice(size, stride=1, **kwargs):
    return nn.Sequential(*separable(size, stride=stride, **kwargs), *separable(size, **kwargs))


def replay(found, x):
    """What the stages compute, layer by layer."""
    if found.kind == "zero":
        return x[:, :, :: found.stride, :: found.stride] * 0
    for stage in found.stages:
        for layer in (stage.activation, stage.depthwise, stage.conv, stage.pool, stage.norm):
            x = x if layer is None else layer(x)
    return x


def assert_recognised(op, kind, x=None):
    found = recognise(op)
    assert found.kind == kind, found.reason
    assert found.unchanged()
    x = torch.randn(2, C, 7, 5) if x is None else x
    y = op(x)
    assert torch.equal(replay(found, x), y)
    assert y.shape[2:] == tuple(-(-n // found.stride) for n in x.shape[2:])
    return found


class Wrapped(nn.Module):
    """As DARTS writes its candidates."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x)


# --- the published candidates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("activation", ["leaky", "relu", "prelu", "sine"])
def test_no_candidate_of_hinas_is_opaque(activation, affine):
    kinds = ["dense", "two-stage", "two-stage", "dense", "dense", "identity", "zero"]
    found = [
        assert_recognised(make(C, activation, affine), kind)
        for make, kind in zip(CANDIDATES.values(), kinds, strict=True)
    ]
    assert all(stage.norm is not None for f in found for stage in f.stages)
    assert (found[1].stages[1].activation is None) == (activation == "sine")
    assert found[4].stages[0].conv.dilation == (2, 2)
    if activation == "leaky":
        assert found[4].reason == "LeakyReLU(0.2) - dense 5x5 dilation 2 - batch norm"


def test_no_candidate_of_dlsr_is_opaque():
    for size in (1, 3, 5, 7):
        assert_recognised(dense(size), "dense")
    for size in (3, 5, 7):
        assert_recognised(Wrapped(twice(size)), "two-stage")
    for size in (3, 5):
        found = assert_recognised(Wrapped(nn.Sequential(*separable(size, 2))), "separable")
        assert found.reason == f"ReLU - depthwise {size}x{size} dilation 2 - pointwise"


@pytest.mark.parametrize("stride", [1, 2])
def test_no_candidate_of_darts_is_opaque(stride):
    pools = {
        "max pool 3x3": nn.MaxPool2d(3, stride, padding=1),
        "average pool 3x3": nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    }
    for name, pool in pools.items():
        found = assert_recognised(nn.Sequential(pool, nn.BatchNorm2d(C, affine=False)), "pool")
        assert found.reason == name + " stride 2" * (stride == 2) + " - batch norm"
        assert found.stride == stride
        assert [(stage.pool, stage.depthwise, stage.conv) for stage in found.stages] == [(pool, None, None)]
    assert_recognised(Zero(stride), "zero")
    assert_recognised(nn.Identity(), "identity")
    for size in (3, 5):
        assert_recognised(Wrapped(twice(size, stride, norm=True)), "two-stage")
        found = assert_recognised(Wrapped(nn.Sequential(*separable(size, 2, stride, norm=True))), "separable")
        assert found.stride == stride


@pytest.mark.parametrize("norm", [False, True])
def test_separable_candidates_of_hnas_are_recognised(norm):
    for size in (3, 5):
        assert_recognised(Wrapped(twice(size, norm=norm)), "two-stage")
        assert_recognised(Wrapped(nn.Sequential(*separable(size, 2, norm=norm))), "separable")


@pytest.mark.parametrize(
    "op, kind",
    [
        (nn.Sequential(), "identity"),
        (nn.Sequential(nn.Sequential(), nn.Identity()), "identity"),
        (nn.Sequential(Zero()), "zero"),
        (dense(3, bias=True), "dense"),
        (dense(7, 8), "dense"),
        (dense(5, 2, padding="same"), "dense"),
        (nn.Sequential(depthwise(3, padding="same"), dense(1, padding="same", bias=True)), "separable"),
        (nn.Sequential(nn.PReLU(C), depthwise(1), dense(1, outputs=6), nn.BatchNorm2d(6)), "separable"),
        (nn.Sequential(dense(), nn.BatchNorm2d(C, track_running_stats=False, momentum=None)), "dense"),
        (nn.Sequential(*separable(), nn.ReLU(inplace=True), depthwise(), dense(1)), "two-stage"),
        (nn.Sequential(act := nn.ReLU(), depthwise(), dense(1), act, depthwise(), dense(1)), "two-stage"),
        (nn.MaxPool2d(3, 1, 1), "pool"),
        (nn.MaxPool2d((5, 5), stride=(2, 2), padding=(2, 2), dilation=(1, 1)), "pool"),
        (nn.Sequential(nn.PReLU(C), nn.AvgPool2d(7, 1, (3, 3)), nn.BatchNorm2d(C)), "pool"),
        (nn.Sequential(nn.PReLU(C), nn.AvgPool2d(1, 2)), "pool"),
        (dense(3).double(), "dense"),
        (dense(3).bfloat16(), "dense"),
    ],
)
def test_other_forms_of_the_patterns(op, kind):
    dtype = next((p.dtype for p in op.parameters()), torch.float32)
    assert_recognised(op, kind, torch.randn(2, C, 7, 5).to(dtype))


def test_one_channel():
    x = torch.randn(2, 1, 5, 5)
    assert_recognised(depthwise(3, channels=1), "dense", x)
    assert recognise(nn.Sequential(depthwise(3, channels=1), dense(1, inputs=1, outputs=1))).kind == "opaque"


def test_random_sequences_replay():
    """Whatever is recognised computes what its stages say, and not everything is opaque."""
    draw = random.Random(0)
    makers = [
        lambda: draw.choice([nn.ReLU, nn.PReLU, Sine, nn.LeakyReLU])(),
        lambda: dense(draw.choice([1, 3, 5]), draw.choice([1, 2]), bias=draw.random() < 0.5),
        lambda: depthwise(draw.choice([3, 7]), draw.choice([1, 4]), stride=draw.choice([1, 1, 2])),
        lambda: dense(1),
        lambda: nn.BatchNorm2d(C, affine=draw.random() < 0.5),
        lambda: draw.choice([nn.MaxPool2d, nn.AvgPool2d])(3, draw.choice([1, 2]), 1),
        nn.Identity,
        nn.Tanh,
    ]
    kinds = []
    for _ in range(600):
        # Mostly in an order that means something.
        picks = [0, 2, 3, 4] * draw.choice([1, 2]) if draw.random() < 0.5 else [0, draw.choice([1, 5]), 4]
        picks = [draw.randrange(8) if draw.random() < 0.05 else p for p in picks if draw.random() < 0.9]
        op = nn.Sequential(*[makers[p]() for p in picks])
        op = Wrapped(op) if draw.random() < 0.5 else nn.Sequential(op)
        kinds.append(recognise(op).kind)
        if kinds[-1] != "opaque":
            assert_recognised(op, kinds[-1])
    assert all(kinds.count(kind) > 20 for kind in ("dense", "separable", "two-stage", "pool", "opaque"))


# --- wrapping ---------------------------------------------------------------------------------------------------------


def module_with(forward, **attributes):
    """A module with a submodule ``op`` and this forward."""
    cls = type("Custom", (nn.Module,), {"forward": forward, **attributes})
    module = cls()
    module.add_module("op", dense(3))
    return module


def documented(this, image: torch.Tensor) -> torch.Tensor:
    """Only calls its submodule."""
    # whatever the names
    return this.op(image)


def test_modules_that_only_call_one_are_seen_through():
    assert_recognised(module_with(documented), "dense")
    assert_recognised(module_with(lambda self, x: self.op(x)), "dense")
    deep = nn.Sequential(Wrapped(nn.Sequential(Wrapped(nn.ReLU()), nn.Identity())), Wrapped(Wrapped(dense(3))))
    assert_recognised(deep, "dense")
    assert [type(layer) for layer in layers_of(deep)] == [nn.ReLU, nn.Conv2d]


def generator(self, x):
    yield self.op(x)


async def coroutine(self, x):
    return self.op(x)


@torch.no_grad()
def decorated(self, x):
    return self.op(x)


def twice_called(self, x):
    return self.op(self.op(x))


def residual(self, x):
    return self.op(x) + x


@pytest.mark.parametrize(
    "forward",
    [
        twice_called,
        residual,
        generator,
        coroutine,
        decorated,
        lambda self, x: self.op(self),
        lambda self, x: self.op,
        lambda self, x: x.op(x),
        lambda self, x: self.op.op(x),
        lambda self, *x: self.op(x),
        lambda self, x, *rest: self.op(x),
        lambda self, x, **rest: self.op(x),
        lambda self, x, y=None: self.op(x),
        lambda self, *, x: self.op(x),
        lambda self, **x: self.op(x),
        lambda self, x: self.other(x),
        functools.partialmethod(residual),
    ],
)
def test_other_forwards_are_opaque(forward):
    found = recognise(module_with(forward))
    assert found.kind == "opaque"
    assert found.reason.startswith("Custom is no layer that the planner knows, nor a module whose forward only calls")


@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__getattr__", "__getattribute__", "op"])
def test_a_class_that_changes_what_calling_means_is_opaque(name):
    module = module_with(lambda self, x: self.op(x))
    setattr(type(module), name, getattr(nn.Module, name, None))
    assert name == "op" or recognise(module).kind == "dense"
    setattr(type(module), name, lambda self, *args: object.__getattribute__(self, *args))
    assert recognise(module).kind == "opaque"


def test_registered_classes():
    class Half(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope, self.body = slope, nn.Sequential(depthwise(5), dense(1))

        def forward(self, x):
            return self.body(nn.functional.leaky_relu(x, self.slope))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Half(0.1), Half(0.3)

        def forward(self, x):
            return self.two(self.one(x))

    op = Wrapped(Pair())
    unknown = recognise(op)
    assert unknown.reason.startswith("Pair at 'op' is no layer")
    register_pattern(Half, lambda half: [nn.LeakyReLU(half.slope), half.body])
    register_pattern(Pair, lambda pair: nn.Sequential(pair.one, pair.two))
    assert not unknown.unchanged()  # what was registered since may be about it
    found = assert_recognised(op, "two-stage")
    assert [stage.activation.negative_slope for stage in found.stages] == [0.1, 0.3]

    op.eval()
    assert found.unchanged()
    op.op.two.slope = 0.5
    assert not found.unchanged()
    assert assert_recognised(op, "two-stage").stages[1].activation.negative_slope == 0.5
    op.op.one.register_forward_hook(lambda *args: None)
    assert recognise(op).reason == "Half at 'op.one' has hooks"


def test_what_cannot_be_registered():
    class Own(nn.Module):
        pass

    with pytest.raises(InputError, match="Conv2d, which is understood already"):
        register_pattern(nn.Conv2d, lambda m: [m])
    with pytest.raises(InputError, match="a class derived from nn.Module"):
        register_pattern(Own(), lambda m: [m])
    with pytest.raises(InputError, match="unfold=3 for Own"):
        register_pattern(Own, 3)
    for found in (None, [None], 3):
        register_pattern(Own, lambda m, found=found: found)
        with pytest.raises(InputError, match="registered for Own returned"):
            recognise(Own())
    register_pattern(Own, lambda m: [nn.ReLU(), m])
    assert recognise(Own()).reason == "Own unfolds to itself"
    register_pattern(Own, lambda m: [nn.ReLU(), dense(3)])
    assert recognise(Own()).reason.startswith("Conv2d at '[1]' holds parameters")


# --- what makes a candidate opaque, is noticed when it comes and when it goes -----------------------------------------


def candidate():
    """act - depthwise - pointwise - norm, wrapped."""
    return Wrapped(nn.Sequential(*separable(3, norm=True, affine=True, act=nn.PReLU)))


class OwnConv(nn.Conv2d):
    pass


def hook(*args, **kwargs):
    return None


def hooked(register, at="op.1", **kwargs):
    def change(op):
        return getattr(op.get_submodule(at), register)(hook, **kwargs).remove

    return change


def hooked_everywhere(register):
    return lambda op: getattr(for_all_modules, register)(hook).remove


def setting(at, name, value):
    """Set an attribute of a submodule."""

    def change(op):
        module = op.get_submodule(at)
        if name not in module.__dict__ and not hasattr(module, name):
            setattr(module, name, value)
            return lambda: delattr(module, name)
        before = getattr(module, name)
        own = name in module.__dict__ or name in {*module._parameters, *module._buffers, *module._modules}
        setattr(module, name, value)
        return lambda: setattr(module, name, before) if own else delattr(module, name)

    return change


def parametrized(op):
    conv = op.op[1]
    parametrize.register_parametrization(conv, "weight", nn.Identity())
    return lambda: parametrize.remove_parametrizations(conv, "weight")


def weight_normed(op):
    conv = op.op[2]
    parametrizations.weight_norm(conv)
    return lambda: parametrize.remove_parametrizations(conv, "weight")


def old_weight_norm(op):
    conv = nn.utils.weight_norm(op.op[2])
    return lambda: nn.utils.remove_weight_norm(conv)


def old_spectral_norm(op):
    conv = nn.utils.spectral_norm(op.op[2])
    return lambda: nn.utils.remove_spectral_norm(conv)


def pruned(op):
    prune.identity(op.op[1], "weight")
    return lambda: prune.remove(op.op[1], "weight")


def compiled(op):
    op.op[0].compile()
    return lambda: delattr(op.op[0], "_compiled_call_impl")


def plain_weight(op):
    conv = op.op[2]
    before = conv.weight
    del conv.weight
    conv.weight = before.detach()

    def undo():
        del conv.weight
        conv.weight = before

    return undo


def buffer_weight(op):
    conv = op.op[2]
    before = conv.weight
    del conv.weight
    conv.register_buffer("weight", before.detach())

    def undo():
        del conv.weight
        conv.weight = before

    return undo


def hidden_weight(op):
    op.op[2].__dict__["weight"] = torch.zeros(C, C, 1, 1)
    return lambda: op.op[2].__dict__.pop("weight")


def other_data(at, name, make):
    def change(op):
        parameter = getattr(op.get_submodule(at), name)
        before = parameter.data
        parameter.data = make(before)
        return lambda: setattr(parameter, "data", before)

    return change


def shared_weight(op):
    norm, before = op.op[3], op.op[3].bias
    norm.bias = norm.weight
    return lambda: setattr(norm, "bias", before)


class Residual(Wrapped):
    def forward(self, x):
        return self.op(x) + x


def other_wrapper(op):
    op.__class__ = Residual
    return lambda: setattr(op, "__class__", Wrapped)


def own_class(op):
    op.op[1].__class__ = OwnConv
    return lambda: setattr(op.op[1], "__class__", nn.Conv2d)


CHANGES = [
    (hooked("register_forward_hook"), "Conv2d at 'op.1' has hooks"),
    (hooked("register_forward_hook", always_call=True, with_kwargs=True), "has hooks"),
    (hooked("register_forward_pre_hook", "op.3"), "BatchNorm2d at 'op.3' has hooks"),
    (hooked("register_forward_pre_hook", "op.0", with_kwargs=True), "PReLU at 'op.0' has hooks"),
    (hooked("register_full_backward_hook", "op"), "Sequential at 'op' has hooks"),
    (hooked("register_full_backward_pre_hook", ""), "Wrapped has hooks"),
    (hooked("register_backward_hook"), "has hooks"),
    (hooked_everywhere("register_module_forward_hook"), "hooks for all modules"),
    (hooked_everywhere("register_module_forward_pre_hook"), "hooks for all modules"),
    (hooked_everywhere("register_module_full_backward_hook"), "hooks for all modules"),
    (hooked_everywhere("register_module_full_backward_pre_hook"), "hooks for all modules"),
    (setting("op.1", "forward", lambda x: x), "Conv2d at 'op.1' has a forward of its own"),
    (setting("op.1", "_conv_forward", hook), "has a _conv_forward of its own"),
    (setting("", "forward", lambda x: x), "Wrapped has a forward of its own"),
    (setting("op", "0", nn.ReLU(inplace=True)), "ReLU at 'op.0' changes in place what all candidates read"),
    (setting("op", "0", nn.LeakyReLU(torch.tensor(0.2))), "slope of its LeakyReLU is no plain number"),
    (setting("op", "0", nn.PReLU(3)), "PReLU(num_parameters=3) does not fit 4 channels"),
    (setting("op", "0", nn.GELU()), "GELU at 'op.0' is no layer that the planner knows"),
    (setting("op", "0", Zero()), "Zero at 'op.0' stands where a convolution is expected"),
    (setting("op", "0", None), "there is no module at 'op.0'"),
    (setting("op", "1", OwnConv(C, C, 3, padding=1, groups=C, bias=False)), "OwnConv at 'op.1' is no layer"),
    (setting("op", "1", nn.LazyConv2d(C, 3, padding=1, groups=C)), "LazyConv2d at 'op.1' has hooks"),
    (setting("op", "3", nn.LazyBatchNorm2d()), "LazyBatchNorm2d at 'op.3' has hooks"),
    (setting("op", "1", depthwise(bias=True)), "Conv2d at 'op.1' is depthwise and has a bias"),
    (setting("op", "1", depthwise(groups=2)), "Conv2d at 'op.1' has 2 groups for 4 to 4 channels"),
    (setting("op", "1", dense(3, outputs=2 * C, groups=C)), "has 4 groups for 4 to 8 channels"),
    (setting("op", "1", depthwise(3, stride=3)), "Conv2d at 'op.1' has stride 3, not 1 or 2"),
    (setting("op", "1", depthwise(3, stride=(1, 2))), "has stride (1, 2), not twice the same"),
    (
        setting("op", "1", nn.Conv2d(C, C, (3, 5), padding=(1, 2), groups=C, bias=False)),
        "has kernel_size (3, 5), not twice the same",
    ),
    (
        setting("op", "1", nn.Conv2d(C, C, 3, padding=(1, 2), dilation=(1, 2), groups=C, bias=False)),
        "has dilation (1, 2)",
    ),
    (setting("op", "1", depthwise(4)), "has kernels of 4x4"),
    (setting("op", "1", depthwise(3, padding=0)), "Conv2d at 'op.1' has padding (0, 0), not 1"),
    (setting("op", "1", depthwise(3, padding="valid")), "has padding valid, not 1"),
    (setting("op", "1", depthwise(3, padding_mode="reflect")), "has padding_mode 'reflect'"),
    (setting("op", "1", depthwise(5, 2, padding=2)), "has padding (2, 2), not 4"),
    (setting("op", "1", nn.Conv1d(C, C, 1)), "Conv1d at 'op.1' is no layer"),
    (setting("op", "1", nn.ConvTranspose2d(C, C, 1)), "ConvTranspose2d at 'op.1' is no layer"),
    (setting("op", "2", dense(3)), "is no pointwise convolution for"),
    (setting("op", "2", dense(1, inputs=8)), "is no pointwise convolution for"),
    (setting("op", "2", dense(1, stride=2)), "Conv2d at 'op.2' has stride 2, not 1"),
    (setting("op", "2", depthwise(3, stride=2)), "Conv2d at 'op.2' has stride 2, not 1"),
    (setting("op", "2", dense(1, groups=2)), "Conv2d at 'op.2' has 2 groups"),
    (setting("op", "2", nn.BatchNorm2d(C)), "BatchNorm2d at 'op.2' stands where a convolution is expected"),
    (setting("op", "3", nn.BatchNorm2d(8)), "does not fit 4 channels"),
    (setting("op", "3", nn.SyncBatchNorm(C)), "SyncBatchNorm at 'op.3' is no layer"),
    (setting("op", "3", nn.ReLU()), "the end stands where a convolution is expected"),
    (setting("op", "3", nn.Sequential(*separable(), *separable())), "no pattern has the stages"),
    (setting("op", "3", nn.Sequential(*separable(stride=2))), "has stride 2, not 1"),
    (setting("op", "3", nn.Sequential(depthwise(channels=8), dense(1, inputs=8))), "differ in the channels between"),
    (setting("op.1", "stride", (3, 3)), "has stride 3"),
    (setting("op.1", "stride", 2), "has stride 2, not twice the same"),
    (setting("op.1", "padding", (0, 0)), "has padding (0, 0)"),
    (setting("op.1", "dilation", (2, 2)), "has padding (1, 1), not 2"),
    (setting("op.1", "groups", 2), "has 2 groups"),
    (setting("op.1", "kernel_size", (5, 5)), "has padding (1, 1), not 2"),
    (setting("op.2", "kernel_size", (3, 3)), "has padding (0, 0), not 1"),
    (setting("op.2", "padding_mode", "circular"), "has padding_mode"),
    (setting("op.2", "weight", None), "the weight of Conv2d at 'op.2' is no plain registered tensor"),
    (setting("op.0", "weight", None), "the weight of PReLU at 'op.0' is no plain registered tensor"),
    (setting("op.3", "weight", None), "BatchNorm2d at 'op.3' has only one of weight and bias"),
    (setting("op.3", "running_var", None), "has only one of running_mean and running_var"),
    (
        setting("op.3", "running_mean", torch.zeros(C).double()),
        "running_mean of BatchNorm2d at 'op.3' is torch.float64",
    ),
    (setting("op", "2", dense(1).double()), "the weight of Conv2d at 'op.2' is torch.float64 on cpu, others are torch"),
    (setting("op", "2", dense(1).to("meta")), "is torch.float32 on meta"),
    (setting("op", "2", nn.Conv2d(C, C, 1, bias=False, dtype=torch.complex64)), "is torch.complex64, not floating"),
    (setting("", "op", nn.MaxPool2d(3)), "MaxPool2d at 'op' has stride 3, not 1 or 2"),
    (setting("", "op", nn.AdaptiveMaxPool2d(3)), "AdaptiveMaxPool2d at 'op' is no layer"),
    (setting("op", "2", nn.MaxPool2d(3, 1, 1)), "MaxPool2d at 'op.2' stands where a convolution is expected"),
    (
        setting("op", "3", nn.MaxPool2d(3, 1, 1)),
        "no pattern has the stages PReLU - depthwise 3x3 - pointwise; max pool",
    ),
    (setting("op", "3", nn.AvgPool2d(3, 2, 1)), "AvgPool2d at 'op.3' has stride 2, not 1"),
    (other_data("op.2", "weight", lambda w: w[:2]), "is no plain registered tensor of shape (4, 4, 1, 1)"),
    (other_data("op.1", "weight", lambda w: w.double()), "the weight of Conv2d at 'op.1' is torch.float64"),
    (
        other_data("op.0", "weight", lambda w: w.bfloat16()),
        "Conv2d at 'op.1' is torch.float32 on cpu, others are torch.bf",
    ),
    (shared_weight, "the bias of BatchNorm2d at 'op.3' is used for the second time"),
    (plain_weight, "the weight of Conv2d at 'op.2' is no plain registered tensor"),
    (buffer_weight, "the weight of Conv2d at 'op.2' is no plain registered tensor"),
    (hidden_weight, "Conv2d at 'op.2' has a weight of its own"),
    (other_wrapper, "Residual is no layer"),
    (own_class, "OwnConv at 'op.1' is no layer"),
    (parametrized, "ParametrizedConv2d at 'op.1' is no layer"),
    (weight_normed, "ParametrizedConv2d at 'op.2' is no layer"),
    (old_weight_norm, "Conv2d at 'op.2' has hooks"),
    (old_spectral_norm, "Conv2d at 'op.2' has hooks"),
    (pruned, "Conv2d at 'op.1' has hooks"),
    (compiled, "PReLU at 'op.0' is compiled"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("change, reason", CHANGES, ids=[f"{i} {reason}" for i, (_, reason) in enumerate(CHANGES)])
def test_changes_are_noticed_and_so_is_their_undoing(change, reason):
    op = candidate()
    before = assert_recognised(op, "separable")
    undo = change(op)
    try:
        assert not before.unchanged()
        found = recognise(op)
        assert found.kind == "opaque" and found.stages == ()
        assert reason in found.reason
        assert found.unchanged()
    finally:
        undo()
    assert not found.unchanged()
    assert_recognised(op, "separable")


POOL_CHANGES = [
    (nn.MaxPool2d, "kernel_size", (3, 5), "MaxPool2d at '1' has kernel_size (3, 5), not twice the same"),
    (nn.AvgPool2d, "kernel_size", (3,), "AvgPool2d at '1' has kernel_size (3,), not twice the same"),
    (nn.AvgPool2d, "kernel_size", [3, 3], "has kernel_size [3, 3], not twice the same"),
    (nn.AvgPool2d, "kernel_size", 2, "has windows of 2x2, which have no middle"),
    (nn.MaxPool2d, "kernel_size", 5, "has padding 1, not 2, which keeps height and width"),
    (nn.MaxPool2d, "stride", 3, "has stride 3, not 1 or 2"),
    (nn.MaxPool2d, "stride", None, "has stride None, not twice the same"),
    (nn.AvgPool2d, "stride", (1, 2), "has stride (1, 2), not twice the same"),
    (nn.MaxPool2d, "padding", 0, "has padding 0, not 1"),
    (nn.AvgPool2d, "padding", (1, 0), "has padding (1, 0), not twice the same"),
    (nn.MaxPool2d, "dilation", 2, "has dilation 2"),
    (nn.MaxPool2d, "dilation", (1, 2), "has dilation (1, 2), not twice the same"),
    (nn.MaxPool2d, "return_indices", True, "has return_indices True"),
    (nn.MaxPool2d, "ceil_mode", True, "MaxPool2d at '1' has ceil_mode True"),
    (nn.AvgPool2d, "ceil_mode", True, "AvgPool2d at '1' has ceil_mode True"),
    (nn.AvgPool2d, "divisor_override", 4, "has divisor_override 4"),
    (nn.AvgPool2d, "forward", lambda x: x, "AvgPool2d at '1' has a forward of its own"),
]


@pytest.mark.parametrize(
    "pool, name, value, reason", POOL_CHANGES, ids=[f"{c[0].__name__} {c[3]}" for c in POOL_CHANGES]
)
def test_changes_of_a_pool_are_noticed_and_so_is_their_undoing(pool, name, value, reason):
    op = nn.Sequential(nn.ReLU(), pool(3, 1, 1), nn.BatchNorm2d(C))
    before = assert_recognised(op, "pool")
    undo = setting("1", name, value)(op)
    assert not before.unchanged()
    found = recognise(op)
    assert found.kind == "opaque" and found.stages == ()
    assert reason in found.reason
    undo()
    assert not found.unchanged()
    assert_recognised(op, "pool")


def test_whether_an_average_counts_the_padding_is_noticed():
    op = nn.AvgPool2d(3, 1, 1)
    found = assert_recognised(op, "pool")
    assert found.reason == "average pool 3x3 with padding"
    op.count_include_pad = False
    assert not found.unchanged()
    assert assert_recognised(op, "pool").reason == "average pool 3x3"


class Returns(nn.Module):
    """As DARTS writes the skip."""

    def forward(self, x):
        return x


class ReturnsItself(nn.Module):
    def forward(self, x):
        return self


class ReturnsADefault(nn.Module):
    def forward(self, x, y=None):
        return x


class ReturnsAList(nn.Module):
    def forward(self, *x):
        return x


class CalledOtherwise(Returns):
    def __call__(self, x):
        return 2 * x


def test_a_forward_that_only_returns_its_input_is_the_identity():
    assert_recognised(Returns(), "identity")
    assert_recognised(nn.Sequential(nn.ReLU(), Returns(), dense(3)), "dense")
    hooked = Returns()
    hooked.register_forward_hook(lambda module, args, y: 2 * y)
    for other in (ReturnsItself(), ReturnsADefault(), ReturnsAList(), CalledOtherwise(), hooked):
        assert recognise(other).kind == "opaque"


def test_other_layers_around_a_pool_are_opaque():
    pool = nn.MaxPool2d(3, 1, 1)
    for layers, reason in [
        ([pool, pool], "no pattern has the stages max pool 3x3; max pool 3x3"),
        ([pool, dense(1)], "no pattern has the stages max pool 3x3; dense 1x1"),
        ([dense(1), pool], "no pattern has the stages dense 1x1; max pool 3x3"),
        ([pool, nn.ReLU()], "the end stands where a convolution is expected"),
        ([nn.PReLU(3), pool, nn.BatchNorm2d(C)], "PReLU(num_parameters=3) does not fit 4 channels"),
        ([nn.LeakyReLU(torch.tensor(0.2)), pool], "slope of its LeakyReLU is no plain number"),
        ([nn.ReLU(inplace=True), pool], "changes in place what all candidates read"),
    ]:
        found = recognise(nn.Sequential(*layers))
        assert found.kind == "opaque" and reason in found.reason


def test_a_changed_candidate_may_follow_another_pattern():
    op = candidate()
    before = recognise(op)
    op.op[1].stride = (2, 2)
    assert not before.unchanged()
    assert assert_recognised(op, "separable").stride == 2
    op.op[2] = nn.Identity()
    op.op[1] = dense(5)
    assert assert_recognised(op, "dense").reason == "PReLU - dense 5x5 - batch norm"


def test_a_layer_that_is_used_twice_is_opaque():
    half = separable(norm=True)
    found = recognise(nn.Sequential(*half, *half))
    assert found.reason == "the weight of Conv2d at '1' is used for the second time"
    norm = nn.BatchNorm2d(C, affine=False)
    found = recognise(nn.Sequential(depthwise(), dense(1), norm, depthwise(), dense(1), norm))
    assert found.reason == "the running_mean of BatchNorm2d at '2' is used for the second time"


def test_training_goes_on_without_a_second_look():
    op = candidate()
    found = recognise(op)
    optimiser = torch.optim.SGD(op.parameters(), lr=0.1)
    op(torch.randn(2, C, 5, 5)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    op.eval().requires_grad_(False)
    op.load_state_dict(candidate().state_dict())
    op.op[2].weight.requires_grad_().register_hook(lambda grad: grad)  # the fused branch's gradients reach it
    assert found.unchanged()


def test_conversion_needs_a_second_look():
    op = candidate()
    found = recognise(op)
    op.double()
    assert not found.unchanged()
    assert_recognised(op, "separable", torch.randn(2, C, 5, 5, dtype=torch.float64))


def test_the_tensors_of_a_functional_call_are_accepted():
    class Outer(Wrapped):
        def forward(self, x):
            self.found = recognise(self.op)
            return self.op(x)

    outer, weight = Outer(candidate()), torch.zeros(C, C, 1, 1)
    torch.func.functional_call(outer, {"op.op.2.weight": weight}, torch.randn(2, C, 5, 5))
    assert outer.found.kind == "separable"
    assert not outer.found.unchanged()  # the candidate has its own weight again


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found))])
def test_a_copy_is_about_the_copied_candidate(copied):
    holder = {"op": candidate()}
    holder["found"] = recognise(holder["op"])
    twin = copied(holder)
    assert twin["found"].op is twin["op"] and twin["found"].unchanged()
    assert twin["found"].stages[0].conv is twin["op"].op[2]
    twin["op"].op[1].stride = (2, 2)
    assert not twin["found"].unchanged()
    assert holder["found"].unchanged()


def test_compiled_and_lazy_candidates_are_opaque():
    for op in (torch.compile(dense(3)), nn.LazyConv2d(C, 3), nn.LazyBatchNorm2d()):
        found = recognise(op)
        assert found.kind == "opaque" and found.unchanged()


def test_a_lazy_candidate_is_recognised_once_it_is_initialised():
    op = nn.LazyConv2d(C, 3, padding=1)
    found = recognise(op)
    op(torch.randn(1, C, 5, 5))
    assert not found.unchanged()
    assert_recognised(op, "dense")


# --- the plain layers -------------------------------------------------------------------------------------------------


def test_zero():
    x = torch.tensor([[[[1.0, float("nan"), 3.0], [4.0, 5.0, 6.0]]]])
    assert Zero()(x).isnan().tolist() == [[[[False, True, False], [False, False, False]]]]
    assert torch.equal(Zero(2)(x), torch.zeros(1, 1, 1, 2))
    assert repr(Zero(2)) == "Zero(stride=2)"
    for stride in (0, -1, 1.0, "2"):
        with pytest.raises(InputError, match="stride"):
            Zero(stride)


def test_sine():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(Sine()(x), torch.sin(x))
    assert torch.autograd.gradcheck(Sine(), x)
