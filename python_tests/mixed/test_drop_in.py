"""``accelerate``: other people's supernets keep their numbers and lose their memory."""

import copy
import inspect
import pickle
import random
import re

import darts
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srnas_fast import MixedOp, accelerate
from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed import Form, register_form, restore

C = 4

OURS = ("ProgramSumBackward", "MixedSumBackward")  # the graph nodes of a mixed operation


def candidates():
    return [
        nn.Conv2d(C, C, 1),
        nn.Conv2d(C, C, 3, padding=1, bias=False),
        nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)),
        nn.Sequential(nn.Tanh(), nn.Conv2d(C, C, 3, padding=1)),
    ]


class Foreign(nn.Module):
    """The form of DARTS."""

    def __init__(self):
        super().__init__()
        self.choices = nn.ModuleList(candidates())

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))

    def example(self, x, weights):
        return x, weights


class WeightsFirst(Foreign):
    def forward(self, alphas, features):
        return sum(op(features) * w for w, op in zip(alphas, self.choices, strict=True))

    def example(self, x, weights):
        return weights, x


class ListOfScalars(Foreign):
    def forward(self, x, weights):
        assert isinstance(weights, list)
        return sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))

    def example(self, x, weights):
        return x, list(weights)


class KnowsItsEdge(Foreign):
    def __init__(self):
        super().__init__()
        self.edge = 2

    def forward(self, x, alphas):
        return sum(w * op(x) for w, op in zip(alphas[self.edge], self.choices, strict=True))

    def example(self, x, weights):
        return x, torch.stack([weights.flip(0), 0 * weights, weights])


class IsToldItsEdge(Foreign):
    def forward(self, edge, x, alphas):
        return sum(w * op(x) for w, op in zip(alphas[edge], self.choices, strict=True))

    def example(self, x, weights):
        return 1, x, torch.stack([weights.flip(0), weights])


class Named(Foreign):
    def __init__(self):
        super().__init__()
        self.choices = nn.ModuleDict({str(i): op for i, op in enumerate(candidates())})

    def forward(self, x, weights):
        return torch.stack([w * op(x) for w, op in zip(weights, self.choices.values(), strict=True)]).sum(0)


class Partial(Foreign):
    def forward(self, x, weights):
        seen, passed = x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]
        y = sum(w * op(seen) for w, op in zip(weights, self.choices, strict=True))
        return darts.channel_shuffle(torch.cat([y, passed], dim=1), 4)

    def example(self, x, weights):
        return x.repeat(1, 4, 1, 1), weights


class Optional(Foreign):
    def forward(self, x, weights, scale=1.0):
        return scale * sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))


FORMS = [Foreign, WeightsFirst, ListOfScalars, KnowsItsEdge, IsToldItsEdge, Named, Partial, Optional]


def results(module, *args):
    """The result and all gradients, for seeded numbers."""
    leaves = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor) and t.requires_grad]
    y = module(*args)
    torch.manual_seed(1)
    wanted = [p for p in module.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y, [*leaves, *wanted], torch.randn_like(y), allow_unused=True)]


def assert_same(found, expected, tolerance=1e-10):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def example_of(module, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(2, C, 8, 6, dtype=dtype, requires_grad=True)
    return module.example(x, torch.randn(4, dtype=dtype).softmax(0).requires_grad_())


@pytest.mark.parametrize("shown", [False, True], ids=["guessed", "with an example"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_and_computes_the_same(form, shown):
    torch.manual_seed(0)
    module = form().double()
    twin = copy.deepcopy(module)
    report = accelerate(twin, *example_of(twin)) if shown else accelerate(twin)
    assert report.replaced == [""], report
    assert inspect.signature(twin.forward) == inspect.signature(module.forward)
    assert list(twin.state_dict()) == list(module.state_dict())
    assert isinstance(twin, form) and type(twin).__qualname__ == form.__qualname__
    for training in (True, False):
        assert_same(
            results(twin.train(training), *example_of(twin)), results(module.train(training), *example_of(module))
        )
    assert_same(list(twin.buffers()), list(module.buffers()))
    args = example_of(twin)
    with LiveMemory() as memory:
        y = twin(*args)
        kept = memory.live - y.nbytes
    assert kept < 0.3 * y.nbytes < 0.3 * report.rows[0].before * y.nbytes
    # Keywords are told apart by name.
    args = example_of(module)
    named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
    assert_same([twin.eval()(**named)], [module.eval()(*args)])


class Experts(Foreign):
    def forward(self, x, weights):
        y = 1
        for w, op in zip(weights, self.choices, strict=True):
            y = y * (w * op(x))
        return y


class Gate(Foreign):
    def forward(self, x, logits):
        return sum(w * op(x) for w, op in zip(logits.softmax(-1), self.choices, strict=True))


class OwnLogits(Foreign):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return sum(w * op(x) for w, op in zip(self.alpha.softmax(-1), self.choices, strict=True))


class SkipsZeros(Foreign):
    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.choices, strict=True) if w != 0)


class WithSkip(Foreign):
    def forward(self, x, weights):
        return x + sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))


class OnlyInEval(Foreign):
    def forward(self, x, weights):
        y = sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))
        return y if self.training else y.clamp(min=0)


class DropsOne(Foreign):
    def forward(self, x, weights):
        kept = torch.rand(4).argsort()[1:].tolist()
        return sum(weights[k] * self.choices[k](x) for k in sorted(kept))


class ScaledByItsOwn(Foreign):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, weights):
        return self.scale * sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))


class Detached(Foreign):
    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights.detach(), self.choices, strict=True))


class Pair(Foreign):
    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.choices, strict=True)), weights


class Chain(Foreign):
    def forward(self, x, weights):
        for w, op in zip(weights, self.choices, strict=True):
            x = w * op(x)
        return x


class Temperature(Foreign):
    def __init__(self):
        super().__init__()
        self.tau, self.only, self.drops = 1.0, None, [0, 0]

    def forward(self, x, weights):
        if self.only is not None:
            return self.choices[self.only](x)
        weights = weights if self.tau == 1 else weights / self.tau
        return sum(w * op(x) for w, op in zip(weights, self.choices, strict=True))


class Counts(Foreign):
    def forward(self, x, weights):
        self.cost = (weights * torch.arange(4)).sum()
        return super().forward(x, weights)


class Logs(Foreign):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x, weights):
        self.log.append(x.shape)
        return super().forward(x, weights)


class ArgmaxAtTheEnd(Foreign):
    def forward(self, x, weights):
        if not torch.is_grad_enabled():
            return self.choices[int(weights.argmax())](x)
        return super().forward(x, weights)


class ArgmaxWhenFrozen(Foreign):
    def forward(self, x, weights):
        if not weights.requires_grad:
            return self.choices[int(weights.argmax())](x)
        return super().forward(x, weights)


class OneHotShortcut(Foreign):
    def forward(self, x, weights):
        if (weights == 1).any():
            return self.choices[int(weights.argmax())](x)
        return super().forward(x, weights)


class Masked(Foreign):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x, weights):
        return super().forward(x, weights * self.mask)


class GateOverNothing(Gate):
    """Whose candidates start at zero, so that all results are zero."""

    def __init__(self):
        super().__init__()
        self.choices = nn.ModuleList(nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.ReLU()) for _ in range(4))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Clamped(Foreign):
    def __init__(self):
        super().__init__()
        self.choices = nn.ModuleList(candidates()[:2])

    def forward(self, x, weights):
        return super().forward(x, weights.clamp(max=1))

    def example(self, x, weights):
        return x, weights[:2]


class DrawnElsewhere(Foreign):
    def forward(self, x, weights):
        return super().forward(x, weights) * (random.random() < 2)


LOOKALIKES = {
    Experts: "its result is not that of the weighted sum",
    Gate: "its result is not that of the weighted sum",
    OwnLogits: r"its forward takes \(x\), no argument for the weights",
    SkipsZeros: "the gradient of 'weights' is not that of the weighted sum .* one of them zero",
    WithSkip: "its result is not that of the weighted sum",
    OnlyInEval: "its result is not that of the weighted sum .* in eval mode",
    DropsOne: "its result is not that of the weighted sum",
    ScaledByItsOwn: "it holds 'scale' beside its candidates",
    Detached: "the gradient of 'weights' is not that of the weighted sum",
    Pair: "it returns tuple, not one tensor",
    Chain: "its result is not that of the weighted sum",
    Counts: "'cost'",
    Logs: "its forward sets 'log'",
    ArgmaxAtTheEnd: "its result is not that of the weighted sum .* without gradients",
    ArgmaxWhenFrozen: "with MixedOp it is not, .* want no gradient",
    OneHotShortcut: "with MixedOp it is not, .* one-hot",
    Masked: "it holds 'mask' beside its candidates",
    GateOverNothing: "its result is not that of the weighted sum",
    Clamped: "its result is not that of the weighted sum .* 2.5",
    DrawnElsewhere: "it draws random numbers that are not torch's",
}


@pytest.mark.parametrize("shown", [False, True], ids=["guessed", "with an example"])
@pytest.mark.parametrize("lookalike", LOOKALIKES)
def test_what_only_looks_like_a_mixed_operation_is_left_alone(lookalike, shown):
    module = lookalike()
    example = example_of(module, torch.float32)[: len(inspect.signature(module.forward).parameters)]
    report = accelerate(module, *example) if shown else accelerate(module)
    assert type(module) is lookalike and report.replaced == []
    assert re.search(LOOKALIKES[lookalike], report.rows[0].why), report


def test_a_probe_leaves_no_trace():
    torch.manual_seed(0)
    net = nn.ModuleList([Foreign(), Gate(), nn.Sequential(KnowsItsEdge())])
    net[0].choices[2].eval()
    for parameter in net[0].choices[0].parameters():
        parameter.requires_grad_(False)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = [m.training for m in net.modules()]
    report = accelerate(net)
    assert report.replaced == ["0", "2.0"]
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net[0].choices[0].parameters()] == [False, False]


class Chosen(nn.Module):
    """Runs a mixed operation, with weights of its own, twice."""

    def __init__(self, op=Foreign):
        super().__init__()
        self.first, self.second = op(), op()
        self.alpha = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        weights = self.alpha.softmax(-1)
        return self.second(self.first(x, weights[0]), weights[1]) + self.first(x, weights[1])


def test_an_example_leaves_no_trace_and_tells_bytes():
    torch.manual_seed(0)
    net = Chosen()
    x = torch.randn(3, C, 16, 16)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    report = accelerate(net, x)
    assert report.replaced == ["first", "second"]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [len(row.calls) for row in report.rows] == [2, 1] and report.rows[0].calls[0] == x.nbytes
    held = sum(row.before * size for row in report.rows for size in row.calls) / 2**20
    assert f"held {held:.1f} MiB beside their inputs, now 0.0" in str(report)


def test_restore():
    net = Chosen()
    x = torch.randn(2, C, 5, 5)
    report = accelerate(net)
    assert len(report.replaced) == 2
    assert [(row.replaced, row.why) for row in accelerate(net).rows] == [(True, "replaced before")] * 2
    report.restore()
    assert type(net.first) is Foreign and vars(net.first).keys() == vars(Foreign()).keys()
    accelerate(net)
    restore(net)
    restore(net)
    assert type(net.second) is Foreign
    assert_same(results(net, x), results(copy.deepcopy(net), x))


def test_the_report():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = Foreign(), Gate(), MixedOp(candidates())

    report = accelerate(Model())
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "class", "held", "beside", "its", "input", "why"]
    assert lines[1].startswith("a       Foreign  replaced")
    assert "3 of 4 candidates fused, opaque: Sequential" in lines[1]
    assert lines[2].startswith("b       Gate     as it was") and "weighted sum (off by" in lines[2]
    assert lines[-1] == "1 of 2 modules with a list of candidates replaced"


# --- what happens to models afterwards --------------------------------------------------------------------------------


def accelerated(op=Foreign):
    """A model, and the same one accelerated, in float64."""
    torch.manual_seed(0)
    net = Chosen(op).double()
    twin = copy.deepcopy(net)
    assert len(accelerate(twin).replaced) == 2
    return net, twin


def image(dtype=torch.float64):
    torch.manual_seed(2)
    return torch.randn(2, C, 7, 5, dtype=dtype, requires_grad=True)


def is_fused(net):
    """Whether its mixed operations keep no more than a MixedOp does."""
    with LiveMemory() as memory:
        x = image(next(net.parameters()).dtype)
        y = net(x)
        held = memory.live / y.nbytes
    assert y.requires_grad
    return held < 12  # 16 and more otherwise


def test_the_threshold_of_is_fused_tells_the_two_apart():
    net, twin = accelerated()
    assert not is_fused(net) and is_fused(twin)


@pytest.mark.parametrize("op", [Foreign, darts.MixedOp])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_accelerated_too_and_independent(copied, op):
    net, twin = accelerated()
    again = copied(twin)
    assert is_fused(again) and type(again.first) is type(twin.first)
    assert_same(results(again, image()), results(net, image()))
    with torch.no_grad():
        again.first.choices[0].weight.zero_()
    assert_same(results(twin, image()), results(net, image()))
    assert not torch.equal(again(image()), twin(image()))
    restore(again)
    assert type(again.first) is Foreign and type(twin.first) is not Foreign


def test_data_parallel(replicated):
    net, twin = accelerated()
    assert_same(results(nn.DataParallel(twin), image()), results(net, image()))
    expected = results(net, image())
    y = replicated(twin)(image())  # as on several GPUs
    torch.manual_seed(1)
    found = torch.autograd.grad(y, list(twin.parameters()), torch.randn_like(y))
    assert_same([y, *found], [expected[0], *expected[2:]])


@pytest.mark.parametrize("compiled", [lambda net: torch.compile(net, backend="aot_eager")])
def test_torch_compile(compiled):
    net, twin = accelerated()
    torch.compiler.reset()
    for _ in range(2):
        assert_same(results(compiled(twin), image()), results(net, image()), 1e-9)
    torch.compiler.reset()


def test_other_number_types():
    net, twin = accelerated()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        theirs, ours = copy.deepcopy(net).to(dtype), copy.deepcopy(twin).to(dtype)
        found, expected = results(ours, image(dtype)), results(theirs, image(dtype))
        assert [t.dtype for t in found] == [dtype] * len(found)
        scale = max(t.abs().max().item() for t in expected)
        assert all((a - b).abs().max() <= tolerance * scale for a, b in zip(found, expected, strict=True))
    assert_same(results(twin.half().double(), image()), results(net.half().double(), image()))


def test_autocast():
    net, twin = (model.float() for model in accelerated())
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = results(twin, image(torch.float32)), results(net, image(torch.float32))
    assert found[0].dtype == expected[0].dtype
    scale = max(t.abs().max().item() for t in expected)
    assert all((a - b).abs().max() <= 0.05 * scale for a, b in zip(found, expected, strict=True))


def test_frozen_parameters():
    net, twin = accelerated()
    for model in (net, twin):
        for parameter in model.first.parameters():
            parameter.requires_grad_(False)
    assert_same(results(twin, image()), results(net, image()))
    twin.requires_grad_(False)
    assert results(twin, image())[1].shape == (2, C, 7, 5)
    with torch.no_grad():
        assert torch.equal(twin(image()), twin(image().detach()))


def test_a_candidate_used_on_two_edges():
    def shared():
        torch.manual_seed(0)
        net = Chosen().double()
        net.second.choices[2] = net.first.choices[2]  # its batch norm moves with both
        net.second.choices[0] = net.first.choices[0]
        return net

    net, twin = shared(), shared()
    assert len(accelerate(twin).replaced) == 2
    assert twin.second.choices[2] is twin.first.choices[2]
    assert_same(results(twin, image()), results(net, image()))
    assert_same(list(twin.buffers()), list(net.buffers()))


def test_candidates_replaced_later_are_the_ones_that_run():
    net, twin = accelerated()
    for model in (net, twin):
        torch.manual_seed(3)
        model.first.choices[1] = nn.Conv2d(C, C, 5, padding=2).double()
        model.second.choices = nn.ModuleList(candidates()).double()
    assert_same(results(twin, image()), results(net, image()))


def test_hooks_on_the_module_still_run():
    net, twin = accelerated()
    calls = []
    for model in (net, twin):
        model.first.register_forward_hook(lambda module, args, y: calls.append(args[0].shape) or 2 * y)
    assert_same(results(twin, image()), results(net, image()))
    assert len(calls) == 4


def test_a_call_of_another_kind_runs_the_modules_own_forward():
    torch.manual_seed(0)
    module = Optional().double()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == [""]
    x, weights = example_of(module)
    assert_same(results(twin, x, weights, 3.0), results(module, x, weights, 3.0))
    assert_same([twin(x, weights.tolist())], [module(x, weights.tolist())])
    assert_same([twin(x, weights[:, None])], [module(x, weights[:, None])])  # (4, 1): scalars in a row's clothes
    for wrong in ((x,), (x, weights[:3]), (x, weights, 1.0, 2.0)):
        with pytest.raises((TypeError, ValueError)) as theirs:
            module(*wrong)
        with pytest.raises(type(theirs.value)):
            twin(*wrong)


@pytest.mark.parametrize("name, value", [("tau", 0.5), ("only", 2), ("drops", [0, 1])])
def test_a_setting_that_changes_brings_the_own_forward_back(name, value):
    torch.manual_seed(0)
    module = Temperature().double()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == [""]
    before = getattr(twin, name)
    for changed in (value, before):
        for each in (module, twin):
            setattr(each, name, changed)
        assert_same(results(twin, *example_of(twin)), results(module, *example_of(module)))
    twin.drops.append(1)  # in place, too
    assert twin(*example_of(twin)).grad_fn.name() not in OURS


def test_the_index_is_the_attribute_that_moves_the_row():
    class Strided(KnowsItsEdge):
        def __init__(self):
            super().__init__()
            del self.edge
            self.flops, self.stride, self.edge = 60_000_000, 1, 1

    torch.manual_seed(0)
    module = Strided().double()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == [""]
    for edge in (1, 0, 2):
        module.edge = twin.edge = edge
        assert_same(results(twin, *example_of(twin)), results(module, *example_of(module)))
        with LiveMemory() as memory:
            y = twin(*example_of(twin))
        assert y.grad_fn.name() in OURS and memory.peak


def test_a_forward_that_is_patched_later_is_the_one_that_runs(monkeypatch):
    net, twin = accelerated()
    monkeypatch.setattr(Foreign, "forward", lambda self, x, weights: self.choices[0](x))
    assert_same([twin(image())], [net(image())])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_tracing_and_function_transforms_take_the_own_forward():
    net, twin = (model.float().eval() for model in accelerated())
    x = image(torch.float32).detach()
    traced = torch.jit.trace(twin, x, check_trace=False)
    torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-4)
    parameters = dict(twin.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(twin, parameters, (x,)).square().mean()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(net(x).square().mean(), net.parameters())
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_partial_channels_of_odd_images_run_the_own_forward():
    class Ceils(Partial):
        def __init__(self):
            super().__init__()
            self.choices = nn.ModuleList(nn.Sequential(op, nn.MaxPool2d(3, 2, 1)) for op in candidates())
            self.mp = nn.MaxPool2d(2, 2, ceil_mode=True)

        def forward(self, x, weights):
            y = sum(w * op(x[:, :C]) for w, op in zip(weights, self.choices, strict=True))
            return darts.channel_shuffle(torch.cat([y, self.mp(x[:, C:])], dim=1), 4)

    torch.manual_seed(0)
    module = Ceils().double()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == [""]
    for size in (8, 7):
        x, weights = torch.randn(2, 4 * C, size, size).double(), torch.randn(4).double()
        assert_same([twin(x, weights)], [module(x, weights)])


class Promotes(Foreign):
    def forward(self, x, weights):
        return (weights.view(-1, 1, 1, 1, 1) * torch.stack([op(x) for op in self.choices])).sum(0)


@pytest.mark.parametrize("op", [Foreign, Promotes])
def test_types_that_differ_give_the_type_that_they_gave(op):
    module = op()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == [""]
    x, weights = example_of(module, torch.float32)
    for row, lowered in ((weights, False), (weights.double(), False), (weights, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            found, expected = twin(x, row), module(x, row)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol):
    _, twin = accelerated()
    again = pickle.loads(pickle.dumps(twin, protocol))
    assert is_fused(again)
    assert_same(results(again, image()), results(twin, image()))


class CopiesItself(Foreign):
    def __reduce__(self):
        return self.__class__, (), {"training": self.training}

    def __deepcopy__(self, memo):
        made = self.__class__()
        made.load_state_dict(self.state_dict())
        return made


def test_modules_that_are_made_anew_run_their_own_forward():
    torch.manual_seed(0)
    module = CopiesItself()
    assert accelerate(module).replaced == [""]
    x, weights = example_of(module, torch.float32)
    for made in (type(module)(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert made(x, weights).grad_fn.name() not in OURS
    assert torch.allclose(copy.deepcopy(module)(x, weights), module(x, weights), atol=1e-5)
    restore(module)
    assert type(module) is CopiesItself


def test_probes_run_no_hooks_and_an_example_leaves_buffers_where_they_were():
    class Averages(Chosen):
        def __init__(self):
            super().__init__()
            self.register_buffer("ema", torch.zeros(()))

        def forward(self, x):
            y = super().forward(x)
            self.ema = 0.9 * self.ema + y.detach().mean()
            return y

    net, calls = Averages(), []
    net.first.choices[1].register_forward_hook(lambda *_: calls.append(1))
    accelerate(net)
    assert calls == []
    restore(net)
    accelerate(net, torch.randn(2, C, 8, 8))
    assert net.ema == 0 and len(calls) == 2  # one run, in which the module is called twice


def test_nested_mixed_operations():
    class Outer(Foreign):
        def __init__(self):
            super().__init__()
            self.choices[3] = Fixed()

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Foreign()
            self.alpha = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return self.inner(x, self.alpha.softmax(-1))

    torch.manual_seed(0)
    module = Outer().double()
    twin = copy.deepcopy(module)
    assert accelerate(twin).replaced == ["", "choices.3.inner"]
    assert_same(results(twin, *example_of(twin)), results(module, *example_of(module)))
    assert_same(list(twin.buffers()), list(module.buffers()))


# --- forms that are taught --------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Weights that are found nowhere among the arguments, and candidates in a plain list."""

    def __init__(self):
        super().__init__()
        self.nodes = candidates()
        for i, node in enumerate(self.nodes):
            self.add_module(f"node{i}", node)
        self.edge, self.parts = 1, 1

    def forward(self, state):
        return sum(w * op(state["image"]) for w, op in zip(state["alphas"][self.edge].softmax(-1), self.nodes))  # noqa: B905


class Reads(Graph):
    def forward(self, image, alphas):
        return sum(w * op(image) for w, op in zip(alphas[self.edge].softmax(-1), self.nodes, strict=True))


def row_of(module, given):
    return given["alphas"][module.edge].softmax(-1)


def test_a_form_that_is_taught():
    torch.manual_seed(0)
    module = Reads().double()
    assert accelerate(module).rows == []  # nothing about it looks like candidates
    register_form(Reads, Form("nodes", x="image", weights=row_of, partial="parts"))
    alphas = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    twin = copy.deepcopy(module)
    assert "example inputs" in accelerate(twin).rows[0].why
    assert accelerate(twin, image(), alphas).replaced == [""]
    assert_same(results(twin, image(), alphas), results(module, image(), alphas))
    assert_same(results(pickle.loads(pickle.dumps(twin)), image(), alphas), results(module, image(), alphas))
    register_form(Reads, Form("nodes", x="image", weights="alphas", index="edge"))  # which has no softmax
    assert accelerate(copy.deepcopy(module)).replaced == []
    for wrong in (Form("nowhere", "image", row_of), Form("nodes", "image", row_of, partial="k")):
        register_form(Reads, wrong)
        report = accelerate(module, image(), alphas)
        assert re.search("Reads has no attribute '(nowhere|k)', which Form", report.rows[0].why)


def test_refusals():
    with pytest.raises(InputError, match="accelerate got list; give the supernet"):
        accelerate([Foreign()])
    with pytest.raises(InputError, match="give a class derived from nn.Module"):
        register_form(Foreign(), Form("choices", "x", "weights"))
    with pytest.raises(InputError, match="give a srnas_fast.mixed.Form"):
        register_form(Foreign, {"ops": "choices"})
    with pytest.raises(InputError, match="names the argument 'alphas'; Foreign.forward takes x, weights"):
        register_form(Foreign, Form("choices", "x", "alphas"))


class AddsATable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(C, 8, 6))

    def forward(self, x):
        return x + self.table


def test_modules_that_cannot_be_probed():
    class Locked(Foreign):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one of me")

    class Lazy(Foreign):
        def __init__(self):
            super().__init__()
            self.choices.append(nn.LazyConv2d(C, 1))

    class Open(Foreign):
        def forward(self, *args):
            return sum(op(args[0]) for op in self.choices)

    class Fixed(Foreign):
        """Fits images of one size."""

        def __init__(self):
            super().__init__()
            self.choices.append(AddsATable())

    patched = Foreign()
    patched.forward = lambda x: x
    net = nn.ModuleList([Foreign(), *(cls() for cls in (Locked, Lazy, Open, Fixed)), patched, Foreign().to("meta")])
    report = accelerate(net)
    assert report.replaced == ["0", "4"]
    reasons = [row.why for row in report.rows[1:]]
    assert accelerate(patched, torch.ones(1)).replaced == []
    assert "a forward of its own" in reasons[4] and "meta device" in reasons[5]
    assert "a probe failed: TypeError: there is only one of me" in reasons[0]
    assert "run the model once before" in reasons[1]
    assert "takes (*args), too much to guess from" in reasons[2]


# --- whole supernets --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("op", [darts.MixedOp, darts.PartialMixedOp])
def test_the_cifar_supernet_of_darts_and_its_sister(op):
    """8 cells, 112 mixed operations: five steps with the same losses and gradients, in a fraction of the memory."""
    torch.manual_seed(0)
    net = darts.Network(op).double()
    twin = copy.deepcopy(net)
    x, labels = torch.randn(5, 2, 3, 32, 32, dtype=torch.float64), torch.randint(10, (5, 2))
    report = accelerate(twin, x[0])
    mixed = [name for name, module in net.named_modules() if type(module) is op]
    assert report.replaced == mixed and len(mixed) == 112
    rows = [row for row in report.rows if row.replaced]
    before, after = (sum(getattr(row, when) * row.calls[0] for row in rows) for when in ("before", "after"))
    assert before > 10 * after
    optimizers = [torch.optim.SGD(n.parameters(), 0.025, momentum=0.9, weight_decay=3e-4) for n in (net, twin)]
    for step in range(5):
        losses, peaks = [], []
        for n, optimizer in zip((net, twin), optimizers, strict=True):
            optimizer.zero_grad()
            with LiveMemory() as memory:
                loss = F.cross_entropy(n(x[step]), labels[step])
                loss.backward()
            losses.append(loss.item())
            peaks.append(memory.peak)
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert peaks[0] > 4 * peaks[1]
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert (q.grad - p.grad).abs().max() <= 1e-5 * p.grad.abs().max(), name
        for optimizer in optimizers:
            optimizer.step()
    assert_same(list(twin.buffers()), list(net.buffers()), 1e-5)
