"""CUDA graphs: the forward and backward pass of a search step, captured once and replayed with other images.

A step launches thousands of small kernels, and a GPU waits for the launches. A replay is a single one.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from srnas_fast.search.run import to_device

Batches = Sequence[Sequence[Tensor]]


def step_graphs(fabric: Fabric, supernet: nn.Module) -> "StepGraphs | None":
    """The graphs of a search; None where there is no GPU, or where a line says why they cannot serve."""
    if fabric.device.type != "cuda":
        return None
    if fabric.world_size > 1:
        _tell("the search runs in more than one process")
        return None
    return StepGraphs(fabric, supernet)


class StepGraphs:
    """The captured passes of a search, the newest of each optimiser.

    An optimiser's first pass runs as it is: a step like any other, after which all libraries have chosen their kernels
    and taken their workspaces. Its second one is captured and replayed, and so are all later ones, until the shapes of
    the batches or the support of the architecture weights change. The optimisers stay outside.

    A pass that runs as it is finds no graph alive, and the graphs share one pool of memory: a search takes that of its
    largest pass, not that of all. So a replay may write over the gradients that an earlier one left to another
    optimiser, which has used them by then.

    A capture that fails is told in one line, and that pass and all later ones run as they are. A capture executes
    nothing: parameters, running statistics and random numbers are then as they were before it.

    Args:
        fabric: where the search computes.
        supernet: has a ``radius``, which each replay reads anew.
    """

    def __init__(self, fabric: Fabric, supernet: nn.Module):
        self.fabric, self.supernet = fabric, supernet
        self.radius = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self.graphs: dict[torch.optim.Optimizer, _StepGraph] = {}
        self.warm: dict[torch.optim.Optimizer, Any] = {}  # what each optimiser's last pass that ran as it is was of
        self.given_up = False

    def run(
        self, optimizer: torch.optim.Optimizer, work: Callable[[Batches], Tensor], batches: Batches, support: Any
    ) -> Tensor:
        """The losses, which the next pass writes over, and the gradients of the optimiser's parameters.

        Args:
            optimizer: tells one kind of pass from another; the gradients of its parameters are None before.
            work: computes losses and gradients from batches on any device, without a look at any tensor's numbers.
            batches: of this pass; a graph reads copies of them.
            support: of the architecture weights, as ``work`` uses it.
        """
        if self.given_up:
            return work(batches)
        key = ([[(part.shape, part.dtype) for part in batch] for batch in batches], support)
        self.radius.fill_(self.supernet.radius)
        graph = self.graphs.get(optimizer)
        if graph is None or graph.key != key:
            del graph  # and its memory, before another pass takes its own
            self.graphs.pop(optimizer, None)
            if self.warm.get(optimizer) != key:
                self.graphs.clear()
                self.warm[optimizer] = key
                return self._first(work, batches)
            try:
                self.graphs[optimizer] = self._captured(optimizer, work, batches, key)
            except RuntimeError as error:
                self._give_up(f"a step cannot be captured ({_cause(error)})")
            if self.given_up:  # no longer in the handler, whose traceback holds all that the capture had made
                for parameter in _parameters(optimizer):
                    parameter.grad = None
                return work(batches)
        return self.graphs[optimizer].replay(batches)

    def _first(self, work: Callable[[Batches], Tensor], batches: Batches) -> Tensor:
        drawn = torch.get_rng_state()
        with self._radius_on_device():
            losses = _aside(lambda: work(batches))
        if not torch.equal(drawn, torch.get_rng_state()):
            self._give_up("a step draws random numbers on the CPU, which a replay would not draw anew")
        return losses

    def _captured(
        self, optimizer: torch.optim.Optimizer, work: Callable[[Batches], Tensor], batches: Batches, key: Any
    ) -> "_StepGraph":
        own = [[part.clone() for part in to_device(self.fabric, *batch)] for batch in batches]
        pool = next((graph.recording.pool for graph in self.graphs.values()), None)
        with self._radius_on_device():
            recording = _Recording(lambda: work(own), pool)
        gradients = [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
        return _StepGraph(key, own, recording, gradients)

    @contextmanager
    def _radius_on_device(self) -> Iterator[None]:
        """The supernet reads its radius where a replay will find the newest one."""
        number, self.supernet.radius = self.supernet.radius, self.radius
        try:
            yield
        finally:
            self.supernet.radius = number

    def _give_up(self, reason: str) -> None:
        self.given_up = True
        self.graphs.clear()
        _tell(reason)


class _Recording:
    """What a function launches on the GPU; ``result`` is what it returned, which each replay writes anew."""

    def __init__(self, work: Callable[[], Tensor], pool: Any):
        self.graph = torch.cuda.CUDAGraph()
        # Threads that pin batches may meanwhile do what the capturing one must not. Where a capture ends in an error,
        # torch leaves its stream the current one, which the outer context mends.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self.graph, pool, _side_stream(), capture_error_mode="thread_local"),
            _waiting_refused(),
        ):
            self.result = work()
        self.pool = self.graph.pool()

    def replay(self) -> None:
        self.graph.replay()


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """What waits for the GPU is an error before it does: a wait would invalidate a capture, and a capture that ends so
    leaves torch's allocator and its generators as they were in the midst of it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass
class _StepGraph:
    """A recorded pass, the batches that it reads and the gradients that it writes."""

    key: Any
    batches: Batches
    recording: _Recording
    gradients: list[tuple[nn.Parameter, Tensor]]

    def replay(self, batches: Batches) -> Tensor:
        for own, part in zip(chain(*self.batches), chain(*batches), strict=True):
            own.copy_(part, non_blocking=True)
        self.recording.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.recording.result


@cache
def _side_stream() -> torch.cuda.Stream:
    """The stream of all captures, and of the passes before them, which leave it the workspaces of cuBLAS."""
    return torch.cuda.Stream()


def _aside(work: Callable[[], Tensor]) -> Tensor:
    """``work()`` on the stream of the captures, after all that was launched before and before all that comes."""
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _cause(error: RuntimeError) -> str:
    """The first line of what went wrong; ending a capture that went wrong raises an error of its own."""
    return str(error.__context__ or error).strip().partition("\n")[0][:200]


def _tell(reason: str) -> None:
    print(f"srnas_fast: no CUDA graphs, since {reason}; every kernel is launched by itself", file=sys.stderr)
