"""Every branch of MixedOp against plain autograd: random sets of candidates, layouts, types, weights, supports."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.mixed import PlainMixedOp, Sine, Zero, program

ACTIVATIONS = {
    "none": lambda: [],
    "relu": lambda: [nn.ReLU()],
    "leaky": lambda: [nn.LeakyReLU(0.2)],
    "prelu": lambda: [nn.PReLU()],
    "prelu per channel": lambda: [nn.PReLU(None)],
    "sine": lambda: [Sine()],
}
NORMS = {
    "none": lambda c: [],
    "plain": lambda c: [nn.BatchNorm2d(c, affine=False)],
    "affine": lambda c: [nn.BatchNorm2d(c)],
    "cumulative": lambda c: [nn.BatchNorm2d(c, momentum=None)],
    "untracked": lambda c: [nn.BatchNorm2d(c, track_running_stats=False)],
}


def activation(name, channels):
    return [nn.PReLU(channels)] if name == "prelu per channel" else ACTIVATIONS[name]()


def dense(c, act="none", size=3, dilation=1, norm="none", bias=False):
    conv = nn.Conv2d(c, c, size, padding=dilation * (size // 2), dilation=dilation, bias=bias)
    return nn.Sequential(*activation(act, c), conv, *NORMS[norm](c))


def half(c, act, size, dilation, stride, norm, bias):
    depthwise = nn.Conv2d(c, c, size, stride, dilation * (size // 2), dilation, groups=c, bias=False)
    return [*activation(act, c), depthwise, nn.Conv2d(c, c, 1, bias=bias), *NORMS[norm](c)]


def separable(c, act="none", size=3, dilation=1, stride=1, norm="none", bias=False):
    return nn.Sequential(*half(c, act, size, dilation, stride, norm, bias))


def two_stage(c, act="none", size=3, dilation=1, stride=1, norm="none", bias=False):
    return nn.Sequential(*half(c, act, size, dilation, stride, norm, bias), *half(c, act, size, 1, 1, norm, bias))


def pooled(c, kind, act="none", size=3, stride=1, norm="none"):
    return nn.Sequential(*activation(act, c), kind(size, stride, size // 2), *NORMS[norm](c))


def candidate(stride):
    settings = {
        "act": st.sampled_from(list(ACTIVATIONS)),
        "size": st.sampled_from([1, 3, 5, 7]),
        "dilation": st.sampled_from([1, 2, 4, 8]),
        "norm": st.sampled_from(list(NORMS)),
        "bias": st.booleans(),
    }
    kinds = [separable, two_stage] + [dense] * (stride == 1)
    fused = st.builds(
        lambda kind, **s: lambda c: kind(c, **s, **({} if kind is dense else {"stride": stride})),
        st.sampled_from(kinds),
        **settings,
    )
    pools = st.builds(
        lambda kind, **s: lambda c: pooled(c, kind, stride=stride, **s),
        st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
        **{name: settings[name] for name in ("act", "size", "norm")},
    )
    opaque = lambda c: nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(1, stride))  # noqa: E731
    rest = [lambda c: Zero(stride), opaque] + [lambda c: nn.Identity()] * (stride == 1)
    return fused | pools | st.sampled_from(rest)


@st.composite
def cases(draw):
    stride = draw(st.sampled_from([1, 1, 2]))
    makers = draw(st.lists(candidate(stride), min_size=1, max_size=5))
    count = len(makers)
    alive = draw(st.lists(st.booleans(), min_size=count, max_size=count)) if draw(st.booleans()) else None
    return {
        "makers": makers,
        "shape": (draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        "channels_last": draw(st.booleans()),
        "training": draw(st.sampled_from([True, True, False])),
        "zeros": draw(st.sets(st.integers(0, count - 1), max_size=count)),
        "support": None if alive is None or not any(alive) else alive,
        "merge": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def make(case, kind, dtype=torch.float64, **options):
    torch.manual_seed(case["seed"])
    op = kind([maker(case["shape"][1]) for maker in case["makers"]], **options)
    for p in op.parameters():
        nn.init.normal_(p, std=0.5)
    for name, buffer in op.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return op.to(dtype).train(case["training"])


def inputs(case, dtype=torch.float64):
    torch.manual_seed(case["seed"] + 1)
    x = torch.randn(case["shape"], dtype=torch.float64)
    if case["channels_last"]:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(len(case["makers"]), dtype=torch.float64)
    weights[list(case["zeros"])] = 0
    if case["support"] is not None:  # what such a caller's weights are
        weights[~torch.tensor(case["support"])] = 0
    return x.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()


def gradients(op, x, weights, support=None, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = op(x, weights, support)
    torch.manual_seed(5)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, [x, weights, *op.parameters()], dy, allow_unused=True)


def refused(case):
    """Batch norms over one pixel are refused by plain autograd, too."""
    try:
        make(case, PlainMixedOp)(*inputs(case), case["support"])
    except ValueError as error:
        return str(error)
    return None


def relative(found, exact):
    """For each gradient its error over the floor, the largest norm of all; where all vanish, the error itself."""
    floor = max([1e-2, *(float(g.detach().norm()) for g in exact if g is not None)])
    return [float((f.double() - g).detach().norm()) / floor for f, g in zip(found, exact, strict=True) if g is not None]


def shake(tensor, size):
    """Every number changed by about that share of it."""
    with torch.no_grad():
        return (tensor * (1 + size * torch.randn_like(tensor))).requires_grad_(tensor.requires_grad)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_float64_gradients_are_exact(case):
    if refused(case):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            make(case, MixedOp, merge=case["merge"])(*inputs(case), case["support"])
        return
    plain, ours = make(case, PlainMixedOp), make(case, MixedOp, merge=case["merge"])
    y0, g0 = gradients(plain, *inputs(case), case["support"])
    y1, g1 = gradients(ours, *inputs(case), case["support"])
    assert y1.shape == y0.shape and y1.dtype == y0.dtype
    torch.testing.assert_close(y1, y0, rtol=1e-10, atol=1e-10)
    for a, b in zip(g1, g0, strict=True):
        assert b is not None or a is None or not a.any()  # plain autograd has no gradient for what did not run
    exact = [torch.zeros_like(a) if b is None and a is not None else b for a, b in zip(g1, g0, strict=True)]
    assert (
        max(
            relative(
                [torch.zeros_like(e) if f is None and e is not None else f for f, e in zip(g1, exact, strict=True)],
                exact,
            )
        )
        <= 1e-10
    )
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@st.composite
def wishes(draw):
    """A case with more around it: which gradients are wanted, norms that are frozen, how x lies in memory."""
    case = draw(cases())
    case["channels_last"] = False
    return case | {
        "wanted": draw(st.lists(st.booleans(), min_size=3, max_size=9)),
        "frozen": draw(st.booleans()),
        "partial": draw(st.sampled_from([1, 1, 2])),
        "lies": draw(st.sampled_from(["dense", "channels_last", "slice", "slice of channels_last", "transposed"])),
    }


def laid(x, how):
    """The same numbers, otherwise in memory."""
    n, c, h, w = x.shape
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if "slice" in how:
        room = torch.full((n, c + 3, h + 2, w + 5), torch.nan, dtype=x.dtype)
        room = room.contiguous(memory_format=torch.channels_last) if "last" in how else room
        room[:, 2 : 2 + c, 1 : 1 + h, 3 : 3 + w] = x
        return room[:, 2 : 2 + c, 1 : 1 + h, 3 : 3 + w]
    return x


def wanted_gradients(op, case):
    """y, the gradients that the case wants, and the running statistics."""
    partial = case["partial"]
    torch.manual_seed(case["seed"] + 1)
    n, c, h, w = case["shape"]
    x = torch.randn(n, c * partial, 2 * h if partial > 1 else h, 2 * w if partial > 1 else w, dtype=torch.float64)
    weights = torch.rand(len(case["makers"]), dtype=torch.float64)
    edge = torch.tensor(0.7, dtype=torch.float64) if partial > 1 else None
    if case["frozen"]:
        for module in op.modules():
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                module.eval()
    inputs = [laid(x, case["lies"]).detach(), weights, edge, *op.parameters()]
    wants = [t for i, t in enumerate(inputs) if t is not None and case["wanted"][i % len(case["wanted"])]]
    for tensor in inputs[3:]:
        tensor.requires_grad_(any(tensor is want for want in wants))
    for tensor in wants:
        tensor.requires_grad_()
    y = op(*inputs[:2], case["support"], edge)
    if not wants:
        return [y, *(buffer.double() for buffer in op.buffers())]
    torch.manual_seed(5)
    dy = torch.randn(y.shape, dtype=torch.float64)
    found = torch.autograd.grad(y, wants, dy, allow_unused=True) if y.requires_grad else [None] * len(wants)
    found = [torch.zeros_like(want) if got is None else got for want, got in zip(wants, found, strict=True)]
    return [y, *found, *(buffer.double() for buffer in op.buffers())]


@settings(max_examples=150, deadline=None)
@given(wishes())
def test_a_program_its_branches_and_plain_autograd_agree(case):
    """Whatever the candidates, shapes, strides, supports, modes, layouts and wanted gradients."""
    results = []
    for kind, programs in [(PlainMixedOp, False), (MixedOp, True), (MixedOp, False)]:
        options = {"partial": case["partial"]} | ({"merge": case["merge"]} if kind is MixedOp else {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "enabled", programs)
            try:
                results.append(wanted_gradients(make(case, kind, **options), case))
            except ValueError as error:  # a batch of one pixel
                results.append(str(error)[:40])
    plain, *ours = results
    for found in ours:
        if isinstance(plain, str):
            assert found == plain
            continue
        assert [t.shape for t in found] == [t.shape for t in plain]
        assert max(relative(found, plain)) <= 1e-10


@settings(max_examples=60, deadline=None, derandomize=True)  # its bound is one of rounding, not of mathematics
@given(cases(), st.booleans())
def test_float32_and_autocast_are_no_worse_than_plain(case, autocast):
    case |= {"support": None}
    if refused(case):
        return
    # Both start from the same float32 numbers, so that only the computation differs.
    x, weights = (t.detach().float().double().requires_grad_() for t in inputs(case))
    op = make(case, PlainMixedOp, torch.float32).double()
    spread = []
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: spread.append(args[0].var((0, 2, 3), correction=0).min()))
    y, found = gradients(op, x, weights)
    # Where pixels hardly differ a batch norm divides rounding errors by next to nothing, in any implementation.
    assume(all(variance > 1e-2 for variance in spread))
    exact = [y, *(g for g in found if g is not None)]
    errors = []
    for kind, options in ((PlainMixedOp, {}), (MixedOp, {"merge": case["merge"]})):
        op = make(case, kind, torch.float32, **options)
        y, grads = gradients(op, *inputs(case, torch.float32), autocast=autocast)
        wanted = [g for g, e in zip(grads, found, strict=True) if e is not None]
        errors.append(max(relative([y, *wanted], exact)))
    # What rounding the numbers that it starts from once more would do: a batch norm over pixels that hardly differ
    # divides by next to nothing, in any implementation.
    rounding = 2**-9 if autocast else 2**-24
    op = make(case, PlainMixedOp, torch.float32).double()
    for p in op.parameters():
        p.data = shake(p.data, rounding)
    y, shaken = gradients(op, shake(x, rounding), shake(weights, rounding))
    condition = max(relative([y, *(g for g, e in zip(shaken, found, strict=True) if e is not None)], exact))
    assert errors[1] <= 2 * errors[0] + 4 * condition + 2e-6
