"""Partial channels: MixedOp(partial=K) against slice, concatenation and shuffle; PartialChannels; edge weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from srnas_fast import MixedOp
from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed import PartialChannels, PlainMixedOp, Zero, edge_normalise, program

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class Reduce(nn.Module):
    """Two strided convolutions side by side: a candidate that nothing recognises.

    Not 1x1, as those of DARTS: the backward pass of that in channels_last, with fewer than 16 channels and in float32,
    is where torch 2.13 writes past the end of its memory on a CPU.
    """

    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels // 2, 3, 2, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = x.relu()
        return self.norm(torch.cat([self.convs[0](x), self.convs[1](x.flip(3))], 1))


class Shift(nn.Module):
    """Opaque at stride 1."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(-1, 1, channels).view(-1, 1, 1))

    def forward(self, x):
        return self.gain * x.roll(1, 3)


def candidates(c, stride=1):
    """Of every branch, stage by stage, and one that is opaque."""

    def separable(size, dilation=1, stride=1):
        padding = dilation * (size // 2)
        depthwise = nn.Conv2d(c, c, size, stride, padding, dilation, groups=c, bias=False)
        return [nn.ReLU(), depthwise, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)]

    always = [
        Zero(stride),
        nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, affine=False)),
        nn.AvgPool2d(3, stride, 1, count_include_pad=False),
        nn.Sequential(*separable(5, 1, stride), *separable(5)),
        nn.Sequential(*separable(3, 2, stride)),
    ]
    if stride == 2:
        return [*always, Reduce(c) if c % 2 == 0 else nn.AvgPool2d(3, 2, 1)]
    dense = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c))
    return [*always, dense, nn.Conv2d(c, c, 1), nn.Identity(), Shift(c)]


def twins(channels, partial, stride=1, dtype=torch.float64):
    torch.manual_seed(0)
    plain = PlainMixedOp(candidates(channels // partial, stride), partial=partial).to(dtype)
    ours = MixedOp(candidates(channels // partial, stride), partial=partial).to(dtype)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def results(op, x, edge_weight=None, support=None):
    """y, then the gradients of everything that has any, for a loss in which no entry of dy is special."""
    x = x.detach().requires_grad_()
    logits = torch.linspace(-1, 1, len(op.ops), dtype=x.dtype).requires_grad_()
    edge_weight = None if edge_weight is None else edge_weight.detach().requires_grad_()
    y = op(x, logits.softmax(-1), support, edge_weight)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).mul(7).sin().view(y.shape)
    leaves = [x, logits, *op.parameters(), *([] if edge_weight is None else [edge_weight])]
    found = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    return [y, *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))]


def assert_same(ours, plain, tolerance=1e-10):
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        floor = max(1.0, b.abs().max().item())
        assert (a - b).abs().max() <= tolerance * floor


CASES = [
    (partial, stride, size)
    for partial in (1, 2, 4)
    for stride, size in [(1, (6, 8)), (1, (5, 9)), (1, (1, 1)), (2, (6, 8)), (2, (2, 2))]
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("partial, stride, size", CASES)
def test_same_numbers_as_slice_concatenate_shuffle(partial, stride, size, layout):
    plain, ours = twins(8, partial, stride)
    x = torch.randn(3, 8, *size, dtype=torch.float64).to(memory_format=LAYOUTS[layout])
    for edge_weight in (None, torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)):
        found = results(ours, x, edge_weight)
        assert_same(found, results(plain, x, edge_weight))
        assert found[0].is_contiguous(memory_format=LAYOUTS[layout])
        assert found[1].is_contiguous(memory_format=LAYOUTS[layout])
    assert_same(list(ours.buffers()), list(plain.buffers()))
    assert_same(results(ours.eval(), x, edge_weight), results(plain.eval(), x, edge_weight))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_definition_by_hand(stride):
    """Candidates that double what they see: which channel goes where."""
    ops = [nn.Identity()] if stride == 1 else [nn.AvgPool2d(1, 2)]
    x = torch.arange(6.0).view(1, 6, 1, 1).repeat(1, 1, 2, 2)
    y = MixedOp(ops, partial=3)(x, torch.tensor([2.0]), edge_weight=torch.tensor(10.0))
    assert y.shape[2:] == (2 // stride, 2 // stride)
    assert y[0, :, 0, 0].tolist() == [0, 20, 40, 20, 30, 50]


@pytest.mark.parametrize("stride", [1, 2])
def test_inputs_that_are_not_contiguous(stride):
    plain, ours = twins(8, 2, stride)
    wide = torch.randn(2, 11, 9, 17, dtype=torch.float64)
    for x in (
        wide[:, 2:10, 1:, 3:-2],
        wide.to(memory_format=torch.channels_last)[:, 2:10, 1:, 3:-2],
        wide[:, :8, :8, ::2][..., :8],
        wide[:, :8, :8, :12].mT,
    ):
        assert_same(results(ours, x), results(plain, x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("partial", [1, 2])
def test_support(partial, stride):
    plain, ours = twins(8, partial, stride)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for live in ([1, 3], [0], [len(plain.ops) - 1], [2, len(plain.ops) - 1]):
        support = [k in live for k in range(len(plain.ops))]
        edge_weight = torch.tensor(0.7, dtype=torch.float64)
        assert_same(results(ours, x, edge_weight, support), results(plain, x, edge_weight, support))


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_autocast(stride):
    plain, ours = twins(8, 4, stride, torch.float32)
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = results(plain, x, torch.tensor(0.5)), results(ours, x, torch.tensor(0.5))
    assert found[0].dtype == expected[0].dtype == torch.float32
    torch.testing.assert_close(found[0][:, 1::4], expected[0][:, 1::4])  # what passed by
    floor = max(g.norm() for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and (a - b).norm() <= 3e-2 * max(b.norm(), floor)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_and_single_precision(dtype, stride):
    exact, _ = twins(8, 4, stride)
    x = torch.randn(2, 8, 6, 6).to(dtype)
    found = results(twins(8, 4, stride, dtype)[1], x, torch.tensor(0.5))
    assert found[0].dtype == found[1].dtype == dtype
    expected = results(exact, x.double(), torch.tensor(0.5))
    assert (found[0].double() - expected[0]).norm() <= 8 * torch.finfo(dtype).eps * expected[0].norm()


def test_input_that_fused_branches_do_not_take():
    """Other types than the parameters': every candidate is opaque, and torch speaks."""
    ours = MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity()], partial=2)
    with pytest.raises(RuntimeError, match="channels"):
        ours(torch.randn(1, 6, 4, 4), torch.ones(2))
    with pytest.raises(RuntimeError, match="dtype|type"):
        ours(torch.randn(1, 8, 4, 4).double(), torch.ones(2))
    empty = MixedOp([nn.Tanh()], partial=2)(torch.randn(0, 4, 3, 3, requires_grad=True), torch.ones(1))
    assert empty.shape == (0, 4, 3, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_nobody_needs(stride):
    plain, ours = twins(8, 2, stride)
    for op in (plain, ours):
        op.requires_grad_(False)
    weights = torch.full((len(ours.ops),), 0.2, dtype=torch.float64)
    x, edge = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    assert not ours(x, weights, None, edge).requires_grad

    # The edge's weight alone: also without a gradient for x and for the candidates' weights.
    for leaf in (edge, x, weights):
        given = {id(t): t.clone().requires_grad_(t is leaf) for t in (x, weights, edge)}
        found = [
            torch.autograd.grad(op(given[id(x)], given[id(weights)], None, given[id(edge)]).square().sum(),
                                given[id(leaf)])
            for op in (plain, ours)
        ]  # fmt: skip
        assert_same(found[1], found[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_holds_next_to_nothing_beside_x(stride, layout):
    ours = twins(16, 4, stride, torch.float32)[1]
    held = []
    for size in (32, 64):
        x = torch.randn(2, 16, size, size).to(memory_format=LAYOUTS[layout]).requires_grad_()
        weights, edge = torch.rand(len(ours.ops), requires_grad=True), torch.tensor(0.5, requires_grad=True)
        with LiveMemory() as memory:
            y = ours(x, weights, None, edge)
            held.append(memory.held() - y.nbytes)
        y.sum().backward()
    assert held[0] == held[1] <= 0.1 * x.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_slice_is_copied_and_nothing_concatenated(layout):
    """Between the primitives, which read slices where they are."""

    class Copies(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if name in ("clone", "contiguous", "_to_copy", "cat", "copy_") and result.numel() >= part.numel():
                self.seen.append(name)
            return result

    ours = MixedOp(candidates(4)[:5] + [nn.Identity()], partial=4)
    x = torch.randn(2, 16, 8, 8).to(memory_format=LAYOUTS[layout]).requires_grad_()
    part = x[:, :4]
    with Copies() as copies:
        ours(x, torch.rand(6, requires_grad=True)).sum().backward()
    # In branches the candidates' part of dx, to its place; a program writes it there.
    assert copies.seen == ([] if program.enabled else ["copy_"])


def test_meta_device():
    ours = MixedOp(candidates(2, stride=2), partial=4).to("meta")
    x, weights = torch.ones(3, 8, 6, 4, device="meta", requires_grad=True), torch.ones(6, device="meta")
    y = ours(x, weights, None, torch.ones((), device="meta"))
    assert y.shape == (3, 8, 3, 2) and torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_description():
    ours = MixedOp([nn.Identity(), nn.Conv2d(2, 2, 1)], partial=4)
    assert "partial channels: x is the first 1/4 of the channels" in ours.describe()
    assert "partial" not in MixedOp([nn.Identity()]).describe()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MixedOp([nn.Identity()], partial=0), "partial is 0"),
        (lambda: MixedOp([nn.Identity()], partial=2.0), "partial is 2.0"),
        (lambda: MixedOp([nn.Identity()], partial=True), "partial is True"),
        (lambda: PlainMixedOp([nn.Identity()], partial=-1), "partial is -1"),
        (lambda: PartialChannels(nn.Identity(), 0), "partial is 0"),
        (
            lambda: MixedOp([nn.Identity()], partial=3)(torch.ones(1, 4, 2, 2), torch.ones(1)),
            "a multiple of 3 channels",
        ),
        (lambda: MixedOp([nn.Identity()], partial=2)(torch.ones(4, 2, 2), torch.ones(1)), r"give \(N, C, H, W\)"),
        (
            lambda: MixedOp([nn.Conv2d(2, 3, 1)], partial=2)(torch.ones(1, 4, 2, 2), torch.ones(1)),
            "3 channels for the 2",
        ),
        (lambda: MixedOp([nn.ReLU(True)], partial=2)(torch.ones(1, 4, 2, 2), torch.ones(1)), "in place"),
        (lambda: MixedOp([Zero(2)], partial=2)(torch.ones(1, 4, 5, 4), torch.ones(1)), "even height and width"),
        (lambda: PartialChannels(nn.MaxPool2d(3), 2)(torch.ones(1, 4, 9, 9)), r"\(3, 3\)"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(1), edge_weight=torch.ones(1)), r"shape \(\)"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(1), edge_weight=0.5), "edge_weight is 0.5"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(1), None, torch.tensor(float("nan"))), "NaN"),
        (lambda: edge_normalise(torch.zeros(4), 2), "2 nodes has 5 edges"),
        (lambda: edge_normalise(torch.tensor(0.0), 1), "2 edges"),
        (lambda: edge_normalise(torch.zeros(0), 0), "nodes is 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_one_module_on_partial_channels(stride, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, stride, 1).double()
    op = PartialChannels(conv, 4)
    x = torch.randn(2, 12, 6, 4, dtype=torch.float64).to(memory_format=LAYOUTS[layout]).requires_grad_()
    y = op(x)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    rest = x[:, 3:] if stride == 1 else F.max_pool2d(x[:, 3:], 2)
    expected = F.channel_shuffle(torch.cat([conv(x[:, :3]), rest], 1), 4)
    leaves = [x, *conv.parameters()]
    found = [torch.autograd.grad(z.square().sum(), leaves) for z in (y, expected)]
    assert_same([y, *found[0]], [expected, *found[1]])


def test_one_module_on_all_channels():
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(PartialChannels(nn.Tanh(), 1)(x), x.tanh())


def test_edges_of_a_node_add_up_to_one():
    logits = torch.randn(3, 14, dtype=torch.float64, requires_grad=True)
    weights = edge_normalise(logits, 4)
    sums = [part.sum(-1) for part in weights.split([2, 3, 4, 5], -1)]
    torch.testing.assert_close(torch.stack(sums), torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(weights[1, 2:5], logits[1, 2:5].softmax(0))
    assert torch.autograd.gradcheck(lambda z: edge_normalise(z, 4), logits[:1])


def test_a_node_of_normalised_edges():
    """What a PC-DARTS cell does with it: the node is the sum of its edges' results."""
    plain, ours = zip(*(twins(8, 2) for _ in range(2)), strict=True)
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64)
    states = [torch.randn(2, 8, 4, 4, dtype=torch.float64) for _ in range(2)]
    weights = torch.full((len(ours[0].ops),), 0.1, dtype=torch.float64)
    found = []
    for ops in (plain, ours):
        leaf = logits.clone().requires_grad_()
        edges = edge_normalise(leaf, 1)
        if ops is ours:
            node = sum(op(x, weights, edge_weight=edge) for op, x, edge in zip(ops, states, edges, strict=True))
        else:
            node = sum(edge * op(x, weights) for op, x, edge in zip(ops, states, edges, strict=True))
        found.append([node, *torch.autograd.grad(node.square().sum(), leaf)])
    assert_same(found[1], found[0])
