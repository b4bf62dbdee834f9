"""Memory and gradients beside the peers: python bench/memory.py --case hinas

One table per case, all peers in one run, in units of U, the size of the case's input; appended to memory.csv in
bench/results, or in --out.

    held         between forward and backward, beyond x and y
    fixed        the part of it that does not grow with the images: it depends on parameters and weights alone
    fwd, bwd     peak of live tensors during the forward, the backward pass, beyond x, y, dy and dx
                 (srnas_fast.metrics.LiveMemory, which cannot look into torch.compile)
    peak         of both passes as torch's allocator tells it: with temporaries inside operators, compiled or not
    resident     how much a process of its own grows during a few passes: everything, y and dx included; on a GPU what
                 torch's allocator has of it at most, parameters and what is cached included
    error        of the gradients against float64: the largest |g - g64| over the largest |g64|, norms per gradient,
                 median of five draws

A search step has the bytes held after the weight step's forward pass, which learns no architecture, and the peak of
the whole step; on a GPU that of the first three steps by torch's allocator, in which a CUDA graph is captured, since a
replay allocates nothing. A search that samples paths (hnas-search) stands beside a network that has the path alone, as
eager. On a GPU a peer that runs out of memory, as under --gib 11, has a note in place of figures.
TF32 is off.
"""

import ctypes
import gc
import os
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import accumulate
from multiprocessing import get_context

import torch
from torch.profiler import ProfilerActivity, profile

from cases import MIXED, PATHS, STEPS, Mixed, Path, Step, chosen, path_step, search_step, with_groups
from machine import options, prepare
from peers import (
    ALL_PEERS,
    COMPILED,
    DEVICE,
    LAYOUTS,
    STEP_PEERS,
    Job,
    mixed_job,
    mixed_peers,
    reason,
    release,
    step_peers,
)
from rows import Row, report
from srnas_fast.backends.scratch import scratch_peak
from srnas_fast.metrics import LiveMemory

MiB = 2**20
DRAWS = 5
FIRST_STEPS = 3
FIGURES = ["held, MiB", "held, U", "fixed, MiB", "fwd, U", "bwd, U", "peak, U", "peak, MiB"]
FIGURES += ["resident, MiB", "resident, U", "error"]


def live(job: Job) -> tuple[int, int, int]:
    """Bytes held between the passes, peak of the forward pass and of the backward pass, by LiveMemory."""
    with LiveMemory() as memory:
        y = job.forward()
        held, forward = memory.held() - y.nbytes, memory.peak - y.nbytes
        memory.reset_peak()
        gradients = job.backward(y)  # noqa: F841 they are alive at the end of the peak
        return held, forward, memory.peak - y.nbytes - job.x.nbytes


def allocated(job: Job) -> tuple[int, int]:
    """Bytes held between the passes and peak of both, by what torch's allocator reports to the profiler, and with the
    scratch that our programs used."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports on stderr that it starts and stops

    def changes(work):
        gc.collect()  # garbage from before, freed inside, would be told as a loss
        scratch_peak()  # of what was before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = work()
            gc.collect()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return result, sum(sizes), max(accumulate(sizes)) + scratch_peak()

    y, left, forward = changes(job.forward)
    gradients, _, backward = changes(lambda: job.backward(y))  # noqa: F841 they are alive at the end of the peak
    held = left - y.nbytes
    return held, max(forward - y.nbytes, held + backward - job.x.nbytes)


def allocated_on_gpu(job: Job) -> tuple[int, int]:
    """The same by the statistics that the allocator of the GPU keeps itself."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = job.forward()
    gc.collect()
    held = torch.cuda.memory_allocated() - before - y.nbytes
    forward = torch.cuda.max_memory_allocated() - before - y.nbytes
    torch.cuda.reset_peak_memory_stats()
    gradients = job.backward(y)  # noqa: F841 they are alive at the end of the peak
    return held, max(forward, torch.cuda.max_memory_allocated() - before - y.nbytes - job.x.nbytes)


def grown(case: Mixed, peer: str, layout: str, passes: int = 3) -> int:
    """By how many bytes this process grows at most during a few passes; run it in a process of its own.

    A first pass compiles, loads and warms up; what it leaves behind is no part of the growth. The kernel's high-water
    mark is set back after it: ``ru_maxrss`` cannot be, and begins with what the parent process once had.
    """
    job = mixed_job(case, peer, layout)

    def size(mark: str) -> int:
        with open("/proc/self/status") as file:
            return 1024 * int(re.search(rf"{mark}:\s+(\d+) kB", file.read())[1])

    job.backward(job.forward())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = size("VmRSS")
    for _ in range(passes):
        job.backward(job.forward())
    return size("VmHWM") - before


def gradients_of(job: Job) -> list[tuple[torch.Tensor, ...]]:
    """The gradients for each of several draws of x and dy, kept where they take nothing of what is measured."""

    def drawn(seed: int) -> tuple[torch.Tensor, ...]:
        job.draw(seed)
        return tuple(gradient.cpu() for gradient in job.backward(job.forward()))

    return [drawn(seed) for seed in range(DRAWS)]


def error(gradients, exact) -> float:
    """The largest distance from the exact gradients, relative to the largest of their norms; median of the draws.

    Of the draws, since in a few of them rounding takes one pixel across the kink of an activation, which costs more
    than all other rounding and is chance.
    """

    def of_one(found, right) -> float:
        floor = max(g.norm() for g in right)
        return torch.stack([(f - r).norm() / floor for f, r in zip(found, right, strict=True)]).max().item()

    return statistics.median(map(of_one, gradients, exact))


def measure_mixed(case: Mixed, peer: str, layout: str, exact) -> Row:
    """The figures of one peer in one layout."""
    job = mixed_job(case, peer, layout)
    row: Row = {"error": error(gradients_of(job), exact)}  # and, passing by, compiled and warm
    unit = job.x.nbytes
    if DEVICE.type == "cpu":
        held, peak = allocated(job)
    else:
        held, peak = allocated_on_gpu(job)
        taken = torch.cuda.max_memory_reserved()
        row |= {"resident, MiB": taken / MiB, "resident, U": taken / unit}
    if peer not in COMPILED:
        images = case.shape[0]
        fewer = mixed_job(replace(case, shape=(images // 2, *case.shape[1:])), peer, layout)
        held, forward, backward = live(job)
        row["fixed, MiB"] = (images * live(fewer)[0] - images // 2 * held) / (images - images // 2) / MiB
        row |= {"fwd, U": forward / unit, "bwd, U": backward / unit}
    row |= {"held, MiB": held / MiB, "held, U": held / unit, "peak, MiB": peak / MiB, "peak, U": peak / unit}
    if DEVICE.type == "cpu":
        row |= attempt(resident, case, peer, layout, unit)
    return row


def resident(case: Mixed, peer: str, layout: str, unit: int) -> Row:
    """The growth of a process that has only this to do."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        growth = pool.submit(grown, case, peer, layout).result()
    return {"resident, MiB": growth / MiB, "resident, U": growth / unit}


def measure_step(case: Step, peer: str, layout: str) -> Row:
    """Bytes held by the weight step's graph, and the peak of the whole step."""
    mixed_op, way = STEP_PEERS[peer]
    _, step, held = search_step(case, mixed_op, LAYOUTS[layout], way)
    if DEVICE.type == "cuda":
        return step_on_gpu(step) | {"held, MiB": held() / MiB}
    step()  # the optimisers' states exist from now on: they are no part of a step's peak
    with LiveMemory() as memory:
        step()
    return {"held, MiB": held() / MiB, "peak, MiB": memory.peak / MiB}


def step_on_gpu(step: Callable[[], None]) -> Row:
    """The peak of the first steps, and what the allocator then has of the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(FIRST_STEPS):
        step()
    peak, taken = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
    return {"peak, MiB": peak / MiB, "resident, MiB": taken / MiB}


def attempt(measure, *arguments) -> Row:
    """The figures, or how the peer failed; nothing that a failure before held is in the way."""
    release()
    try:
        return measure(*arguments)
    except Exception as failure:
        return {"note": reason(failure)}


def mixed_rows(case: Mixed, peers: list[str]) -> list[Row]:
    torch.compiler.reset()  # the code compiled for one case is none of the next one's
    exact = gradients_of(mixed_job(case, "eager", "NCHW", torch.float64))
    keys = [(peer, layout) for peer in mixed_peers(peers) for layout in LAYOUTS]
    return [{"peer": key[0], "layout": key[1]} | attempt(measure_mixed, case, *key, exact) for key in keys]


def step_rows(case: Step, peers: list[str]) -> list[Row]:
    keys = step_peers(case, peers)
    return [{"peer": key[0], "layout": key[1]} | attempt(measure_step, case, *key) for key in keys]


def path_rows(case: Path) -> list[Row]:
    """The peak of a weight step on one path: in a network that has no other, and in the supernet."""

    def measure(alone: bool) -> Row:
        step = path_step(case, alone)
        if DEVICE.type == "cuda":
            return step_on_gpu(step)
        step()  # the optimiser's states exist from now on
        with LiveMemory() as memory:
            step()
        return {"peak, MiB": memory.peak / MiB}

    peers = {"eager": True, "srnas_fast": False}
    return [{"peer": peer, "layout": "NCHW"} | attempt(measure, alone) for peer, alone in peers.items()]


def main() -> None:
    parser = options(__doc__)
    cases = [*MIXED, *STEPS, *PATHS]
    parser.add_argument("--case", choices=with_groups(cases), action="append", help="again for more; default: all")
    parser.add_argument("--peer", choices=ALL_PEERS, action="append", help="again for more; default: all")
    arguments = parser.parse_args()
    peers, place = arguments.peer or ALL_PEERS, prepare(parser, arguments.gib)
    for case in chosen(arguments.case, cases):
        if case in MIXED:
            shape = "x".join(map(str, MIXED[case].shape))
            what, rows = f"one mixed operation, x {shape}", mixed_rows(MIXED[case], peers)
        elif case in PATHS:
            what, rows = f"one step on a path, batch {PATHS[case].batch}", path_rows(PATHS[case])
        else:
            what, rows = f"one search step, batch {STEPS[case].batch}", step_rows(STEPS[case], peers)
        report(case, what, rows, FIGURES, place, arguments.out / "memory.csv")


if __name__ == "__main__":
    main()
