"""Programs: shared by what is alike, prepared anew where something changed, and at home in any process and thread."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast import MixedOp
from srnas_fast.backends import cpu_kernels
from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory, multi_adds
from srnas_fast.mixed import PlainMixedOp, Zero, free_scratch, program, scratch_held
from srnas_fast.mixed.program import FORMAT, Program
from srnas_fast.primitives.flops import hand_over

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="programs are run by the compiled CPU backend")


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """These tests are about programs, also in the pass that looks at branches."""
    monkeypatch.setattr(program, "enabled", True)


def candidates(channels=4, affine=True):
    def conv(size, dilation=1, groups=1):
        return nn.Conv2d(channels, channels, size, 1, dilation * (size // 2), dilation, groups, bias=False)

    def norm():
        return nn.BatchNorm2d(channels, affine=affine)

    def separable(size):
        return [nn.LeakyReLU(0.2), conv(size, 1, channels), conv(1), norm()]

    return [
        nn.Sequential(nn.LeakyReLU(0.2), conv(3, 2), norm()),
        nn.Sequential(*separable(3), *separable(3)),
        nn.Sequential(*separable(5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), norm()),
        conv(5),
        nn.Identity(),
        Zero(),
    ]


def inputs(op, shape=(2, 4, 9, 7), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return x, torch.rand(len(op.ops), generator=generator, dtype=dtype).requires_grad_()


def passes(op, x, weights, support=None):
    y = op(x, weights, support)
    return [y.detach(), *torch.autograd.grad(y, [x, weights, *op.parameters()], torch.ones_like(y))]


def share_of(op):
    [share] = op._prepared._shares.values()
    return share


def twins(make=candidates, dtype=torch.float64):
    made = []
    for kind in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        made.append(kind(make()).to(dtype))
    return made


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_all_of_it_is_one_node_of_the_graph():
    op = MixedOp(candidates())
    assert op(*inputs(op)).grad_fn.name() == "ProgramSumBackward"


def test_mixed_operations_that_are_alike_share_a_program():
    ops = [MixedOp(candidates()) for _ in range(2)]
    other = MixedOp(candidates(affine=False))
    for op in (*ops, other):
        op(*inputs(op))
    assert share_of(ops[0]).made is share_of(ops[1]).made
    assert share_of(ops[0]).made is not share_of(other).made


def test_a_program_of_another_format_is_refused():
    with pytest.raises(InputError, match="clear the compiler's cache"):
        Program(repr((FORMAT + 1, 4, 4, 1, 1, True, [])))


def test_what_may_change_from_call_to_call_is_noticed():
    """Modes, hyperparameters, slopes and exchanged tensors: each time the numbers are those of plain autograd."""
    plain, ours = twins()

    def changed(change):
        for op in (plain, ours):
            change(op)
        torch.manual_seed(1)
        assert_close(
            passes(ours, *inputs(ours, dtype=torch.float64)), passes(plain, *inputs(plain, dtype=torch.float64))
        )
        assert_close(list(ours.buffers()), list(plain.buffers()))

    def set_data(op):
        op.ops[4].weight.data = torch.full_like(op.ops[4].weight, 0.25)

    def turn(op):  # the same address and shape
        op.ops[4].weight.data = op.ops[4].weight.data.transpose(0, 1)

    def in_other_format(op):
        op.to(memory_format=torch.channels_last)

    def replace(op):
        op.ops[2][1].weight = nn.Parameter(torch.ones_like(op.ops[2][1].weight))

    def statistics(op):
        op.ops[3][1].running_mean = torch.full((4,), 2.0, dtype=torch.float64)

    for change in (
        lambda op: None,
        lambda op: op.eval(),
        lambda op: op.train(),
        lambda op: op.ops[1][3].eval(),
        lambda op: setattr(op.ops[2][3], "eps", 0.5),
        lambda op: setattr(op.ops[2][3], "momentum", 0.75),
        lambda op: setattr(op.ops[0][2], "momentum", None),
        lambda op: setattr(op.ops[0][0], "negative_slope", 0.75),
        set_data,
        turn,
        in_other_format,
        replace,
        statistics,
        lambda op: op.ops.__setitem__(5, nn.ReLU()),
        lambda op: setattr(op.ops[0][1], "padding_mode", "reflect"),
    ):
        changed(change)


def test_data_that_is_set_between_the_passes_is_refused_where_it_does_not_fit():
    op = MixedOp(candidates())
    y = op(*inputs(op))
    op.ops[4].weight.data = torch.ones(4, 4, 1, 1)
    with pytest.raises(RuntimeError, match=r"something set their \.data"):
        y.sum().backward()


def test_a_prelu_that_candidates_share_is_learned_once():
    def make():
        act = nn.PReLU()
        return [nn.Sequential(act, nn.Conv2d(4, 4, size, padding=size // 2)) for size in (3, 1)]

    plain, ours = twins(make)
    given = inputs(ours, dtype=torch.float64)
    torch.use_deterministic_algorithms(True)  # what nobody writes is NaN
    try:
        found = passes(ours, *given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(found, passes(plain, *given))


def test_a_prelu_of_other_channels_is_refused():
    op = MixedOp([nn.Sequential(nn.PReLU(2), nn.MaxPool2d(3, 1, 1)), nn.Identity()])
    with pytest.raises(RuntimeError, match="[Mm]ismatch of parameter numbers"):
        op(torch.randn(1, 64, 4, 4), torch.ones(2))


@pytest.mark.parametrize("change", ["half", "double", "channels_last"])
def test_what_data_becomes_between_the_passes(change):
    """Another layout is read as it is, another type refused."""
    plain, ours = twins(dtype=torch.float32)
    grads = []
    for op in (plain, ours):
        x, weights = inputs(op)
        y = op(x, weights).sum()
        if change == "channels_last":
            op.to(memory_format=torch.channels_last)
            y.backward()
            grads.append([x.grad, weights.grad])
        elif op is ours:
            getattr(op, change)()
            with pytest.raises(RuntimeError, match=r"something set their \.data"):
                y.backward()
            return
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_a_default_device_is_not_that_of_an_operation():
    op = MixedOp(candidates())
    given = inputs(op)
    expected = passes(op, *given)
    with torch.device("meta"):
        y = op(*given)
        found = torch.autograd.grad(y, given, torch.ones_like(y))
    torch.testing.assert_close([y.detach(), *found], expected[:3])


def test_settings_and_statistics_that_no_program_takes():
    """They run in the branches, and right."""
    strided = torch.stack([torch.zeros(4), torch.ones(4)], 1).double()

    def statistics(norm):
        norm.running_mean, norm.running_var = strided.clone()[:, 0], strided.clone()[:, 1]

    for change in (
        statistics,
        lambda norm: setattr(norm, "momentum", torch.tensor(0.3)),
        lambda norm: setattr(norm, "momentum", -0.5),
        lambda norm: setattr(norm, "eps", float("inf")),
        lambda norm: setattr(norm, "num_batches_tracked", torch.tensor(0.0)),
    ):
        plain, ours = twins()
        for op in (plain, ours):
            change(op.ops[2][3])
        given = inputs(ours, dtype=torch.float64)
        assert_close(passes(ours, *given), passes(plain, *given))
        for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
            assert_close(a.double(), b.double())


def test_a_negative_view():
    """Of a conjugate's imaginary part, whose sign torch leaves to whoever reads it."""
    op = MixedOp(candidates()).double()
    _, weights = inputs(op, dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.complex128).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(op(x, weights), op(x.resolve_neg(), weights))


def test_only_what_has_moved_counts_as_changed():
    op = MixedOp(candidates())
    op.ops[0][2].eval()
    before = [norm._version for norm in op.buffers()]
    op(*inputs(op), [True, False, True, False, False, False, False])
    moved = {name for (name, b), was in zip(op.named_buffers(), before, strict=True) if b._version != was}
    assert moved == {f"ops.2.3.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_programs_are_forgotten_where_a_setting_is_another_at_every_step(monkeypatch):
    monkeypatch.setattr(program, "MOST_PROGRAMS", 8)
    op = MixedOp(candidates())
    given = inputs(op)
    for step in range(20):
        op.ops[0][2].momentum = 0.1 + step / 100
        passes(op, *given)
    assert len(program._programs) <= 8


def test_weights_elsewhere_are_refused():
    op = MixedOp(candidates())
    x, weights = inputs(op)
    with pytest.raises(InputError, match="cpu, meta; move them to one device"):
        op(x, weights.to("meta"))


def test_candidates_beside_the_program():
    """Dense convolutions of many channels, pools of unusual windows and opaque modules, in one mixed operation."""

    def make():
        wide = nn.Sequential(nn.Conv2d(4, 80, 1), nn.Conv2d(80, 4, 3, padding=1))
        return [*candidates(), nn.AvgPool2d(9, 1, 4), wide, nn.Sequential(nn.Tanh(), nn.Conv2d(4, 4, 1))]

    plain, ours = twins(make)
    count = len(ours.ops)
    for support in (None, [k % 2 == 0 for k in range(count)], [k == 8 for k in range(count)]):
        given = inputs(ours, dtype=torch.float64)
        found, expected = passes(ours, *given, support), None
        y = plain(*given, support)
        grads = torch.autograd.grad(y, [*given, *plain.parameters()], torch.ones_like(y), allow_unused=True)
        expected = [torch.zeros_like(f) if e is None else e for f, e in zip(found[1:], grads, strict=True)]
        assert_close(found, [y.detach(), *expected])
        assert_close(list(ours.buffers()), list(plain.buffers()))
    assert len(share_of(ours).candidates) == len(candidates())


def test_sine_of_any_size():
    from srnas_fast.mixed import Sine

    torch.manual_seed(0)
    op = MixedOp([nn.Sequential(Sine(), nn.Conv2d(1, 1, 1, bias=False))])
    op.ops[0][1].weight.data.fill_(1.0)
    x = torch.cat([torch.tensor([torch.inf, torch.nan, 0.0])] + [torch.randn(200) * 10**k for k in range(-8, 12)])
    x = x[:4000].view(1, 1, 8, -1).requires_grad_()
    y = op(x, torch.ones(1))
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y.detach(), x.detach().double().sin().float(), rtol=0, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(dx, x.detach().double().cos().float(), rtol=0, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype):
    """Fused candidates compute in float32 whatever autocast says; the result is of the type that the plain sum has."""
    plain, ours = twins(lambda: candidates()[:3], torch.float32)  # a pool or the identity would keep the type of x
    x, weights = inputs(ours)
    x = x.detach().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(x, weights), ours(x, weights)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert found.grad_fn.name() == "ToCopyBackward0" or found.grad_fn.name() == "ProgramSumBackward"
    exact = PlainMixedOp(ours.ops).double()(x.double(), weights.double())
    error, of_plain = ((t.double() - exact).norm() / exact.norm() for t in (found, expected))
    assert error < 2**-8 and error <= of_plain


def test_weights_that_are_a_negative_view():
    """Of the imaginary part of a conjugate, whose sign is a bit."""
    plain, ours = twins()
    x, weights = (t.detach() for t in inputs(ours, dtype=torch.float64))
    negative = torch.complex(torch.zeros_like(weights), weights).conj().imag
    assert negative.is_neg()
    assert_close(ours(x, negative), plain(x, negative))


def test_the_profiler_sees_a_program_beside_a_branch():
    """Many channels of a dense convolution are torch's, whose parameters the program gives no gradients."""

    def wide(channels=72):
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        separable = nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False))
        return [nn.Conv2d(channels, channels, 3, padding=1), separable, nn.Identity()]

    plain, ours = twins(wide)
    given = [torch.randn(1, 72, 3, 4, dtype=torch.float64, requires_grad=True), inputs(ours)[1].double()[:3]]
    with torch.profiler.profile() as profiler:
        found = passes(ours, *given)
    assert_close(found, passes(plain, *given))
    assert {"srnas_fast::mixed_sum_forward", "srnas_fast::mixed_sum_backward"} <= {
        e.key for e in profiler.key_averages()
    }


def test_operations_are_counted():
    """As plain torch would run them, forward; backward twice as many, and those made again."""
    plain, ours = twins(dtype=torch.float32)
    x, weights = (t.detach() for t in inputs(ours))
    expected = 2 * multi_adds(plain, x, weights)
    ours(x, weights)
    share, parameters = share_of(ours), [p.detach() for p in ours._prepared.parameters]
    hand_over()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y, kept = share.forward(x, weights, None, parameters, ours._prepared.all)
        assert counter.get_total_flops() == expected > 0
        wanted = [True, True, False, *[True] * len(parameters)]
        share.backward(y, x, weights, None, parameters, kept, ours._prepared.all, wanted)
    assert counter.get_total_flops() == 4 * expected


# ------------------------------------------------------------------------------------------------------------- memory


def test_scratch_counts_in_the_peak_and_is_held_by_nobody(on_cpu):
    op = MixedOp(candidates())
    x, weights = inputs(op, (4, 4, 64, 64))
    with LiveMemory() as memory:
        y = op(x, weights)
        assert memory.held() < y.nbytes + x.nbytes / 16
        assert memory.peak > y.nbytes + x.nbytes  # one image of scratch at least
    assert scratch_held() > 0
    free_scratch()
    assert scratch_held() == 0
    passes(op, x, weights)  # it is taken anew


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_two_thousand_steps_take_no_more_memory_than_some():
    op = MixedOp(candidates())
    small, large = inputs(op, (1, 4, 5, 5)), inputs(op, (1, 4, 24, 24))
    optimizer = torch.optim.SGD(op.parameters(), 1e-3)

    def steps(count):
        for i in range(count):
            optimizer.zero_grad()
            op(*(large if i % 16 == 0 else small)).square().mean().backward()
            optimizer.step()

    steps(100)
    gc.collect()
    before = resident()
    steps(2000)
    gc.collect()
    assert resident() - before < 2**20


def test_an_exception_in_a_candidate_leaves_nothing_behind():
    class Raises(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("in a candidate")

    op = MixedOp([*candidates(), Raises()])
    x, weights = inputs(op, (2, 4, 64, 64))
    alive = [*[True] * 7, False]
    op(x, weights, alive)
    gc.collect()
    with LiveMemory() as memory:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                op(x, weights)
        assert memory.held() == 0
    op(x, weights, alive)


def test_watched_modules_are_collected():
    """The watch of an accelerated module refers to the module that it belongs to."""
    import weakref

    from srnas_fast import accelerate

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self._ops = nn.ModuleList(candidates())

        def forward(self, x, weights):
            return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))

    module = Mixed()
    assert accelerate(module).replaced == [""]
    module(*inputs(MixedOp(candidates())))
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


# ------------------------------------------------------------------------------------------------ threads and processes


def test_eight_threads_at_once():
    op = MixedOp(candidates()).double().eval()
    given = [inputs(op, (2, 4, 17 + k, 16), torch.float64) for k in range(8)]
    expected = [passes(op, *each) for each in given]
    found: list = [None] * 8
    errors = []

    def work(k):
        try:
            for _ in range(20):
                found[k] = passes(op, *given[k])
                assert_close(found[k], expected[k])
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors and not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_worker_after_use():
    op = MixedOp(candidates()).eval()
    x, weights = inputs(op, (2, 4, 32, 32))  # small enough for torch's own operations to take one thread
    with torch.no_grad():
        expected = op(x, weights)  # by several threads, which do not survive the fork
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if torch.equal(op(x, weights), expected) else 1)
    deadline = time.monotonic() + 40
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == (child, 0)


SCRIPT = """
import os, signal, threading, time, torch
from torch import nn
from srnas_fast import MixedOp
conv = lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 7, padding=3, bias=False), nn.BatchNorm2d(16))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job is told to ignore
op = MixedOp([conv() for _ in range(6)])
x, weights = torch.randn(8, 16, 96, 96, requires_grad=True), torch.ones(6, requires_grad=True)
op(x, weights).sum().backward()
y = op(x, weights).sum()
threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for _ in range(100):
        y.backward(retain_graph=True)
except KeyboardInterrupt:
    expected = op.ops[0][1].weight.grad.clone().zero_()
    for p in op.parameters():
        p.grad = None
    op(x, weights).sum().backward()
    assert op.ops[0][1].weight.grad.isfinite().all()
    print("interrupted and went on")
"""


def test_ctrl_c_in_the_backward_pass():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted and went on\n", done.stderr
