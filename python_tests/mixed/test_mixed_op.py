"""MixedOp against the plain weighted sum: same numbers, less kept, nothing done that nobody asked for."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel

from srnas_fast import MixedOp
from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed import PlainMixedOp, Sine


class Zero(nn.Module):
    def forward(self, x):
        return x * 0


class Counted(nn.Module):
    """A 1x1 convolution that counts its forward passes and the gradients computed for its weight."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.calls = []

    def forward(self, x):
        self.calls.append(torch.is_grad_enabled() and self.conv.weight.requires_grad)
        return self.conv(x)


def candidates(channels=3, dropout=0.0):
    def conv_bn(size, dilation=1):
        return nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, size, padding=dilation * (size // 2), dilation=dilation, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout),
        )

    return [conv_bn(3), conv_bn(5, 2), nn.PReLU(), nn.Identity(), Zero()]


def twins(ops_maker, seed=0, dtype=torch.float64):
    """A plain and a recomputing mixed operation with equal parameters."""
    made = []
    for kind in (PlainMixedOp, MixedOp):
        torch.manual_seed(seed)
        made.append(kind(ops_maker()).to(dtype))
    return made


def gradients(op, x, logits, **kwargs):
    """y and the gradients of everything, for a loss in which no entry of dy is special."""
    x = x.detach().requires_grad_()
    logits = logits.detach().requires_grad_()
    y = op(x, logits.softmax(-1), **kwargs)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    found = torch.autograd.grad(y, [x, logits, *op.parameters()], dy, allow_unused=True)
    return y, found


def assert_same(ours, plain, **tolerance):
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("size", [(2, 3, 8, 8), (1, 3, 1, 1), (3, 3, 5, 9), (2, 3, 2, 13)])
def test_same_numbers_as_plain(size):
    plain, ours = twins(candidates)
    if size[0] * size[2] * size[3] == 1:  # batch norm has no variance over one pixel
        plain, ours = plain.eval(), ours.eval()
    x, logits = torch.randn(size, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    (y1, g1), (y2, g2) = gradients(plain, x, logits), gradients(ours, x, logits)
    torch.testing.assert_close(y2, y1)
    assert_same(g2, g1)
    assert_same(list(ours.buffers()), list(plain.buffers()))


def test_gradcheck():
    op = MixedOp([nn.Conv2d(2, 2, 3, padding=1), nn.Sigmoid(), nn.BatchNorm2d(2)]).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, *_: op(x, w), (x, weights, *op.parameters()))


def test_keeps_only_input_and_weights():
    op = MixedOp(candidates())
    x, weights = torch.randn(2, 3, 16, 16, requires_grad=True), torch.rand(5, requires_grad=True)
    kept = []
    parameters = {p.data_ptr() for p in op.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        op(x, weights)
    assert {t.data_ptr() for t in kept} - parameters == {x.data_ptr(), weights.data_ptr()}


def test_gradients_nobody_needs_are_not_computed():
    x, weights = torch.randn(1, 3, 4, 4), torch.rand(2)
    ops = [Counted(), Counted()]
    op = MixedOp(ops)

    # The architecture step: frozen parameters, gradient for the weights only: recomputed without a graph.
    op.requires_grad_(False)
    op(x, weights.requires_grad_()).sum().backward()
    assert [o.calls for o in ops] == [[False, False]] * 2
    assert all(p.grad is None for p in op.parameters())

    # The weight step: constant architecture weights.
    for o in ops:
        o.calls.clear()
    op.requires_grad_(True)
    weights = weights.detach()
    op(x, weights).sum().backward()
    assert all(len(o.calls) == 2 and o.conv.weight.grad is not None for o in ops)

    # One candidate frozen and neither x nor weights in need: that candidate is not run again.
    ops[0].requires_grad_(False)
    for o in ops:
        o.calls.clear()
    op(x, weights).sum().backward()
    assert [len(o.calls) for o in ops] == [1, 2]


def test_frozen_convolution_gets_no_weight_gradient(branches):
    """Counted where it is done: the convolution's backward is asked for dx alone, unless a weight needs the other."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Masks(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.srnas_fast.narrow_convolution_backward.default:
                self.seen.append(tuple(args[4:6]))
            return func(*args, **(kwargs or {}))

    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    for wanted, norm, mask in [
        (False, nn.Identity(), (True, False)),
        (True, nn.Identity(), (True, True)),  # dw is the inner product of the kernel with its gradient
        (True, nn.BatchNorm2d(3), (True, False)),  # the output is made again and gives dw
    ]:
        op = MixedOp([nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), norm), nn.Identity()]).requires_grad_(False)
        with Masks() as masks:
            op(x, torch.rand(2, requires_grad=wanted)).sum().backward()
        assert masks.seen == [mask]


def test_running_statistics_move_once():
    plain, ours = twins(candidates)
    x, weights = (
        torch.randn(2, 3, 6, 6, dtype=torch.float64),
        torch.rand(5, dtype=torch.float64, requires_grad=True),
    )
    for op in (plain, ours):
        for _ in range(3):
            op(x, weights).sum().backward()
    assert ours.ops[0][2].num_batches_tracked == 3
    assert_same(list(ours.buffers()), list(plain.buffers()))


def test_state_that_the_forward_reads_is_replayed():
    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("gain", torch.ones(()))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            y = (x + self.gain) * self.scale
            self.gain.mul_(2)
            return y

    op = MixedOp([Drifting(), nn.Identity()])
    op(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])).sum().backward()
    assert op.ops[0].scale.grad == 5  # 1 + 2 and twice the gain of 1 that the forward pass read
    assert op.ops[0].gain == 2


def test_modes_of_the_forward_pass_are_repeated():
    found = []
    for op in twins(lambda: candidates(dropout=0.5)):
        x = torch.linspace(-1, 1, 2 * 3 * 6 * 6, dtype=torch.float64).view(2, 3, 6, 6).requires_grad_()
        weights = torch.full((5,), 0.2, dtype=torch.float64)
        torch.manual_seed(3)
        trained = op(x, weights)
        evaluated = op.eval()(x, weights)
        if isinstance(op, MixedOp):  # plain batch norm would go on with the moved statistics, and be wrong
            op.train()(x, weights)
            op.eval()
        found.append(torch.autograd.grad((trained + 2 * evaluated).square().sum(), [x, *op.parameters()]))
        assert not any(m.training for m in op.modules())
    assert_same(found[1], found[0])


def test_buffer_that_two_modules_share():
    class Gain(nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.register_buffer("gain", gain)

        def forward(self, x):
            self.gain.add_(1)
            return x * self.gain.clone()

    def shared():
        gain = torch.ones((), dtype=torch.float64)
        return [nn.Sequential(Gain(gain), Gain(gain)), Gain(gain)]

    plain, ours = PlainMixedOp(shared()), MixedOp(shared())
    x, logits = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    assert_same(gradients(ours, x, logits)[1], gradients(plain, x, logits)[1])
    assert ours.ops[1].gain == plain.ops[1].gain == 4


def test_inference_mode():
    op = MixedOp(candidates())
    x, weights = torch.randn(2, 3, 4, 4), torch.full((5,), 0.2)
    expected = op.eval()(x, weights).detach()
    with torch.inference_mode():
        torch.testing.assert_close(op(x.clone(), weights), expected)


def test_dropout_repeats_and_leaves_the_generator_alone():
    plain, ours = twins(lambda: candidates(dropout=0.5))
    x, logits = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.manual_seed(7)
    y1, g1 = gradients(plain, x, logits)
    after1 = torch.rand(3)
    torch.manual_seed(7)
    y2, g2 = gradients(ours, x, logits)
    after2 = torch.rand(3)
    torch.testing.assert_close(y2, y1)
    assert_same(g2, g1)
    torch.testing.assert_close(after2, after1)


@pytest.mark.parametrize("leave_before_backward", [True, False])
def test_autocast(leave_before_backward):
    plain, ours = twins(candidates, dtype=torch.float32)
    found = []
    for op in (plain, ours):
        x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8).requires_grad_()
        weights = torch.full((5,), 0.2, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = op(x, weights)
            if not leave_before_backward:
                y.float().square().sum().backward()
        if leave_before_backward:
            y.float().square().sum().backward()
        found.append((y, [x.grad, weights.grad, *(p.grad for p in op.parameters())]))
    assert found[0][0].dtype == found[1][0].dtype
    torch.testing.assert_close(found[1][0], found[0][0], rtol=2e-2, atol=2e-2)
    floor = max(g.norm() for g in found[0][1])
    for a, b in zip(found[1][1], found[0][1], strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 2e-2 * max(b.norm(), floor)


def test_autocast_cache_keeps_no_graphless_cast():
    """A convolution used in a mixed operation and again outside still gets both gradients."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    op = MixedOp([conv])
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        op(x, torch.ones(1))
        conv(x).float().sum().backward()
    assert conv.weight.grad is not None


def test_channels_last_in_gives_channels_last_out():
    plain, ours = twins(candidates)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    logits = torch.randn(5, dtype=torch.float64)
    y, found = gradients(ours, x, logits)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, plain(x, logits.softmax(-1)))
    assert_same(found, gradients(plain, x, logits)[1])


def test_inputs_that_are_not_contiguous():
    plain, ours = twins(candidates)
    wide = torch.randn(6, 2, 20, 7, dtype=torch.float64)
    x = wide.transpose(0, 1)[:, 1:6:2, ::3]
    logits = torch.randn(2, 5, dtype=torch.float64).t()[:, 0]
    assert not x.is_contiguous()
    assert_same(gradients(ours, x, logits)[1], gradients(plain, x, logits)[1])


def test_hooks_on_parameters_and_input_run_once():
    plain, ours = twins(candidates)
    found = []
    for op in (plain, ours):
        for p in op.parameters():
            p.register_hook(lambda g: 3 * g)
        x = torch.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=torch.float64).view(2, 3, 4, 4).requires_grad_()
        x.register_hook(lambda g: 5 * g)
        op(x, torch.full((5,), 0.2, dtype=torch.float64)).square().sum().backward()
        found.append([x.grad, *(p.grad for p in op.parameters())])
    assert_same(found[1], found[0])


def test_grad_of_chosen_parameters():
    plain, ours = twins(candidates)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    found = [torch.autograd.grad(op(x, weights).square().sum(), [op.ops[1][1].weight]) for op in (plain, ours)]
    assert_same(found[1], found[0])


def test_backward_twice_with_retained_graph():
    plain, ours = twins(candidates)
    for op in (plain, ours):
        y = op(torch.ones(2, 3, 4, 4, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert_same([p.grad for p in ours.parameters()], [p.grad for p in plain.parameters()])


def test_one_module_as_two_candidates():
    def shared():
        conv = nn.Conv2d(3, 3, 3, padding=1)
        return [conv, nn.Sequential(nn.ReLU(), conv)]

    plain, ours = twins(shared)
    x, logits = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    assert_same(gradients(ours, x, logits)[1], gradients(plain, x, logits)[1])


def test_submodules_used_twice_in_a_candidate():
    def reused():
        conv, act, norm = nn.Conv2d(3, 3, 1), nn.PReLU(), nn.BatchNorm2d(3)
        other = nn.Conv2d(3, 3, 1)
        other.weight = conv.weight  # tied across modules
        return [nn.Sequential(conv, conv), nn.Sequential(act, conv, norm, act, norm), nn.Sequential(other, conv, act)]

    plain, ours = twins(reused)
    x, logits = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    before = [id(t) for t in [*ours.parameters(), *ours.buffers()]]
    assert_same(gradients(ours, x, logits)[1], gradients(plain, x, logits)[1])
    assert [id(t) for t in [*ours.parameters(), *ours.buffers()]] == before
    assert all(isinstance(p, nn.Parameter) for p in ours.parameters())
    assert_same(list(ours.buffers()), list(plain.buffers()))


def test_support_runs_live_candidates_only():
    plain, ours = twins(candidates)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.0, 0.4, 0.0, 0.6, 0.0], dtype=torch.float64, requires_grad=True)
    support = torch.tensor([False, True, False, True, False])
    y, expected = ours(x, weights, support), plain(x, weights)
    torch.testing.assert_close(y, expected)
    wanted = [x, *ours.parameters()]
    found = torch.autograd.grad(y.square().sum(), [*wanted, weights])
    correct = torch.autograd.grad(expected.square().sum(), [x, *plain.parameters()])
    assert_same(found[:-1], correct)
    assert found[-1][[0, 2, 4]].tolist() == [0, 0, 0] and found[-1][1] != 0
    for p in ours.ops[0].parameters():
        assert torch.equal(found[[id(w) for w in wanted].index(id(p))], torch.zeros_like(p))
    assert ours.ops[0][2].num_batches_tracked == 0 and ours.ops[1][2].num_batches_tracked == 1


def test_second_order_is_refused():
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    y = MixedOp(candidates())(x, torch.rand(5))
    with pytest.raises(RuntimeError, match="PlainMixedOp"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_no_grad_and_nested():
    torch.manual_seed(0)
    inner = MixedOp([nn.Conv2d(3, 3, 1), nn.Identity()])

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = inner

        def forward(self, x):
            return self.op(x, torch.tensor([0.5, 0.5]))

    outer = MixedOp([Half(), nn.Identity()])
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert not outer(x, torch.tensor([0.3, 0.7])).requires_grad
    outer(x, torch.tensor([0.3, 0.7])).sum().backward()
    expected = 0.3 * (0.5 * inner.ops[0].weight.detach().sum((0, 2, 3)) + 0.5) + 0.7
    torch.testing.assert_close(x.grad[0, :, 0, 0], expected)


def test_state_dict_is_the_plain_one():
    plain, ours = twins(candidates)
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MixedOp([]), "at least one"),
        (lambda: MixedOp([torch.jit.script(nn.ReLU())]), "TorchScript"),
        (lambda: MixedOp([nn.LazyLinear(2)])(torch.ones(1, 2), torch.ones(1)), "lazy"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(2)), r"shape \(1,\)"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), [1.0]), r"shape \(1,\)"),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.tensor([float("nan")])), "NaN"),
        (
            lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(1), support=[False]),
            "no live candidate",
        ),
        (lambda: MixedOp([nn.Identity()])(torch.ones(2), torch.ones(1), support=[True, False]), "1 booleans"),
        (
            lambda: MixedOp([nn.Identity(), nn.MaxPool2d(2)])(torch.ones(1, 1, 4, 4), torch.ones(2)),
            "MaxPool2d",
        ),
        (lambda: MixedOp([nn.ReLU(inplace=True)])(torch.ones(2), torch.ones(1)), "in place"),
        (
            lambda: MixedOp([nn.MaxPool2d(2, return_indices=True)])(torch.ones(1, 1, 4, 4), torch.ones(1)),
            "tuple",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def fused():
    def half(size):
        return [nn.ReLU(), nn.Conv2d(3, 3, size, padding=size // 2, groups=3, bias=False), nn.Conv2d(3, 3, 1)]

    def dense(size, dilation=1):
        return nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, size, padding=dilation * (size // 2), dilation=dilation))

    norm = nn.BatchNorm2d(3)
    return [dense(3), dense(5), nn.Sequential(*half(3), norm), nn.Sequential(*half(3), *half(3)), nn.Identity(), Zero()]


def test_describe_tells_branch_and_reason():
    op = MixedOp([*fused(), nn.LPPool2d(2, 1)])
    lines = [line.split("  ") for line in op.describe().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines[1:]]
    assert [row[2] for row in cells] == [
        "dense, merged with 1",
        "dense, merged with 0",
        "separable with batch norm",
        "two-stage separable",
        "identity",
        "opaque",
        "opaque",
    ]
    assert cells[2][4] == "batch statistics" and cells[3][3] == "ReLU of x"
    assert "register_pattern" in cells[5][5] and "LPPool2d" in cells[6][5]
    assert "merged" not in MixedOp(fused(), merge=False).describe()
    assert (
        "merged"
        in MixedOp([nn.Sequential(nn.Conv2d(3, 3, k, padding=k // 2), nn.BatchNorm2d(3)) for k in (1, 3)])
        .eval()
        .describe()
    )


def test_fused_branches_keep_nothing_that_grows_with_the_image():
    op = MixedOp(fused()[:-1])
    held = []
    for size in (16, 32):
        x, weights = torch.randn(2, 3, size, size, requires_grad=True), torch.rand(5, requires_grad=True)
        with LiveMemory() as memory:
            y = op(x, weights)
            held.append(memory.held() - y.untyped_storage().nbytes())
        y.sum().backward()
    assert held[0] == held[1] < 1000


@pytest.mark.parametrize("merge", [True, False])
def test_what_makes_a_candidate_opaque_is_noticed_between_calls(merge):
    op, plain = MixedOp(fused(), merge=merge).double(), PlainMixedOp(fused()).double()
    plain.load_state_dict(op.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    logits = torch.randn(6, dtype=torch.float64)

    def agree():
        ours, expected = gradients(op, x, logits), gradients(plain, x, logits)
        torch.testing.assert_close(ours[0], expected[0])
        assert_same(ours[1], expected[1])

    agree()
    seen = []
    handles = [o.ops[0][1].register_forward_hook(lambda m, args, y: seen.append(m) or 2 * y) for o in (op, plain)]
    agree()
    assert seen.count(op.ops[0][1]) == 2 and "has hooks" in op.describe()  # the forward pass and its repetition
    for handle in handles:
        handle.remove()
    agree()
    assert len(seen) == 3 and "has hooks" not in op.describe()
    for o in (op, plain):
        torch.manual_seed(1)
        o.ops[3][2] = nn.Conv2d(3, 3, 1).double()  # another submodule
        o.ops[4] = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect").double()  # another candidate
        nn.utils.parametrizations.weight_norm(o.ops[1][1])
    plain.load_state_dict(op.state_dict())
    agree()
    assert "ParametrizedConv2d" in op.describe() and "reflect" in op.describe()


def test_kinks_are_those_of_torch():
    """The derivative of an activation at exactly 0."""
    for act in (nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), Sine()):
        ops = [nn.Sequential(act, nn.Conv2d(2, 2, 3, padding=1, bias=False))]
        ops.append(nn.Sequential(act, nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), nn.Conv2d(2, 2, 1)))
        plain, ours = PlainMixedOp(ops).double(), MixedOp(ops).double()
        x = torch.tensor([-1.0, 0.0, -0.0, 2.0], dtype=torch.float64).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
        logits = torch.tensor([0.3, 0.7], dtype=torch.float64)
        assert_same(gradients(ours, x, logits)[1], gradients(plain, x, logits)[1])


def test_copies_and_saved_modules_are_planned_anew(tmp_path):
    op = MixedOp(fused()[:-1]).double()
    x, logits = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = gradients(op, x, logits)
    twin = copy.deepcopy(op)
    for p in twin.parameters():
        p.data.mul_(2)
    assert_same(gradients(op, x, logits)[1], expected[1])
    assert not torch.equal(gradients(twin, x, logits)[0], expected[0])


def test_input_that_fused_branches_do_not_take_goes_the_opaque_way():
    plain, ours = twins(lambda: [nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)), nn.Identity()])
    x, weights = torch.randn(3, 6, 6, dtype=torch.float64), torch.rand(2, dtype=torch.float64)  # one image, no batch
    torch.testing.assert_close(ours(x, weights), plain(x, weights))
    with pytest.raises(RuntimeError, match="dtype|type"):  # torch's own words
        ours(x.float()[None], weights.float())
    with pytest.raises(RuntimeError, match="channels"):
        ours(torch.randn(1, 4, 6, 6, dtype=torch.float64), weights)


def test_candidates_that_disagree_on_the_shape_are_named():
    half = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1, groups=3, bias=False), nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="all must agree"):
        MixedOp([half, nn.Identity()])(torch.randn(1, 3, 8, 8), torch.ones(2))
    with pytest.raises(InputError, match="must agree"):
        MixedOp([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)])(torch.randn(1, 3, 8, 8), torch.ones(2))


def test_a_channel_that_cancels_has_no_negative_variance():
    """A gray image in all channels and pointwise rows that add it up to nothing: rounding alone is left."""
    torch.manual_seed(0)
    x = (255 * torch.rand(2, 1, 16, 16)).repeat(1, 16, 1, 1)
    half = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
    )
    with torch.no_grad():
        half[0].weight.copy_(half[0].weight[:1].expand_as(half[0].weight))
        half[1].weight -= half[1].weight.mean(1, keepdim=True)
    op = MixedOp([half])
    y = op(x.requires_grad_(), torch.ones(1))
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert (half[2].running_var >= 0).all()


def test_settings_of_the_forward_pass_count_in_the_backward_pass():
    act = nn.LeakyReLU(0.2)
    op = MixedOp([nn.Sequential(act, nn.Conv2d(3, 3, 1)), *fused()[2:4]])
    found = []
    for later in (0.2, 0.9):
        act.negative_slope = 0.2
        x = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4).requires_grad_()
        y = op(x, torch.ones(3))
        act.negative_slope = later
        found.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(found[1], found[0])


def test_merge_can_be_switched_between_calls():
    op = MixedOp(fused())
    assert "merged" in op.describe()
    op.merge = False
    assert "merged" not in op.describe()


def test_a_pickled_module_is_planned_where_it_is_loaded():
    op = MixedOp(fused()[:-1])
    op.describe()
    again = pickle.loads(pickle.dumps(op))
    assert again._prepared is None and again.describe() == op.describe()


@pytest.mark.parametrize("partial", [1, 2])
def test_copies_of_data_parallel_run_the_plain_sum(replicated, partial):
    torch.manual_seed(0)
    op = MixedOp(fused(), partial=partial).double()
    copied = replicated(op)
    x, edge = torch.randn(2, 3 * partial, 6, 4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    support, weights = [True, False, True, True, True, True], torch.rand(6, dtype=torch.float64)
    results = []
    for module in (copied, op):
        y = module(x, weights, support, edge)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(op.parameters()), allow_unused=True)])
    for found, expected in zip(*results, strict=True):
        found = torch.zeros_like(expected) if found is None else found  # of dead candidates
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_graph_of_it_can_be_made():
    op, x, weights = MixedOp(fused()), torch.randn(2, 3, 8, 8), torch.rand(6)
    with torch.no_grad():
        graph = make_fx(lambda x, weights: op(x, weights))(x, weights)
        torch.testing.assert_close(graph(x, weights), op(x, weights), rtol=1e-4, atol=1e-4)


def test_fake_tensors_and_the_meta_device():
    op = MixedOp(fused()[:-1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert op(torch.ones(2, 3, 8, 8), torch.ones(5)).shape == (2, 3, 8, 8)
    assert op.to("meta")(torch.ones(2, 3, 8, 8, device="meta"), torch.ones(5, device="meta")).shape == (2, 3, 8, 8)


def test_support_as_an_array():
    op = MixedOp(fused())
    x, weights = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 0, 0, 0, 0.5, 0])
    torch.testing.assert_close(op(x, weights, weights.numpy() > 0), op(x, weights, weights > 0))


def _ddp_gradients(rank, store, result):
    """One of two data-parallel processes: its gradients go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    op = DistributedDataParallel(MixedOp([nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()]).double())
    torch.manual_seed(1)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    for _ in range(2):  # the second step shows that the reducer was satisfied by the first
        op.zero_grad()
        op(x[2 * rank : 2 * rank + 2], torch.tensor([0.5, 0.5], dtype=torch.float64)).square().mean().backward()
    torch.save([p.grad for p in op.parameters()], result)
    dist.barrier()
    dist.destroy_process_group()


def test_ddp_on_two_processes_equals_one(tmp_path):
    results = [tmp_path / "0.pt", tmp_path / "1.pt"]
    # The fault handler tells where, should a process abort.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONFAULTHANDLER": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path / "store"), str(result)], env=environment)
        for rank, result in enumerate(results)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    torch.manual_seed(0)
    op = PlainMixedOp([nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()]).double()
    torch.manual_seed(1)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    op(x, torch.tensor([0.5, 0.5], dtype=torch.float64)).square().mean().backward()
    for result in results:
        assert_same(torch.load(result, weights_only=True), [p.grad for p in op.parameters()])


if __name__ == "__main__":
    _ddp_gradients(int(sys.argv[1]), *sys.argv[2:])
