"""Time beside the peers: python bench/speed.py --case hinas

One table per case, all peers in one run and in alternation (A B C A B C ...), medians, p20 and p80 of the total;
appended to speed.csv in bench/results, or in --out. The last columns are the total as a multiple of eager's in its
faster layout and in NCHW. Of `multi-depthwise` the backward pass alone is timed; of a search step, the step. The cases
`sparsity` and `simplex`: see bench/sparsity.py.

On a GPU a peer's turn is ten passes in a row, which nothing waits for, timed by events on the GPU, and their mean: so
launches cost what they cost in a network, where the next one is prepared while the last one computes, and x is in the
caches as after the operation that made it. A search step is timed by the clock, and a step before it in the same turn
is not: it leaves the allocator and the caches as a search has them. The first turns are not counted. TF32 is off.

--graph captures a pass of a mixed operation as one CUDA graph and times its replay: what is left where nothing waits
for Python, the kernels alone. Its rows are those of the case `hinas/graph`.

--reference compares in the end with what was recorded before; see compare() in bench/rows.py. The cases `sparsity` and
`simplex` have no part in it.
"""

import gc
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from cases import DEPTHWISE, MIXED, STEPS, Depthwise, Mixed, Step, chosen, search_step, with_groups
from machine import options, prepare
from peers import (
    ALL_PEERS,
    COMPILED_GRAPHS,
    DEVICE,
    LAYOUTS,
    STEP_PEERS,
    Job,
    Stopwatch,
    depthwise_job,
    mixed_job,
    mixed_peers,
    now,
    reason,
    release,
    step_peers,
)
from rows import Row, add_reference, compare, recorded, report
from sparsity import FIGURES as SPARSITY_FIGURES
from sparsity import SPARSITY, rows_of

FIGURES = ["forward, ms", "backward, ms", "total, ms", "p20, ms", "p80, ms", "of faster eager", "of eager NCHW"]
WARM = 2  # turns before the clock counts; the first one compiles
IN_A_ROW = 10 if DEVICE.type == "cuda" else 1  # passes of a turn

Key = tuple[str, str]  # peer, layout
Work = Callable[[], dict[str, float]]  # does it once, returns the milliseconds of its parts


def mixed(case: Mixed, peer: str, layout: str) -> Work:
    job = mixed_job(case, peer, layout)
    return lambda: passes(job)


def replayed(case: Mixed, peer: str, layout: str) -> Work:
    """The same as one CUDA graph."""
    job = mixed_job(case, peer, layout)
    graph = captured(lambda: job.backward(job.forward()))

    def work() -> dict[str, float]:
        watch = Stopwatch()
        watch.mark()
        for _ in range(IN_A_ROW):
            graph.replay()
        watch.mark()
        return {"total, ms": watch.laps()[0] / IN_A_ROW}

    return work


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What some work launches, once it has compiled what it needs."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def depthwise(case: Depthwise, peer: str, layout: str) -> Work:
    job = depthwise_job(case, peer, layout)
    return lambda: {"backward, ms": passes(job)["backward, ms"]}


def passes(job: Job) -> dict[str, float]:
    """The mean times of forward and backward in a row of passes."""
    watch = Stopwatch()
    watch.mark()
    for _ in range(IN_A_ROW):
        y = job.forward()
        watch.mark()
        gradients = job.backward(y)  # noqa: F841 freed after the clock has been read
        watch.mark()
    laps = watch.laps()
    return {"forward, ms": float(np.mean(laps[0::2])), "backward, ms": float(np.mean(laps[1::2]))}


def search(case: Step, peer: str, layout: str) -> Work:
    mixed_op, way = STEP_PEERS[peer]
    _, step, _ = search_step(case, mixed_op, LAYOUTS[layout], way)

    def work() -> dict[str, float]:
        if DEVICE.type == "cuda":
            step()
        begun = now()
        step()
        return {"total, ms": now() - begun}

    return work


def measure(makers: dict[Key, Callable[[], Work]], rounds: int) -> list[Row]:
    """One row per peer and layout: medians over alternating rounds, or how it failed."""
    torch.compiler.reset()  # the code compiled for one case is none of the next one's
    works: dict[Key, Work] = {}
    failed: dict[Key, str] = {}
    times: dict[Key, list[dict[str, float]]] = {key: [] for key in makers}
    for key, make in makers.items():
        try:
            works[key] = make()
        except Exception as failure:
            failed[key] = reason(failure)
    release()
    gc.disable()
    try:
        for _ in range(WARM + rounds):
            for key, work in list(works.items()):
                try:
                    times[key].append(work())
                except Exception as failure:
                    failed[key] = reason(failure)
                    del works[key]
                if key in failed:  # the traceback, and what its frames held, are gone from here on
                    release()
    finally:
        gc.enable()
    measured = {key: times[key][WARM:] for key in works}
    medians = {key: total(rows, 50) for key, rows in measured.items()}
    eager = [median for (peer, _), median in medians.items() if peer == "eager"]
    rows = []
    for peer, layout in makers:
        row: Row = {"peer": peer, "layout": layout, "note": failed.get((peer, layout))}
        if passes := measured.get((peer, layout)):
            row |= {part: float(np.median([each[part] for each in passes])) for part in passes[0]}
            row |= {"total, ms": medians[peer, layout], "p20, ms": total(passes, 20), "p80, ms": total(passes, 80)}
            if eager:
                row["of faster eager"] = row["total, ms"] / min(eager)
            if ("eager", "NCHW") in medians:
                row["of eager NCHW"] = row["total, ms"] / medians["eager", "NCHW"]
        rows.append(row)
    return rows


def total(passes: list[dict[str, float]], percent: float) -> float:
    """A percentile of the milliseconds of all parts together."""
    return float(np.percentile([sum(each.values()) for each in passes], percent))


def makers_of(case: str, peers: list[str], graph: bool = False) -> tuple[str, dict[Key, Callable[[], Work]]]:
    """What a case measures, and how each of its peers is made."""
    if case in STEPS:
        step = STEPS[case]
        makers = {key: partial(search, step, *key) for key in step_peers(step, peers)}
        return f"one search step, batch {step.batch}", makers
    if case in MIXED:
        what, work, one = "forward and backward", replayed if graph else mixed, MIXED[case]
        what += ", replayed as a CUDA graph" if graph else ""
    else:
        what, work, one = "backward", depthwise, DEPTHWISE[case]
        peers = [peer for peer in peers if peer in ("eager", "srnas_fast")]
    peers = [peer for peer in mixed_peers(peers) if not (graph and peer == COMPILED_GRAPHS)]  # they are graphs already
    makers = {(peer, layout): partial(work, one, peer, layout) for peer in peers for layout in LAYOUTS}
    return f"{what}, x {'x'.join(map(str, one.shape))}", makers


def main() -> None:
    parser = options(__doc__)
    cases = [*MIXED, *DEPTHWISE, *STEPS, *SPARSITY]
    parser.add_argument("--case", choices=with_groups(cases), action="append", help="again for more; default: all")
    parser.add_argument("--peer", choices=ALL_PEERS, action="append", help="again for more; default: all")
    parser.add_argument("--rounds", type=int, help="default: 15, of search steps 3, of sparsity/dlsr 5")
    parser.add_argument("--graph", action="store_true", help="replay a mixed operation as one CUDA graph")
    add_reference(parser, "speed.csv")
    arguments = parser.parse_args()
    if arguments.graph and DEVICE.type == "cpu":
        parser.error("--graph replays CUDA graphs, and PyTorch sees no GPU")
    peers, place = arguments.peer or ALL_PEERS, prepare(parser, arguments.gib)
    known, measured = recorded(arguments.reference), []
    for case in chosen(arguments.case, [*MIXED] if arguments.graph else cases):
        if case in SPARSITY:
            what, rows = rows_of(case, peers, arguments.rounds)
            report(case, what, rows, SPARSITY_FIGURES, place, arguments.out / "sparsity.csv")
            continue
        what, makers = makers_of(case, peers, arguments.graph)
        case += "/graph" if arguments.graph else ""
        rounds = arguments.rounds or (3 if case in STEPS else 15)
        rows = measure(makers, rounds)
        report(case, f"{what}, {rounds} rounds", rows, FIGURES, place, arguments.out / "speed.csv")
        measured += [{"case": case, **row, **place} for row in rows]
    compare(measured, known, "total, ms")


if __name__ == "__main__":
    main()
