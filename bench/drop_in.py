"""Other people's supernets before and after accelerate(): python bench/drop_in.py

The CIFAR supernets of DARTS and PC-DARTS (python_tests/supernets/darts.py: 8 cells, 16 channels, 112 mixed operations)
as they are ("eager"), and the same modules accelerated. One step is forward pass, backward pass and SGD; both in
alternation. Held is what is alive between forward and backward, peak what is at most, parameters and their gradients
not counted; in the mixed operations: what accelerate() reports of all of them together, their inputs not counted.
Appended to drop_in.csv in bench/results, or in --out.
"""

import copy
import gc
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine import options, prepare
from peers import DEVICE, now
from rows import Row, report
from srnas_fast import accelerate
from srnas_fast.metrics import LiveMemory

sys.path.append(str(Path(__file__).parents[1] / "python_tests" / "supernets"))
import darts

CASES = {"darts": darts.MixedOp, "pc-darts": darts.PartialMixedOp}
FIGURES = [
    "step, ms", "p20, ms", "p80, ms", "of eager", "held, MiB", "peak, MiB", "mixed operations, MiB", "accelerate, s",
]  # fmt: skip
MiB = 2**20
WARM = 1


class Step:
    """A supernet in training."""

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor):
        self.net, self.images, self.labels = net, images, labels
        self.optimizer = torch.optim.SGD(net.parameters(), 0.025, momentum=0.9)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.net(self.images), self.labels)

    def time(self) -> float:
        """The milliseconds of one step."""
        begun = now()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        return now() - begun

    def memory(self) -> Row:
        """What a forward and backward pass hold, besides gradients that were there before."""
        with LiveMemory() as memory:
            loss = self.loss()
            held = memory.held()
            loss.backward()
        return {"held, MiB": held / MiB, "peak, MiB": memory.peak / MiB}


def rows_of(case: str, batch: int, rounds: int) -> list[Row]:
    """The supernet as it is, and accelerated."""
    torch.manual_seed(0)
    net = darts.Network(CASES[case]).to(DEVICE)
    twin = copy.deepcopy(net)
    images, labels = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.randint(10, (batch,), device=DEVICE)
    begun = now()
    found = accelerate(twin, images)
    seconds = (now() - begun) / 1000
    mixed = [
        sum(getattr(row, when) * size for row in found.rows for size in row.calls) / MiB for when in ("before", "after")
    ]
    steps = {"eager": Step(net, images, labels), "srnas_fast": Step(twin, images, labels)}
    times = {peer: [] for peer in steps}
    gc.collect()
    gc.disable()
    try:
        for _ in range(WARM + rounds):
            for peer, step in steps.items():
                times[peer].append(step.time())
    finally:
        gc.enable()
    rows = []
    for (peer, step), held in zip(steps.items(), mixed, strict=True):
        middle, low, high = np.percentile(times[peer][WARM:], [50, 20, 80]).tolist()
        row: Row = {"peer": peer, "layout": "NCHW", "step, ms": middle, "p20, ms": low, "p80, ms": high}
        row |= step.memory() | {"mixed operations, MiB": held}
        row["of eager"] = middle / float(np.median(times["eager"][WARM:]))
        rows.append(row)
    rows[-1]["accelerate, s"] = seconds
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="again for more; default: all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    place = prepare(parser, arguments.gib)
    for case in arguments.case or CASES:
        rows = rows_of(case, arguments.batch, arguments.rounds)
        what = f"one training step, {arguments.batch}x3x32x32, {arguments.rounds} rounds"
        report(case, what, rows, FIGURES, place, arguments.out / "drop_in.csv")


if __name__ == "__main__":
    main()
