"""Who is measured: the ways to compute a mixed operation, ours among them, each in two memory layouts."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from cases import Depthwise, Mixed, Step, TwoGraphs
from srnas_fast import MixedOp
from srnas_fast.mixed import PlainMixedOp
from srnas_fast.primitives import multi_depthwise
from srnas_fast.search import Bilevel
from srnas_fast.search.run import memory_format

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BUDGET = 0.1  # of the activations that torch.compile would keep
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class CheckpointedMixedOp(PlainMixedOp):
    """The peer that users reach for: torch.utils.checkpoint around each candidate."""

    settings = {}

    def mixed(self, x, weights, support):
        live = support or [True] * len(self.ops)
        return sum(
            w * checkpoint(op, x, use_reentrant=False, **self.settings)
            for w, op, alive in zip(weights, self.ops, live, strict=True)
            if alive
        )


class SelectiveMixedOp(CheckpointedMixedOp):
    """torch's selective checkpointing: what convolutions return, which is dear, is kept; the rest is computed again."""

    settings = {"context_fn": partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])}


def compiled(ops: Iterable[nn.Module], **settings) -> nn.Module:
    """``torch.compile`` of the plain sum, for exactly the shapes it meets."""
    return torch.compile(PlainMixedOp(ops, **settings), dynamic=False)


def compiled_as_graphs(ops: Iterable[nn.Module], **settings) -> nn.Module:
    """The same, replayed as CUDA graphs."""
    return torch.compile(PlainMixedOp(ops, **settings), dynamic=False, mode="reduce-overhead")


def compiled_on_budget(ops: Iterable[nn.Module], **settings) -> nn.Module:
    """``torch.compile`` of the plain sum that may keep only ``BUDGET`` of its activations.

    The budget is a global setting which is no part of the compiled code's key: so it is set just while this peer
    compiles, by a backend of its own, which also keeps the code of the two compiled peers apart.
    """

    def backend(graph, inputs):
        from torch._inductor.compile_fx import compile_fx  # slow to import, and only needed here

        with torch._functorch.config.patch(activation_memory_budget=BUDGET):
            return compile_fx(graph, inputs)

    return torch.compile(PlainMixedOp(ops, **settings), dynamic=False, backend=backend)


COMPILED_GRAPHS = "compile-graphs"
PEERS: dict[str, Callable[..., nn.Module]] = {
    "eager": PlainMixedOp,
    "checkpoint": CheckpointedMixedOp,
    "selective": SelectiveMixedOp,
    "compile": compiled,
    COMPILED_GRAPHS: compiled_as_graphs,
    "compile-budget": compiled_on_budget,
    "srnas_fast": MixedOp,
    "srnas_fast-unmerged": partial(MixedOp, merge=False),
}
COMPILED = ("compile", COMPILED_GRAPHS, "compile-budget")
TWO_GRAPHS = ("two graphs", "srnas_fast-two-graphs")
CUDA_GRAPHS = "srnas_fast-graphs"
STEP_PEERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Bilevel]]] = {
    **dict(zip(TWO_GRAPHS, [(PlainMixedOp, TwoGraphs), (MixedOp, TwoGraphs)], strict=True)),
    **{peer: (op, Bilevel) for peer, op in PEERS.items() if peer not in COMPILED},
    CUDA_GRAPHS: (MixedOp, partial(Bilevel, cuda_graphs=True)),
}
ALL_PEERS = [*PEERS, CUDA_GRAPHS, *TWO_GRAPHS]
STEP_LAYOUT = next(name for name, layout in LAYOUTS.items() if layout is memory_format(DEVICE))  # the search's choice


def mixed_peers(asked: Iterable[str]) -> list[str]:
    """Those of the asked that can compute a mixed operation here."""
    return [peer for peer in asked if peer in PEERS and (peer != COMPILED_GRAPHS or DEVICE.type == "cuda")]


def step_peers(step: Step, asked: Iterable[str]) -> list[tuple[str, str]]:
    """Those of the asked that can do a search step here, each in every layout."""
    unable = {*(TWO_GRAPHS if step.graphs == 1 else ()), *((CUDA_GRAPHS,) if DEVICE.type == "cpu" else ())}
    able = [peer for peer in asked if peer in STEP_PEERS and peer not in unable]
    return [(peer, layout) for peer in able for layout in LAYOUTS]


def now() -> float:
    """Milliseconds, once the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * time.perf_counter()


class Stopwatch:
    """Milliseconds from mark to mark: by the clock, on a GPU by events among its work, which nothing waits for."""

    def __init__(self):
        self.marks = []

    def mark(self) -> None:
        if DEVICE.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(now())

    def laps(self) -> list[float]:
        """The times between the marks, once all of it is done."""
        pairs = list(pairwise(self.marks))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [end - begin for begin, end in pairs]


def release() -> None:
    """Free what nobody needs any more, and leave no memory in the allocator's hands: so each peer begins alike."""
    gc.collect()
    torch.cuda.empty_cache()


@dataclass
class Job:
    """One peer at work on one case: a forward pass from ``x``, a backward pass from ``dy`` to all ``inputs``."""

    forward: Callable[..., Tensor]  # of a support, if the job is a mixed operation
    x: Tensor
    inputs: list[Tensor]
    dy: Tensor

    def draw(self, seed: int) -> None:
        """Other numbers for x and dy; the same for every peer, layout and type."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in (self.x, self.dy):
                tensor.copy_(torch.randn(tensor.shape))

    def backward(self, y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, self.inputs, self.dy)


def mixed_job(case: Mixed, peer: str, layout: str, dtype: torch.dtype = torch.float32) -> Job:
    """A peer's job; the same numbers for every peer, layout and type."""
    return job_of(case, PEERS[peer], layout, dtype)


def job_of(case: Mixed, make: Callable[..., nn.Module], layout: str, dtype: torch.dtype = torch.float32) -> Job:
    """The job of a mixed operation, however it is made; the gradients of x, of the weights and of all parameters."""
    torch.manual_seed(0)
    place = {"device": DEVICE, "dtype": dtype}
    n, c, h, w = case.shape
    ops = nn.ModuleList(case.candidates(c // case.partial))
    weights = (0.3 * torch.randn(len(ops))).softmax(0).to(**place).requires_grad_()
    ops.to(**place, memory_format=LAYOUTS[layout])
    sizes = case.shape, (n, c, -(-h // case.stride), -(-w // case.stride))
    x, dy = (torch.empty(size, **place, memory_format=LAYOUTS[layout]) for size in sizes)
    x.requires_grad_()
    op = make(ops, partial=case.partial)
    job = Job(lambda *support: op(x, weights, *support), x, [x, weights, *ops.parameters()], dy)
    job.draw(0)
    return job


def depthwise_job(case: Depthwise, peer: str, layout: str) -> Job:
    """The primitive ``multi_depthwise`` with one kernel, or the convolution of torch ("eager")."""
    torch.manual_seed(0)
    channels, padding = case.shape[1], case.dilation * (case.size // 2)
    kernel = torch.randn(channels, 1, case.size, case.size, device=DEVICE).requires_grad_()
    x, dy = (torch.empty(case.shape, device=DEVICE, memory_format=LAYOUTS[layout]) for _ in range(2))
    x.requires_grad_()
    if peer == "eager":
        forward = partial(F.conv2d, x, kernel, padding=padding, dilation=case.dilation, groups=channels)
    else:

        def forward() -> Tensor:
            return multi_depthwise(x, [kernel], [case.dilation])[0]

    job = Job(forward, x, [x, kernel], dy)
    job.draw(0)
    return job


def reason(error: BaseException) -> str:
    """How a peer failed, in one short line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:120]
