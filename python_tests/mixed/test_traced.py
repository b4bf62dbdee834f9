"""``torch.compile`` of mixed operations: one operator where a program serves, and the same numbers."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.library import opcheck

from srnas_fast import MixedOp
from srnas_fast.backends import cpu_kernels
from srnas_fast.mixed import PlainMixedOp, program, register_pattern, traced
from srnas_fast.mixed.unfold import UNFOLD

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="programs are run by the compiled CPU backend")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(program, "enabled", True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def candidates(channels=4):
    def conv(size, groups=1):
        return nn.Conv2d(channels, channels, size, 1, size // 2, 1, groups, bias=False)

    return [
        nn.Sequential(nn.LeakyReLU(0.2), conv(3), nn.BatchNorm2d(channels)),
        nn.Sequential(nn.ReLU(), conv(5, channels), conv(1), nn.BatchNorm2d(channels, affine=False)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(channels)),
        nn.Identity(),
    ]


class Chain(nn.Module):
    def __init__(self, make=candidates, count=3, **options):
        super().__init__()
        torch.manual_seed(0)
        self.ops = nn.ModuleList(MixedOp(make(), **options) for _ in range(count))

    def forward(self, x, weights, support=None):
        for op, row in zip(self.ops, weights, strict=True):
            x = op(x, row, support).relu()
        return x


def pair(**options):
    """The same chain twice, the second one to be compiled."""
    return Chain(**options), Chain(**options)


def given(chain, shape=(2, 4, 6, 5), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    count = len(chain.ops[0].ops)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.rand(len(chain.ops), count, generator=generator).requires_grad_()


def passes(chain, run, x, weights, support=None):
    y = run(x, weights, support)
    return [y.detach(), *torch.autograd.grad(y.sum(), [x, weights, *chain.parameters()])]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_no_graph_break_and_the_same_numbers(backend):
    eager, twin = pair()
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for _ in range(2):
        assert_same(passes(twin, compiled, *given(twin)), passes(eager, eager, *given(eager)))
        assert_same(list(twin.buffers()), list(eager.buffers()))  # running statistics moved, once
    support = [True, False, False, True]
    assert_same(passes(twin, compiled, *given(twin), support), passes(eager, eager, *given(eager), support))


def test_each_mixed_operation_is_one_operator_a_direction():
    seen = []

    def look(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if "srnas_fast" in str(node.target))
        return graph.forward

    chain = Chain()
    torch.compile(chain, backend=look, fullgraph=True)(*given(chain))
    assert seen == [torch.ops.srnas_fast.mixed_sum] * len(chain.ops)


CHANGES = {
    "modes": [
        lambda ops: ops.eval(),
        lambda ops: ops.train(),
        lambda ops: setattr(ops[0][0], "negative_slope", 0.7),
        lambda ops: setattr(ops[0][2], "momentum", 0.5),
    ],
    "settings": [
        lambda ops: vars(ops[2][0]).update(kernel_size=5, padding=2),
        lambda ops: vars(ops[0][1]).update(dilation=(2, 2), padding=(2, 2)),
        lambda ops: vars(ops[2][0]).update(count_include_pad=False),
    ],
    "modules": [
        lambda ops: setattr(ops[0][1], "bias", nn.Parameter(torch.ones(4))),
        lambda ops: ops[2].pop(1),
        lambda ops: ops.__setitem__(3, nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Identity())),
        lambda ops: ops.__setitem__(3, nn.MaxPool2d(3, 1, 1)),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_what_changes_is_compiled_anew(changes):
    eager, twin = pair()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for change in [lambda ops: None, *changes]:
        for chain in (eager, twin):
            torch.manual_seed(2)
            change(chain.ops[1].ops)
        assert_same(passes(twin, compiled, *given(twin)), passes(eager, eager, *given(eager)))
        assert_same(list(twin.buffers()), list(eager.buffers()))


class Scaled(nn.Module):
    """A class that is taught, with an attribute that decides."""

    def __init__(self):
        super().__init__()
        self.slope, self.conv = 0.1, nn.Conv2d(4, 4, 1, bias=False)
        self.unused = [torch.zeros(2), "a list of what cannot be compared"]

    def forward(self, x):
        return self.conv(nn.functional.leaky_relu(x, self.slope))


def conv(channels=4):
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False)


def shared():
    relu = nn.ReLU()
    return [nn.Sequential(relu, conv()), nn.Sequential(relu, conv())]


def tied():
    ops = [nn.Sequential(nn.ReLU(), conv()), nn.Sequential(nn.LeakyReLU(0.1), conv())]
    ops[1][1].weight = ops[0][1].weight
    return ops


def in_order():
    return [nn.Sequential(nn.ReLU(), conv()), nn.Identity()]


UNUSUAL = {
    "shared module": (shared, lambda ops: ops[1].__setitem__(0, nn.LeakyReLU(0.3))),
    "empty sequence": (lambda: [nn.Sequential(nn.ReLU(), conv()), nn.Sequential()], lambda ops: ops[1].append(conv())),
    "another order": (in_order, lambda ops: ops[0]._modules.update({"0": ops[0]._modules.pop("0")})),
    "tied weights": (tied, lambda ops: setattr(ops[1][1], "weight", nn.Parameter(torch.ones(4, 4, 3, 3)))),
    "attribute of a taught class": (lambda: [Scaled(), nn.Identity()], lambda ops: setattr(ops[0], "slope", 0.9)),
}


@pytest.mark.parametrize("make, change", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("same", [True, False], ids=["of the same module", "of another one"])
def test_unusual_changes_are_compiled_anew(make, change, same):
    """Also where the graph was made for another module that runs the same code."""
    if Scaled not in UNFOLD:
        register_pattern(Scaled, lambda block: [nn.LeakyReLU(block.slope), block.conv])
    torch.manual_seed(0)
    op = MixedOp(make())
    other = op if same else copy.deepcopy(op)
    compiled = torch.compile(lambda op, x, w: op(x, w), backend="aot_eager")
    x, weights = torch.randn(2, 4, 6, 5), torch.rand(2)
    assert_same(compiled(op, x, weights), op(x, weights))
    change(other.ops)
    plain = PlainMixedOp(copy.deepcopy(other.ops))
    found, expected = compiled(other, x, weights), plain(x, weights)
    assert_same(found, expected)
    gradients = [torch.autograd.grad(y.sum(), [*m.parameters()]) for y, m in [(found, other), (expected, plain)]]
    assert_same(*gradients)


def test_no_gradient_of_a_dead_candidate_that_no_program_serves():
    op = MixedOp([nn.Sequential(nn.AvgPool2d(9, 1, 4), nn.BatchNorm2d(4)), nn.Sequential(nn.ReLU(), conv())])
    compiled = torch.compile(op, backend="aot_eager")
    compiled(torch.randn(2, 4, 6, 5), torch.rand(2), [False, True]).sum().backward()
    for parameter in op.ops[0].parameters():
        assert parameter.grad is None or not parameter.grad.any()
    assert op.ops[1][1].weight.grad.any()


def test_gradients_are_tensors_of_their_own():
    op = MixedOp(candidates())
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 4, 6, 5), torch.rand(4)).sum().backward()
    gradients = [parameter.grad for parameter in op.parameters()]
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == len(gradients)


def test_borrowed_parameters_of_another_type_are_refused():
    op = MixedOp(candidates())
    call = torch.func.functional_call
    compiled = torch.compile(lambda given, x, w: call(op, given, (x, w)), backend="aot_eager", fullgraph=True)
    x, weights = torch.randn(2, 4, 6, 5), torch.rand(4)
    borrowed = {name: 2 * parameter.detach() for name, parameter in op.named_parameters()}
    assert_same(compiled(borrowed, x, weights), call(op, borrowed, (x, weights)))
    with pytest.raises(Exception, match="convert the module|Unsupported|float64"):
        compiled({name: parameter.double() for name, parameter in borrowed.items()}, x, weights)


@pytest.mark.parametrize("dynamic", [True, None])
def test_images_that_are_inputs_of_the_graph(dynamic):
    op = MixedOp(candidates())
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x, w: op(x, w), backend=count, dynamic=dynamic, fullgraph=True)
    for size in (6, 7, 8, 9):
        x, weights = torch.randn(2, 4, size, size + 1), torch.rand(4)
        expected = copy.deepcopy(op)(x, weights)
        assert_same(compiled(x, weights), expected)
    assert len(graphs) <= 2


@pytest.mark.slow
def test_a_compiled_call_is_checked_like_any_other():
    op, x, weights = MixedOp(candidates(), partial=2), torch.randn(2, 8, 6, 5), torch.rand(4)
    compiled = torch.compile(op, backend="aot_eager")
    with pytest.raises(Exception, match="give a floating-point tensor of shape"):
        compiled(x, weights, edge_weight=torch.ones(4))
    for own in (op, compiled):
        assert own(torch.randn(0, 8, 6, 5), weights).shape == (0, 8, 6, 5)


def test_dynamic_shapes_compile_no_more_often_than_plain_code():
    counts = []
    for kind in (PlainMixedOp, MixedOp):
        torch.compiler.reset()
        graphs = []

        def count(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph.forward

        torch.manual_seed(0)
        op = kind(candidates())
        compiled = torch.compile(op, backend=count)
        for size in (6, 7, 8, 11, 12):
            compiled(torch.randn(2, 4, size, size + 1), torch.ones(4))
        counts.append(len(graphs))
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("lowered", [False, True])
def test_channels_last_partial_channels_and_autocast(lowered):
    def make():
        return candidates(2)

    eager, twin = pair(make=make, partial=2)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    results = []
    for chain, run in ((eager, eager), (twin, compiled)):
        x, weights = given(chain)
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            results.append(passes(chain, run, x, weights))
    assert results[1][0].dtype == results[0][0].dtype
    assert results[1][0].stride() == results[0][0].stride()
    assert_same(results[1], results[0])


@pytest.mark.parametrize("wanted", [["x"], ["weights"], ["edge"], ["parameters"], ["weights", "edge", "parameters"]])
@pytest.mark.parametrize("alive", [None, [True, False, True, False]])
def test_any_gradients_that_are_wanted(wanted, alive):
    """Of weights of another type too, and of parameters one at a time: zeros where a candidate is dead."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        op = MixedOp(candidates(), partial=2)
        leaves = {"x": torch.randn(2, 8, 6, 5), "weights": torch.rand(4, dtype=torch.float64), "edge": torch.rand(())}
        parameters = [*op.parameters()][::2]
        op.requires_grad_(False)
        asked = [*(leaves[name] for name in wanted if name in leaves), *(parameters if "parameters" in wanted else [])]
        for tensor in asked:
            tensor.requires_grad_()
        run = torch.compile(op, backend="aot_eager", fullgraph=True) if compiled else op
        y = run(leaves["x"], leaves["weights"], alive, leaves["edge"])
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), asked)])
    assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
    assert_same(results[1], results[0])


@pytest.mark.parametrize("live", [0b1111, 0b1001])
def test_operators_are_as_they_tell_the_compiler(live):
    torch.manual_seed(0)
    op = MixedOp(candidates()).double()
    found = op._look_up(4, torch.float64, "cpu", None, None)
    parameters, statistics = (
        [traced._tensor(op.ops, each).detach() for each in tensors] for tensors in (found.parameters, found.statistics)
    )
    x, weights = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    ops, checks = torch.ops.srnas_fast, ("test_schema", "test_faketensor")
    given = x, weights, None, parameters
    opcheck(ops.mixed_sum_forward.default, (*given, statistics, found.text, live), test_utils=checks)
    y, kept = ops.mixed_sum_forward(*given, statistics, found.text, live)
    for every in (1, 2, 3):  # each, each second, each third gradient
        wanted = [k % every == 0 and k != 2 for k in range(3 + len(parameters))]
        opcheck(ops.mixed_sum_backward.default, (y, *given, kept, found.text, live, wanted), test_utils=checks)


def test_an_opaque_candidate_is_one_graph_break():
    class Own(nn.Module):
        def forward(self, x):
            return x.tanh() + 1

    op = MixedOp([*candidates(), Own()])
    x, weights = torch.randn(2, 4, 6, 5), torch.rand(5, requires_grad=True)
    assert torch._dynamo.explain(op)(x, weights).graph_break_count <= 1
    torch.testing.assert_close(torch.compile(op, backend="aot_eager")(x, weights), op(x, weights))


def test_a_bad_call_tells_what_is_wrong(on_cpu):
    chain = Chain(count=1)
    compiled = torch.compile(chain, backend="aot_eager")
    x, weights = given(chain)
    with pytest.raises(Exception, match="hold NaN"):
        compiled(x, torch.full_like(weights, torch.nan))


def test_a_graph_meets_no_images_that_it_was_not_made_for():
    def odd():
        return [nn.Sequential(nn.MaxPool2d(3, 2, 1)), nn.Sequential(nn.AvgPool2d(3, 2, 1))]

    op = MixedOp(odd(), partial=2)
    compiled = torch.compile(op, backend="aot_eager", dynamic=True)
    weights = torch.rand(2)
    torch.testing.assert_close(compiled(torch.ones(1, 4, 6, 6), weights), op(torch.ones(1, 4, 6, 6), weights))
    with pytest.raises(Exception, match="even height and width"):
        compiled(torch.ones(1, 4, 7, 6), weights)
    op = MixedOp(candidates())
    compiled = torch.compile(op, backend="aot_eager", dynamic=True)
    with pytest.raises(Exception, match="more than 1 value per channel"):
        compiled(torch.ones(1, 4, 1, 1), torch.ones(4))
    with pytest.raises(Exception, match="shape \\(4,\\)|give \\(4,\\)"):
        compiled(torch.ones(1, 4, 3, 3), torch.ones(3))
    with pytest.raises(Exception, match="booleans, one per candidate"):
        compiled(torch.ones(1, 4, 3, 3), torch.ones(4), [True])


def test_export():
    op = MixedOp(candidates()).eval()
    given = torch.randn(2, 4, 6, 5), torch.rand(4)
    exported = torch.export.export(op, given)
    torch.testing.assert_close(exported.module()(*given), op(*given))
