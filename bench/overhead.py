"""The fixed cost of a mixed operation: python bench/overhead.py --case hinas

Images of 4 x 4 pixels, forward and backward, all gradients: computing takes next to nothing, what is left is the way
there. One table per case, all peers in alternation (A B C A B C ...), with one thread; appended to overhead.csv in
bench/results, or in --out. A turn is 20 passes in a row, as in a network, where one mixed operation follows another;
three before them are not counted: they find the caches as another peer has left them, and the first takes three times
as long.

    pass      microseconds of one pass: the mean of a turn, the median of the turns
    of eager  as a multiple of the plain sum's
    of empty  as a multiple of the floor's ("empty"): a torch.autograd.Function of the same inputs that saves them all,
              returns a copy of x, and going back a gradient for x and for nothing else; so no autograd.Function of that
              many parameters takes less

The case `accelerated` is a module of somebody else, with the candidates of DARTS: as it is ("eager"), after
accelerate() ("accelerated"), and beside it a bare MixedOp of the same candidates ("srnas_fast").

The case `chain` is twelve mixed operations of HiNAS in a row, each of 2x8x16x16: plain, as MixedOp, and
torch.compile of both chains ("compile", "srnas_fast-compile"), whose note tells how often the compiler broke the graph;
`chain-32` is the same with 8x8x32x32.

--reference compares in the end with what was recorded before; see compare() in bench/rows.py.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cases import Mixed, dlsr, hinas, pc_darts
from machine import options, prepare
from peers import DEVICE, PEERS, Job, job_of, mixed_job, mixed_peers, now
from rows import Row, add_reference, compare, recorded, report
from speed import Work, measure
from srnas_fast import MixedOp, accelerate
from srnas_fast.mixed import PlainMixedOp

FIGURES = ["pass, us", "p20, us", "p80, us", "forward, ms", "backward, ms", "of eager", "of empty"]
LAYOUT = "NCHW"
DEPTHS = range(0, 128, 7)  # in frames
COLD, IN_A_ROW = 3, 20  # passes of a turn: those that are not counted, those that are
SMALL = (1, 8, 4, 4)
CASES = {
    "hinas": Mixed(hinas, SMALL),
    "darts": Mixed(pc_darts, SMALL),
    "dlsr": Mixed(dlsr, SMALL),
    "pc-darts-partial": Mixed(pc_darts, (1, 32, 4, 4), partial=4),
    "accelerated": Mixed(pc_darts, SMALL),
}
LINKS, CHAINED = 12, {"chain": (2, 8, 16, 16), "chain-32": (8, 8, 32, 32)}
CHAINS = {"eager": PlainMixedOp, "compile": PlainMixedOp, "srnas_fast": MixedOp, "srnas_fast-compile": MixedOp}


class Nothing(torch.autograd.Function):
    """What any autograd.Function of these inputs has to do."""

    @staticmethod
    def forward(ctx, x, *others):
        ctx.save_for_backward(x, *others)
        ctx.others = len(others)
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy, *[None] * ctx.others


class Foreign(nn.Module):
    """A mixed operation as somebody else wrote it."""

    def __init__(self, ops: nn.ModuleList):
        super().__init__()
        self._ops = ops

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops))  # noqa: B905 as they write it


def accelerated(ops: nn.ModuleList) -> nn.Module:
    """The same module, accelerated."""
    module = Foreign(ops)
    found = accelerate(module)
    if not found.replaced:  # else it would be measured as it was, under the other name
        raise RuntimeError(found.rows[0].why)
    return module


FOREIGN = {"eager": Foreign, "accelerated": accelerated, "srnas_fast": MixedOp}
ALL_PEERS = list(dict.fromkeys([*PEERS, *FOREIGN, *CHAINS, "empty"]))


class Chain(nn.Module):
    """Mixed operations in a row; ``weights`` has a row for each."""

    def __init__(self, mixed_op: type[nn.Module], channels: int):
        super().__init__()
        self.links = nn.ModuleList(mixed_op(hinas(channels)) for _ in range(LINKS))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for k, link in enumerate(self.links):
            x = link(x, weights[k])
        return x


def job(case: str, peer: str) -> Job:
    """One peer at work on a single mixed operation."""
    one = CASES[case]
    if peer == "empty":
        found = mixed_job(one, "eager", LAYOUT)
        return Job(partial(Nothing.apply, *found.inputs), found.x, [found.x], found.dy)
    if case == "accelerated":
        return job_of(one, lambda ops, partial: FOREIGN[peer](ops), LAYOUT)
    return mixed_job(one, peer, LAYOUT)


def turn(work: Job) -> Work:
    """Times a row of passes, each time called from another depth."""
    depths = itertools.cycle(DEPTHS)

    def row(count: int) -> None:
        for _ in range(count):
            work.backward(work.forward())

    def passes() -> dict[str, float]:
        row(COLD)
        begun = now()
        row(IN_A_ROW)
        return {"pass, ms": (now() - begun) / IN_A_ROW}

    return lambda: deeper(next(depths), passes)


def deeper(frames: int, function: Callable[[], Any]) -> Any:
    """``function()``, called from so many frames deeper.

    CPython (3.11 and later) keeps frames in pieces of 16 KiB, and a loop whose calls begin a new piece asks the kernel
    for memory each time: 6 us a call here, at one depth in ten, for functions of hundreds of variables as compilers
    write them. The median over depths does not depend on where a bench happens to stand.
    """
    return deeper(frames - 1, function) if frames else function()


def chain_job(case: str, peer: str) -> Job:
    """One peer at work on a chain."""
    shape = CHAINED[case]
    torch.manual_seed(0)
    chain = Chain(CHAINS[peer], shape[1]).to(DEVICE)
    inputs = [torch.randn(shape), (0.3 * torch.randn(LINKS, len(chain.links[0].ops))).softmax(1)]
    x, weights = (tensor.to(DEVICE).requires_grad_() for tensor in inputs)
    run = torch.compile(chain, dynamic=False) if peer.endswith("compile") else chain
    return Job(partial(run, x, weights), x, [x, weights, *chain.parameters()], torch.randn_like(x))


def chain_turn(case: str, peer: str, notes: dict[str, str]) -> Work:
    """Writes down how often the compiler breaks the graph, of a peer that it compiles."""
    work = chain_job(case, peer)
    if peer.endswith("compile"):
        from torch._dynamo.utils import counters  # slow to import, and only needed here

        counters.clear()
        work.forward()
        notes[peer] = f"{sum(counters['graph_break'].values())} graph breaks"
    return turn(work)


def rows_of(case: str, peers: list[str], rounds: int) -> tuple[str, list[Row]]:
    """What a case measures, and a row for each of the asked peers that it has."""
    notes: dict[str, str] = {}
    if case in CHAINED:
        what, shape = f"{LINKS} mixed operations in a row", CHAINED[case]
        makers = {peer: partial(chain_turn, case, peer, notes) for peer in CHAINS}
    else:
        what, shape = f"{IN_A_ROW} passes a turn", CASES[case].shape
        known = [*(FOREIGN if case == "accelerated" else mixed_peers(PEERS)), "empty"]
        makers = {peer: lambda peer=peer: turn(job(case, peer)) for peer in known}
    rows = measure({(peer, LAYOUT): make for peer, make in makers.items() if peer in peers}, rounds)
    floor = next((row.get("total, ms") for row in rows if row["peer"] == "empty"), None)
    what = f"forward and backward, x {'x'.join(map(str, shape))}, {what}, {rounds} rounds"
    return what, [figures(row, floor) | {"note": row["note"] or notes.get(row["peer"])} for row in rows]


def figures(row: Row, floor: float | None) -> Row:
    """A row of bench/speed.py's in the figures of this bench."""
    found = {name: row[name] for name in ("peer", "layout", "forward, ms", "backward, ms") if name in row}
    if "total, ms" in row:
        for name, other in {"pass, us": "total, ms", "p20, us": "p20, ms", "p80, us": "p80, ms"}.items():
            found[name] = 1000 * row[other]
        found["of eager"] = row.get(f"of eager {LAYOUT}")
        found["of empty"] = floor and row["total, ms"] / floor
    return found


def main() -> None:
    parser = options(__doc__)
    cases = [*CASES, *CHAINED]
    parser.add_argument("--case", choices=cases, action="append", help="again for more; default: all")
    parser.add_argument("--peer", choices=ALL_PEERS, action="append", help="again for more; default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    add_reference(parser, "overhead.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    place, known, measured = prepare(parser, arguments.gib), recorded(arguments.reference), []
    for case in arguments.case or cases:
        what, rows = rows_of(case, arguments.peer or ALL_PEERS, arguments.rounds)
        report(case, what, rows, FIGURES, place, arguments.out / "overhead.csv")
        measured += [{"case": case, **row, **place} for row in rows]
    compare(measured, known, "pass, us")


if __name__ == "__main__":
    main()
