"""What sparse weights save, and what they cost: the cases `sparsity` and `simplex` of bench/speed.py.

    sparsity/dlsr       forward and backward of DLSR's mixed operation with 1 to 9 of its candidates alive: the mean
                        over the sets of live candidates of that size, all 9 and all 126 of one and of four, of others
                        at most 36. "of full" is the share of the full step; a full step runs before and after every
                        three others, which are compared with these two, so that a processor that changes its speed
                        changes both.
    sparsity/hinas-search
                        one search step of the paper's supernet at batch 4, from normal logits of deviation 0.3:
                        softmax, where all candidates are alive, and sparsestmax of growing radius. "of full" is the
                        share of the step with softmax; what is held is held between forward and backward.
    simplex             the weights of all edges of that supernet (3 layers of 14 edges, 7 candidates), forward and
                        backward: in one call ("srnas_fast"), in one call per row, and by the published recursion in
                        plain torch, row by row, under autograd ("eager").

The table and sparsity.csv name the shares "of full", of the peer's own full step, and "of faster eager",
of eager's full step in its faster layout; of `simplex`, of eager's. p20 and p80 are of the rounds, with sparsity/dlsr
of the sets.
"""

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from cases import MIXED, STEPS, Step, search_step
from peers import DEVICE, LAYOUTS, PEERS, STEP_LAYOUT, mixed_job, now
from rows import Row
from srnas_fast.simplex import sparsestmax

FIGURES = ["weights", "live", "sets", "step, ms", "p20, ms", "p80, ms", "of full", "of faster eager", "held, MiB"]
MOST_SETS = 36  # of one size, where not all are asked for
BETWEEN = 3  # sparse steps from one full step to the next
BATCH = 4
RADII = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ROWS, CHOICES = 3 * 14, 7  # of HiNAS's alpha
ITSELF = "srnas_fast, row by row"


def keep_freed_memory() -> None:
    """Let malloc keep what one step frees for the next one.

    glibc gives memory back to the system as soon as more lies free at the heap's end than twice the largest block it
    ever freed, and a step pays for each page anew. That is chance in a process whose largest tensor is that of the
    case; in a search other tensors are larger. So free one as large as counts (32 MiB) first.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def supports(count: int) -> dict[int, list[list[bool]]]:
    """By size, the sets of live candidates that are measured, as masks."""
    draw, found = random.Random(0), {}
    for size in range(1, count):
        sets = list(combinations(range(count), size))
        if size not in (1, 4) and len(sets) > MOST_SETS:
            sets = draw.sample(sets, MOST_SETS)
        found[size] = [[k in alive for k in range(count)] for alive in sets]
    return found


def mixed_steps(case: str, peer: str, layout: str) -> Callable[[list[bool]], float]:
    """A function that runs forward and backward with a support and returns the milliseconds."""
    job = mixed_job(MIXED[case], peer, layout)

    def step(support: list[bool]) -> float:
        begun = now()
        y = job.forward(support)
        # Plain autograd has no gradient for the parameters of a candidate that did not run.
        gradients = torch.autograd.grad(y, job.inputs, job.dy, allow_unused=True)  # noqa: F841 freed after the clock
        return now() - begun

    return step


def mixed_rows(case: str, peers: list[str], rounds: int) -> list[Row]:
    """Of one mixed operation, a row for each peer, layout and number of live candidates."""
    keep_freed_memory()
    rows, full_steps = [], {}
    for peer in peers:
        for layout in LAYOUTS:
            step = mixed_steps(case, peer, layout)
            count = len(mixed_job(MIXED[case], peer, layout).inputs[1])
            full = [True] * count
            sets = supports(count)
            order = [(size, i) for size, masks in sets.items() for i in range(len(masks))]
            times = {key: [] for key in order}
            shares = {key: [] for key in order}
            fulls = [step(full) for _ in range(3)][2:]
            draw = random.Random(1)
            for _ in range(rounds):
                draw.shuffle(order)
                for begin in range(0, len(order), BETWEEN):
                    keys = order[begin : begin + BETWEEN]
                    found = [step(sets[size][i]) for size, i in keys]
                    fulls.append(step(full))
                    for key, milliseconds in zip(keys, found, strict=True):
                        times[key].append(milliseconds)
                        shares[key].append(2 * milliseconds / (fulls[-2] + fulls[-1]))
            full_steps[peer, layout] = float(np.median(fulls))
            for size, masks in sets.items():
                keys = [(size, i) for i in range(len(masks))]
                row = timed([float(np.median(times[key])) for key in keys])
                row["of full"] = float(np.mean([np.median(shares[key]) for key in keys]))
                rows.append(named(peer, layout, size, count, len(keys)) | row)
            rows.append(named(peer, layout, count, count, 1) | timed(fulls) | {"of full": 1.0})
            rows[-1]["step, ms"] = full_steps[peer, layout]
    eager = [full_steps["eager", layout] for layout in LAYOUTS if ("eager", layout) in full_steps]
    return [row | ({"of faster eager": row["step, ms"] / min(eager)} if eager else {}) for row in rows]


def named(peer: str, layout: str, size: int, count: int, sets: int) -> Row:
    return {"peer": peer, "layout": layout, "weights": f"{size} of {count}", "live": size / count, "sets": sets}


def timed(milliseconds: list[float]) -> Row:
    """The mean, with the percentiles."""
    p20, p80 = np.percentile(milliseconds, [20, 80])
    return {"step, ms": float(np.mean(milliseconds)), "p20, ms": float(p20), "p80, ms": float(p80)}


def search_rows(case: Step, peers: list[str], rounds: int) -> list[Row]:
    """Of a search step, a row for each peer and map; all in alternation."""
    keep_freed_memory()
    maps = {"softmax": None} | {f"sparsestmax, radius {radius}": radius for radius in RADII}
    steps, rows, times = {}, {}, {}
    for peer in peers:
        supernet, step, held = search_step(case, PEERS[peer], LAYOUTS[STEP_LAYOUT])
        for key in ((peer, weights) for weights in maps):
            steps[key] = partial(choose, supernet, maps[key[1]]), step
            steps[key][0]()
            step()  # warm
            steps[key][0]()
            rows[key] = {"peer": peer, "layout": STEP_LAYOUT, "weights": key[1]}
            rows[key] |= {"live": supernet.sparsity().get("live", 1.0), "held, MiB": held() / 2**20}
            times[key] = []
    for _ in range(rounds):
        for key, (prepare, step) in steps.items():
            prepare()
            gc.collect()
            begun = now()
            step()
            times[key].append(now() - begun)
    for key, row in rows.items():
        row |= timed(times[key]) | {"step, ms": float(np.median(times[key]))}
    for (peer, _), row in rows.items():
        row["of full"] = row["step, ms"] / rows[peer, "softmax"]["step, ms"]
        if "eager" in peers:
            row["of faster eager"] = row["step, ms"] / rows["eager", "softmax"]["step, ms"]
    return list(rows.values())


@torch.no_grad()
def choose(supernet: nn.Module, radius: float | None) -> None:
    """Set a supernet to softmax (None) or sparsestmax, and its logits, which a step moves, to those of the case."""
    supernet.config.weights, supernet.radius = ("softmax", 0.0) if radius is None else ("sparsestmax", radius)
    generator = torch.Generator().manual_seed(0)
    for logits in supernet.architecture_parameters():
        logits.copy_(0.3 * torch.randn(logits.shape, generator=generator))


def published(logits: Tensor, radius: float) -> Tensor:
    """sparsestmax of one row by its recursion: sparsemax first, then the circle, then the same among what is left.

    Source: SSN, arXiv 1903.03793.
    """
    centre = torch.full_like(logits, 1 / len(logits))
    while True:
        falling = logits.sort(descending=True).values
        thresholds = (falling.cumsum(0) - 1) / torch.arange(1, len(logits) + 1, device=logits.device)
        weights = (logits - thresholds[falling > thresholds][-1]).clamp(min=0)
        alive = weights > 0
        if alive.sum() == 1:
            return weights
        middle = alive.to(logits.dtype) / alive.sum()
        radius = max(0.0, radius**2 - (middle - centre).square().sum().item()) ** 0.5
        away = weights - middle
        if away.norm() >= radius:
            return weights
        logits, centre = middle + radius * away / away.norm(), middle
        if (logits >= 0).all():
            return logits


def simplex_rows(peers: list[str], rounds: int) -> list[Row]:
    """Of the map alone, a row for each way to compute it and each radius; all in alternation."""
    maps: dict[str, Callable[[Tensor, float], Tensor]] = {
        "eager": lambda logits, radius: torch.stack([published(row, radius) for row in logits]),
        ITSELF: lambda logits, radius: torch.stack([sparsestmax(row, radius) for row in logits]),
        "srnas_fast": sparsestmax,
    }
    torch.manual_seed(0)
    logits, dweights = 0.3 * torch.randn(ROWS, CHOICES, device=DEVICE), torch.randn(ROWS, CHOICES, device=DEVICE)
    logits.requires_grad_()
    keys = [(peer, radius) for peer in maps if peer in (*peers, ITSELF) for radius in RADII]
    times = {key: [] for key in keys}
    for _ in range(2 + rounds):
        for peer, radius in sorted(keys, key=lambda key: key[1]):  # each after another, as in a search
            begun = now()
            torch.autograd.grad(maps[peer](logits, radius), logits, dweights)
            times[peer, radius].append(now() - begun)
    rows = []
    for peer, radius in keys:
        measured = times[peer, radius][2:]
        row = {"peer": peer, "layout": None, "weights": f"sparsestmax, radius {radius}"} | timed(measured)
        row["live"] = sparsestmax(logits, radius, return_support=True)[1].float().mean().item()
        row["step, ms"] = float(np.median(measured))
        if ("eager", radius) in times:
            row["of faster eager"] = row["step, ms"] / float(np.median(times["eager", radius][2:]))
        rows.append(row)
    return rows


def rows_of(case: str, peers: list[str], rounds: int | None) -> tuple[str, list[Row]]:
    """What a case measures, and its rows."""
    peers = [peer for peer in peers if peer in ("eager", "srnas_fast")]
    what, measure, default = SPARSITY[case]
    rounds = rounds or default
    gc.collect()
    gc.disable()
    try:
        return f"{what}, {rounds} rounds", measure(peers, rounds)
    finally:
        gc.enable()


SPARSITY: dict[str, tuple[str, Callable[[list[str], int], list[Row]], int]] = {
    "sparsity/dlsr": ("forward and backward", lambda peers, rounds: mixed_rows("dlsr", peers, rounds), 5),
    "sparsity/hinas-search": (
        f"one search step, batch {BATCH}",
        lambda peers, rounds: search_rows(replace(STEPS["hinas-search"], batch=BATCH), peers, rounds),
        3,
    ),
    "simplex": (f"forward and backward, {ROWS} rows of {CHOICES}", simplex_rows, 15),
}
