"""Captured search steps: on a GPU beside the eager ones, and without one by a recording of what torch is told to do.

The recording keeps, as a CUDA graph does, every operation with the tensors that it read and wrote, runs them again in
that order, refuses what a capture refuses, and leaves no trace of having been made.
"""

import json
import sys
import weakref
from contextlib import nullcontext

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn
from torch._library.custom_ops import _maybe_get_opdef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from srnas_fast.backends import gpu, triton
from srnas_fast.data import DenoisingData
from srnas_fast.losses import ComplexityLoss
from srnas_fast.mixed import opaque
from srnas_fast.search import Bilevel, BilevelConfig, RunConfig, graphs
from srnas_fast.search import search as search_images
from srnas_fast.spaces import find_space

BILEVEL = sys.modules["srnas_fast.search.bilevel"]
aten = torch.ops.aten
# What waits for the GPU, reads an index from it, or copies from the CPU to it (a tensor made of Python's numbers).
FORBIDDEN = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2),
    *(aten.index, aten.index_put_, aten.lift_fresh, aten.lift_fresh_copy, aten.record_stream),
}


class Recorder(TorchDispatchMode):
    """Runs what torch is told to do and writes it down; looks into the operations of this library, too."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function.overloadpacket in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        if function.namespace == "srnas_fast":
            with self:
                return _maybe_get_opdef(function)._init_fn(*arguments, **options)
        outputs = function(*arguments, **options)
        self.tape.append((function, arguments, options, outputs))
        return outputs


def tensors(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Recording:
    """Stands in for what is captured on a GPU."""

    made, net = [], None

    def __init__(self, work, pool):
        before = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        try:
            with Recorder() as recorder:
                self.result = work()
        finally:
            for name, buffer in self.net.named_buffers():
                buffer.copy_(before[name])
        self.tape, self.given_pool, self.pool = recorder.tape, pool, pool or object()
        self.made.append(self)

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, outputs in self.tape:
            read = {t.untyped_storage().data_ptr() for t in tensors((arguments, options))}
            again = function(*arguments, **options)
            for old, new in zip(tensors(outputs), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() not in read:  # else a view, or changed in place
                    old.copy_(new)


def recording():
    return isinstance(_get_current_dispatch_mode(), Recorder)


def refuse_states():
    raise RuntimeError("random states are not read during a capture")


@pytest.fixture
def captures(monkeypatch):
    """A CPU takes the part of the GPU; the recordings made."""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    monkeypatch.setattr(graphs, "_Recording", Recording)
    monkeypatch.setattr(graphs, "_aside", lambda work: work())
    monkeypatch.setattr(Recording, "made", [])
    state = opaque._random_state
    monkeypatch.setattr(opaque, "_random_state", lambda x: refuse_states() if recording() else state(x))
    torch.set_num_threads(1)  # the tensors are tiny
    project, mixed_op = (sys.modules[f"srnas_fast.{name}"] for name in ("primitives.simplex_project", "mixed.mixed_op"))
    monkeypatch.setattr(project, "_is_captured", lambda tensor: recording())
    monkeypatch.setattr(mixed_op, "_visible", lambda weights: False)  # on a GPU it never is

    def step_graphs(fabric, net):
        monkeypatch.setattr(Recording, "net", net)
        return graphs.StepGraphs(fabric, net)

    monkeypatch.setattr(BILEVEL, "step_graphs", step_graphs)
    return Recording.made


SIZES = {"hinas-denoise": {"filters": 2, "layers": 2, "nodes": 1}, "dlsr-x2": {"width": 4, "cells": 3}}


def search(space, weights="softmax", cuda_graphs=True, device="cpu", precision=None, plugins=None, **settings):
    """A search of that space with its own loss and, where it has one, its penalty."""
    torch.manual_seed(0)
    the = find_space(space)
    size = the.supernet_config(**SIZES[space], weights=weights)
    net, penalty = the.supernet(size), None
    if the.candidate_costs:
        cost = ComplexityLoss(the.candidate_costs(size, "params"), 0.1)
        penalty = lambda: cost(net.candidate_weights())  # noqa: E731 as the search has it
    usual = {"optimizer": "adam", "learning_rate": 5e-4} if the.candidate_costs else {"learning_rate": 2e-3}
    schedule = BilevelConfig(epochs=20, warmup_epochs=0, final_learning_rate=0.0, **(usual | settings))
    fabric = Fabric(accelerator=device, devices=1, precision=precision, plugins=plugins)
    return Bilevel(fabric, net, the.loss(), schedule, penalty, cuda_graphs)


def batch(space, seed, size=16, count=2):
    random = torch.Generator().manual_seed(seed)
    channels, scale = (3, 2) if space == "dlsr-x2" else (1, 1)
    return [torch.rand(count, channels, s, s, generator=random) for s in (size, scale * size)]


def steps(algorithm, space, count, radii=None, also=None):
    """Losses, gradients and the whole state after each of several steps."""
    found, net = [], algorithm.supernet
    for step in range(count):
        net.radius = radii[step] if radii else 0.0
        given, seen = batch(space, 2 * step), batch(space, 2 * step + 1)
        mixed = space == "dlsr-x2" if also is None else also
        losses = [algorithm.architecture_step(*given, also=[seen] if mixed else [])]
        gradients = [p.grad.clone() for p in net.architecture_parameters()]
        losses.append(algorithm.weight_step(*seen, epoch=step))
        gradients += [p.grad.clone() for p in net.network_parameters() if p.grad is not None]
        found.append((losses, gradients, [t.clone() for t in net.state_dict().values()]))
    return found


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for step, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours[0] == theirs[0], f"losses of step {step}"
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            assert len(mine) == len(other)
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True)), f"step {step}"


@pytest.mark.parametrize("weights", ["softmax", "sparsemax", "sparsestmax"])
@pytest.mark.parametrize("space", SIZES)  # SGD and one loss; Adam, two losses and a penalty
def test_replayed_steps_are_the_eager_ones_to_the_bit(space, weights, captures, capsys):
    radii = [0.02, 0.03, 0.04, 0.05] if weights == "sparsestmax" else None  # no choice is out yet
    ours, eager = (search(space, weights, on) for on in (True, False))
    assert_equal(steps(ours, space, 4, radii), steps(eager, space, 4, radii))
    assert len(captures) == len(ours.graphs.graphs) == 2 and eager.graphs is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_replayed_steps_cast_the_newest_weights_and_scale_by_the_newest_scale(precision, captures):
    space, scaled = "hinas-denoise", precision == "16-mixed"
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3) if scaled else None for _ in range(2)]
    plugins = [[MixedPrecision(precision, "cpu", scaler)] for scaler in scalers]
    ours, eager = (search(space, cuda_graphs=on, plugins=plugins[on]) for on in (True, False))
    assert_equal(steps(ours, space, 4), steps(eager, space, 4))
    assert len(captures) == 2
    assert not scaled or scalers[0].get_scale() == scalers[1].get_scale() > 2.0**8


@pytest.mark.parametrize("weights", ["softmax", "sparsemax", "sparsestmax"])
@pytest.mark.parametrize("space", SIZES)
def test_no_tensor_of_a_pass_is_made_on_another_device(space, weights, monkeypatch):
    """A tensor of the CPU among those of the device ``meta`` is refused, as it is among those of a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device
    the = find_space(space)
    size = the.supernet_config(**SIZES[space], weights=weights)
    net = the.supernet(size)
    support, net = net.support(), net.to("meta")
    net.radius = torch.zeros((), dtype=torch.float64, device="meta")
    given, target = (part.to("meta") for part in batch(space, 0))
    loss = the.loss()(net(given, support=support), target)
    if the.candidate_costs:
        loss = loss + ComplexityLoss(the.candidate_costs(size, "params"))(net.candidate_weights())
    loss.backward()
    assert all(p.grad.is_meta for p in net.parameters())


def test_a_support_that_changed_is_captured_anew_and_the_memory_of_the_old_one_is_free_before(captures, monkeypatch):
    alive = []
    monkeypatch.setattr(graphs, "_aside", lambda work: alive.append(len(ours.graphs.graphs)) or work())
    ours, eager = (search("dlsr-x2", "sparsestmax", on) for on in (True, False))
    radii = [0.0, 0.0, 0.0, 0.9, 0.9, 0.9]
    assert_equal(steps(ours, "dlsr-x2", 6, radii), steps(eager, "dlsr-x2", 6, radii))
    assert alive == [0] * 4
    pools = [(recording.given_pool, recording.pool) for recording in captures]
    assert [given for given, _ in pools] == [None, pools[0][1], None, pools[2][1]]


def test_other_shapes_are_captured_anew(captures):
    space = "hinas-denoise"
    ours, eager = (search(space, cuda_graphs=on) for on in (True, False))
    for count in (2, 2, 3, 3, 3, 2):
        losses = [algorithm.weight_step(*batch(space, 0, count=count), epoch=0) for algorithm in (ours, eager)]
        assert losses[0] == losses[1]
    assert [recording.result.shape for recording in captures] == [(1,)] * 2
    assert not ours.graphs.graphs  # the last pass was the first of its shape


def test_an_optimiser_that_begins_later_costs_the_other_no_second_first_pass(captures, monkeypatch):
    """As at the end of the warm-up, in which the architecture rests."""
    first, space = [], "hinas-denoise"
    monkeypatch.setattr(graphs, "_aside", lambda work: first.append(len(captures)) or work())
    ours, eager = (search(space, cuda_graphs=on) for on in (True, False))
    for algorithm in (ours, eager):
        for step in range(3):
            algorithm.weight_step(*batch(space, step), epoch=0)
    assert_equal(steps(ours, space, 3), steps(eager, space, 3))
    assert first == [0, 1] and len(captures) == 3


class Curious(nn.Module):
    """A loss that looks at its value."""

    def forward(self, restored, clean):
        loss = (restored - clean).square().mean()
        return loss * (1.0 if loss.item() > 0 else 2.0)


@pytest.mark.parametrize("late", [False, True])
def test_a_capture_that_fails_is_told_once_and_leaves_no_trace(late, captures, capsys):
    space, found = "hinas-denoise", []
    for on in (True, False):
        algorithm = search(space, cuda_graphs=on)
        if late:  # gradients are there already
            algorithm.penalty = lambda net=algorithm.supernet: net.alpha.sum() * net.alpha.sum().item()
        else:
            algorithm.loss = Curious()
        found.append(steps(algorithm, space, 4))
    assert_equal(*found)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("srnas_fast: no CUDA graphs, since a step cannot be captured (")
    assert "_local_scalar_dense" in lines[0] and not captures


def test_random_numbers_of_the_cpu_are_not_captured(captures, capsys):
    space, found = "hinas-denoise", []
    for on in (True, False):
        algorithm = search(space, cuda_graphs=on)
        algorithm.supernet.head.append(nn.Dropout(0.5))
        torch.manual_seed(1)
        found.append(steps(algorithm, space, 3))
    assert_equal(*found)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "random numbers on the CPU" in lines[0] and not captures


def test_opaque_candidates_are_not_captured(captures, capsys):
    space, found = "hinas-denoise", []
    for on in (True, False):
        algorithm = search(space, cuda_graphs=on)
        algorithm.supernet.cells[0][0].edges[0].ops[0].register_forward_hook(lambda *_: None)
        found.append(steps(algorithm, space, 3))
    assert_equal(*found)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "(random states are not read" in lines[0] and not captures


def test_opaque_candidates_read_no_random_states_in_a_capture(monkeypatch):
    class OnGpu:
        is_cuda, device = True, torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="opaque candidates"):
        opaque._random_state(OnGpu)


def test_the_cause_of_a_failed_capture_is_told_and_not_how_it_ended():
    with pytest.raises(RuntimeError) as ended:
        try:
            raise RuntimeError("operation not permitted\nand much more")
        finally:
            raise RuntimeError("capture_end")
    assert graphs._cause(ended.value) == "operation not permitted"


def test_where_there_are_no_graphs(capsys):
    class Fabric:
        device, world_size = torch.device("cpu"), 2

    assert graphs.step_graphs(Fabric, None) is None and not capsys.readouterr().err
    Fabric.device = torch.device("cuda")
    assert graphs.step_graphs(Fabric, None) is None
    assert "more than one process" in capsys.readouterr().err


def searched(images, folder, weights, cuda_graphs, resume=False):
    """The log and the checkpoint of six steps, which are validated in between; the first two are warm-up."""
    search_images(
        "hinas-denoise",
        supernet=find_space("hinas-denoise").supernet_config(filters=2, layers=1, nodes=1, weights=weights),
        data=DenoisingData(root=str(images), patch=16, batch=2, validation_crop=16),
        search=BilevelConfig(epochs=3, warmup_epochs=1, steps=2, validate_from=1),
        run=RunConfig(str(folder), resume, device="cpu", threads=1, checkpoint_every=2, cuda_graphs=cuda_graphs),
    )
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in record.items() if k not in ("seconds", "memory_now", "memory_peak")} for record in records
    ]
    return kept, torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("weights", ["softmax", "sparsestmax"])
def test_a_whole_search_killed_and_resumed_with_graphs_is_the_eager_one(
    weights, images, tmp_path, monkeypatch, captures
):
    records, state = searched(images, tmp_path / "eager", weights, cuda_graphs=False)
    assert not captures
    weight_step, done = Bilevel.weight_step, []

    def dies(self, *arguments):
        done.append(arguments)
        if len(done) == 6:  # past the checkpoint of step 4
            raise RuntimeError("killed")
        return weight_step(self, *arguments)

    monkeypatch.setattr(Bilevel, "weight_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        searched(images, tmp_path / "ours", weights, cuda_graphs=True)
    monkeypatch.setattr(Bilevel, "weight_step", weight_step)
    before = len(captures)
    again, resumed = searched(images, tmp_path / "ours", weights, cuda_graphs=True, resume=True)
    assert 0 < before < len(captures) if weights == "softmax" else before
    assert again == records
    for part in ("supernet", "weights_optimizer", "architecture_optimizer"):
        torch.testing.assert_close(resumed[part], state[part], rtol=0, atol=0)


def test_a_resumed_run_may_change_its_mind_about_graphs(images, tmp_path):
    searched(images, tmp_path / "run", "softmax", cuda_graphs=True)
    searched(images, tmp_path / "run", "softmax", cuda_graphs=False, resume=True)
    assert "cuda_graphs: false" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_failed_capture_is_gone_before_the_step_runs_as_it_is(captures, monkeypatch, capsys):
    """Else a capture that ran out of memory would leave none to the step."""
    made, gone = [], []

    class Activation:
        pass

    def fail(work, pool):
        activation = Activation()
        made.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("no room")

    def work(batches):
        gone.extend(each() is None for each in made)
        return torch.zeros(())

    monkeypatch.setattr(graphs, "_Recording", fail)
    algorithm = search("hinas-denoise")
    for _ in range(3):
        algorithm.graphs.run(algorithm.weights, work, [batch("hinas-denoise", 0)], None)
    assert gone == [True, True] and algorithm.graphs.given_up
    assert "no CUDA graphs, since a step cannot be captured (no room)" in capsys.readouterr().err


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: no CUDA graph can be captured without"
)


def serves(backend):
    """Skips where there is no such backend for the GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    failure = {"triton": triton.why_not, "cuda": gpu.why_not}.get(backend, lambda device: None)(device)
    if failure:
        pytest.skip(failure.reason)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("weights", ["softmax", "sparsemax", "sparsestmax"])
@pytest.mark.parametrize("space", ["hinas-denoise", "dlsr-x2"])
def test_replayed_steps_on_a_gpu_are_the_eager_ones(space, weights, precision, backend, monkeypatch, capsys):
    serves(backend)
    monkeypatch.setenv("SRNAS_FAST_BACKEND", backend)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    radii = [0.02, 0.03, 0.04, 0.05, 0.06] if weights == "sparsestmax" else None
    ours, eager = (search(space, weights, on, "cuda", precision) for on in (True, False))
    got, expected = (steps(algorithm, space, 5, radii) for algorithm in (ours, eager))
    assert len(ours.graphs.graphs) == 2 and not capsys.readouterr().err
    share = 1e-3 if precision == "32-true" else 3e-2
    near = share / 10 if space == "hinas-denoise" else 5e-3  # Adam takes whole steps where a gradient is but rounding
    for (losses, _, state), (other_losses, _, other) in zip(got, expected, strict=True):
        assert losses == pytest.approx(other_losses, rel=share)
        for name, mine, theirs in zip(ours.supernet.state_dict(), state, other, strict=True):
            same = name.endswith("num_batches_tracked")
            torch.testing.assert_close(mine, theirs, rtol=0 if same else share, atol=0 if same else near, msg=name)


@pytest.mark.gpu
@needs_gpu
def test_every_replay_draws_numbers_of_its_own():
    algorithm = search("hinas-denoise", device="cuda", learning_rate=1e-9)
    algorithm.supernet.head.append(nn.Dropout(0.5))
    losses = [algorithm.weight_step(*batch("hinas-denoise", 0), epoch=0) for _ in range(6)]
    assert len(algorithm.graphs.graphs) == 1 and len(set(losses)) == 6


@pytest.mark.gpu
@needs_gpu
def test_a_capture_that_fails_on_a_gpu_leaves_a_search_that_goes_on(capsys):
    found = []
    for on in (True, False):
        algorithm = search("hinas-denoise", cuda_graphs=on, device="cuda")
        algorithm.loss = Curious()
        found.append([losses for losses, *_ in steps(algorithm, "hinas-denoise", 4)])
        torch.rand(8, device="cuda")  # the generator is left in order
    assert found[0] == [pytest.approx(losses, rel=1e-3) for losses in found[1]]
    assert len(capsys.readouterr().err.splitlines()) == 1
