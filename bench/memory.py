"""Tensor memory beside the peers: python bench/memory.py --case hinas-denoise

Prints one table per case, all peers measured in one run by the same tracker (srnas_fast.metrics.LiveMemory), and
appends the rows to bench/results/memory.csv.
"""

import argparse
import csv
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from srnas_fast import MixedOp, __version__
from srnas_fast.backends.report import processor
from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed import PlainMixedOp
from srnas_fast.report import show_table
from srnas_fast.search import Bilevel, BilevelConfig, RunConfig
from srnas_fast.search.bilevel import frozen
from srnas_fast.search.run import to_device
from srnas_fast.spaces import find_space

RESULTS = Path(__file__).parent / "results" / "memory.csv"
MiB = 2**20


class CheckpointedMixedOp(PlainMixedOp):
    """The peer that users reach for: torch.utils.checkpoint around each candidate."""

    def forward(self, x, weights, support=None):
        return sum(w * checkpoint(op, x, use_reentrant=False) for w, op in zip(weights, self.ops, strict=True))


PEERS: dict[str, Callable[..., nn.Module]] = {
    "plain sum(w * op(x))": PlainMixedOp,
    "torch.utils.checkpoint": CheckpointedMixedOp,
    "srnas_fast.MixedOp": MixedOp,
}


def search_step(name: str, mixed_op: Callable[..., nn.Module]) -> tuple[Callable[[], None], Callable[[], float]]:
    """One search step of a space's paper supernet (architecture update, weight update), and what its graph holds.

    Returns the step, and a function that runs the weight step's forward pass and returns the bytes then held.
    """
    space = find_space(name)
    data = space.data()
    fabric = RunConfig().fabric()
    supernet = space.supernet(space.supernet_config(), mixed_op)
    search = Bilevel(fabric, supernet, space.loss(), BilevelConfig())
    clean = torch.rand(data.batch, 1, data.patch, data.patch)
    noisy = clean + 0.2 * torch.randn_like(clean)

    def step() -> None:
        search.architecture_step(noisy, clean)
        search.weight_step(noisy, clean, epoch=0)

    def held() -> float:
        (x,) = to_device(fabric, noisy)
        with frozen(supernet.architecture_parameters()), LiveMemory() as graph:
            y = supernet(x)  # noqa: F841 it is what holds the graph
            return graph.held()

    return step, held


def measure(case: Callable[..., tuple], rounds: int) -> dict[str, dict[str, float]]:
    """For each peer the bytes held, the peak of a step and the median time of alternating steps."""
    made = {peer: case(mixed_op) for peer, mixed_op in PEERS.items()}
    figures = {}
    for peer, (step, held) in made.items():
        step()  # the optimisers' states exist from now on: they are no part of a step's peak
        with LiveMemory() as memory:
            step()
        figures[peer] = {"held, MiB": held() / MiB, "peak, MiB": memory.peak / MiB}
    times: dict[str, list[float]] = {peer: [] for peer in made}
    for _ in range(rounds):
        for peer, (step, _) in made.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[peer].append(time.perf_counter() - started)
    return {peer: row | {"step, s": statistics.median(times[peer])} for peer, row in figures.items()}


CASES = {"hinas-denoise": lambda mixed_op: search_step("hinas-denoise", mixed_op)}


def commit() -> str:
    """The commit measured, with a + where the tree differs from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True).stdout.strip()

    differs = git("status", "--porcelain", "--", "..", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("+" if differs else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="alternating steps for the median time (default: 3)")
    arguments = parser.parse_args()
    cases = arguments.case or list(CASES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    measured_at = [commit(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())]
    for case in cases:
        torch.manual_seed(0)
        figures = measure(CASES[case], arguments.rounds)
        plain = next(iter(figures.values()))
        rows = [
            [peer, *measured.values(), plain["peak, MiB"] / measured["peak, MiB"]] for peer, measured in figures.items()
        ]
        title = f"{case}: one search step, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        show_table(title, ["mixed operation", *plain, "peak: plain is x times"], rows)
        RESULTS.parent.mkdir(exist_ok=True)
        new = not RESULTS.exists()
        with open(RESULTS, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                names = ["case", "peer", *plain, "device", "threads", "torch", "srnas_fast", "commit", "time"]
                writer.writerow(names)
            for peer, measured in figures.items():
                writer.writerow(
                    [case, peer, *(round(value, 3) for value in measured.values()), device, torch.get_num_threads()]
                    + [torch.__version__, __version__, *measured_at]
                )


if __name__ == "__main__":
    main()
