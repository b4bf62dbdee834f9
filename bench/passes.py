"""What the programs of a GPU are made of, counted without one: python bench/passes.py --case hinas

Compiles the kernels of a mixed operation for several kinds of GPU and counts what each does in the forward pass, in the
backward pass of a weight step (gradients of x and of all kernels) and in that of an architecture step (of x and of the
candidates' weights). One table per case and card; appended to passes.csv in bench/results, or in --out. Nothing is run,
no GPU is needed, only NVRTC. DLSR's dense convolutions, which are cuDNN's, are left out.

    registers   of a thread; spilled: bytes that found no room there
    shared      KiB of shared memory of a block
    blocks/SM, warps/SM, occupancy   that fit on a multiprocessor at a time, and what part of its warps that is; from
                the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide and, for
                how registers and shared memory are given out, NVIDIA's occupancy calculator
    grid        blocks of the launch
    MB          read and written, float32: each tensor once, with the pixels around the tiles that several of them read
    MMAC        millions of multiply-adds (of pools additions), with what is computed twice: around tiles, for every
                chunk of outputs, for channels that fill a chunk up
    limit, us   the bytes or the multiply-adds at the card's peak, whichever takes longer
    estimate, us   no measurement: both at half of the peak (a launch of fewer blocks than the card has multiprocessors:
                at that part of its multiply-adds), whichever takes longer, and 2 us a launch

Peaks: GTX 1080 Ti and RTX 3060 as their makers give them, H100 as one was measured. The
images of these cases fit into the cache of an H100, whose bytes cost less than estimated. NVRTC of CUDA 12.8 and 12.9
compiles for all of these cards, that of 13 no longer for a GTX 1080 Ti.
"""

import argparse
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from cases import MIXED, Mixed
from rows import RESULTS, Row, append, commit
from srnas_fast import MixedOp, __version__
from srnas_fast.backends import nvrtc
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.mixed import gpu, gpu_program
from srnas_fast.mixed import program as programs
from srnas_fast.mixed.gpu_program import DENSE, KERNELS, SEPARABLE, SIDE, GpuProgram, Placed, ceil_div
from srnas_fast.report import show_table

CASES = ("hinas", "hinas-wide", "dlsr", "pc-darts", "pc-darts-partial")
PIXELS = SIDE**2
LAUNCH = 2.0  # microseconds
PART = 0.5  # of the peak that is reached
FIGURES = [
    "registers", "spilled", "shared, KiB", "blocks/SM", "warps/SM", "occupancy", "grid", "MB", "MMAC", "limit, us",
    "estimate, us",
]  # fmt: skip


class Card(NamedTuple):
    """What a kind of GPU has: bytes and operations a second at its peak, multiprocessors; of each of them warps, blocks
    and shared memory in bytes, and how many of these the driver takes of each block."""

    name: str
    bytes: float
    operations: float
    multiprocessors: int
    warps: int
    blocks: int
    shared: int
    taken: int


CARDS = {
    (6, 1): Card("GTX 1080 Ti", 484e9, 11.3e12, 28, 64, 32, 96 << 10, 0),
    (8, 6): Card("RTX 3060", 360e9, 12.7e12, 28, 48, 16, 100 << 10, 1 << 10),
    (9, 0): Card("H100", 2.75 * 2**40, 51e12, 132, 64, 32, 228 << 10, 1 << 10),
    (12, 0): Card("RTX 5070", 672e9, 30.9e12, 48, 48, 24, 100 << 10, 1 << 10),
}
PARTITIONS, REGISTERS = 4, 16384  # of a multiprocessor; of each of its partitions, given to warps by 256


class Built(NamedTuple):
    """What the compiler says of a kernel."""

    registers: int
    spilled: int
    shared: int


class Work(NamedTuple):
    """Bytes and multiply-adds."""

    bytes: float = 0
    macs: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.macs + other.macs)


def program_of(case: Mixed) -> GpuProgram:
    """The program of what its own kernels serve, in training."""
    channels = case.shape[1] // case.partial
    plan = MixedOp(case.candidates(channels), partial=case.partial)._prepare().plan
    served = programs.served(plan, channels, partial(gpu_program.takes, outside=False))
    text, _ = programs.describe(plan, served, channels, case.partial)
    return GpuProgram(programs.program_of(text), torch.float32, torch.float32)


def build(program: GpuProgram, compiler: nvrtc.Nvrtc, capability: tuple[int, int]) -> list[Built]:
    """Its kernels, compiled."""

    def one(source) -> Built:
        log = compiler.compile(source.text, source.headers, capability, ["--ptxas-options=-v"]).log
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", log)))
        shared = re.search(r"(\d+) bytes smem", log)
        return Built(int(re.search(r"Used (\d+) registers", log)[1]), spilled, int(shared[1]) if shared else 0)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(one, gpu.sources(program)))


def blocks_that_fit(card: Card, built: Built, warps: int) -> int:
    """Blocks of so many warps on one multiprocessor."""
    each = ceil_div(32 * built.registers, 256) * 256
    by_registers = PARTITIONS * (REGISTERS // each) // warps
    shared = ceil_div(built.shared + card.taken, 256) * 256
    return min(by_registers, card.warps // warps, card.blocks, card.shared // shared if shared else card.blocks)


# ---- what a kernel has to do; of all images, whose results are of n x height x width


class Counter:
    """Counts the work of a program's launches.

    Args:
        program: the program.
        n, size, x_size: images, and the heights and widths of results and of x.
    """

    def __init__(self, program: GpuProgram, n: int, size: tuple[int, int], x_size: tuple[int, int]):
        self.program, self.made, self.n = program, program.made, n
        self.pixels, self.x_pixels = n * size[0] * size[1], n * x_size[0] * x_size[1]
        self.tiles, self.x_tiles = (n * ceil_div(a, SIDE) * ceil_div(b, SIDE) for a, b in (size, x_size))
        self.chunk = 4 * program.warps
        self.sums = 4.0 * self.tiles * 2

    def image(self, channels: int, reach: int = 0, stride: int = 1) -> float:
        """Bytes of an image with what is read around its tiles; of one with a stride, that is of x."""
        rows = (SIDE - 1) * stride + 1 + 2 * reach if reach else SIDE * stride
        return 4.0 * channels * self.pixels * rows**2 / PIXELS

    def map(self, placed: Placed) -> float:
        """Multiply-adds of a stage's map."""
        s, chunks = placed.stage, self.program.chunks_of(placed.stage.outputs)
        area = s.size**2
        if s.kind == DENSE:
            return self.tiles * PIXELS * chunks * self.chunk * s.inputs * area
        if s.kind == SEPARABLE:
            return self.tiles * PIXELS * chunks * s.inputs * (area + self.chunk)
        return self.tiles * PIXELS * chunks * self.chunk * area

    def transposed(self, placed: Placed, tiles: int) -> float:
        """Multiply-adds of its transposed map."""
        s, chunks = placed.stage, self.program.chunks_of(placed.stage.inputs)
        area, threads = s.size**2, 32 * self.program.warps
        if s.kind == SEPARABLE:
            seen = ceil_div((SIDE + 2 * s.reach) ** 2, threads) * threads
            return tiles * chunks * self.chunk * (s.outputs * seen + area * PIXELS)
        return tiles * PIXELS * chunks * self.chunk * area * (s.outputs if s.kind == DENSE else 1)

    def gradient(self, placed: Placed, reach: int = 0) -> float:
        """Bytes of the gradient of what a stage makes before its norm: dy, or what the stage behind it returned, and
        what the stage made."""
        s = placed.stage
        return self.image(s.outputs, reach) * ((not placed.last) + (s.norm == gpu_program.BATCH))

    def of(self, kernel: str, phase: int, back: bool, kernels_at: int) -> Work:
        return Work(*getattr(self, kernel)(phase, back, kernels_at))

    def made_by(self, first: bool, back: bool) -> tuple[float, float]:
        mine = [p for p in self.program.stages if p.first == first and (back or p.stored)]
        if not mine:
            return 0, 0
        macs = sum(map(self.map, mine))
        stored = sum(self.image(p.stage.outputs) for p in mine if p.stored)
        furthest = max(p.stage.reach for p in mine)
        if first:
            read = self.image(self.made.channels, furthest, self.made.stride)
        else:
            read = sum(self.image(p.stage.inputs, p.stage.reach) for p in mine)
        dy = self.image(self.made.outputs) if back else 0
        return read + stored + dy + self.sums * sum(p.stage.outputs for p in mine), macs

    def first(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        return self.made_by(True, back)

    def second(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        return self.made_by(False, back)

    def statistics(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        return self.sums * sum(p.stage.outputs for p in self.program.stages if p.first == (phase == 0)), 0

    def finish(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        return self.sums * sum(p.stage.outputs for p in self.program.stages if phase == 2 or p.last == (phase == 0)), 0

    def sum(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        last = [p for p in self.program.stages if p.last]
        here = [p for p in last if not p.stored]
        read = sum(self.image(p.stage.outputs) for p in last if p.stored)
        first = [p.stage.reach for p in here if p.first]
        if first:
            read += self.image(self.made.channels, max(first), self.made.stride)
        elif self.program.identities:
            read += self.image(self.made.channels)
        read += sum(self.image(p.stage.inputs, p.stage.reach) for p in here if not p.first)
        aside = 4.0 * (self.made.partial - 1) * self.made.outputs * (self.x_pixels + self.pixels)
        macs = sum(map(self.map, here)) + self.pixels * self.made.outputs * len(last)
        return read + aside + self.image(self.made.outputs), macs

    def back(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        mine = [p for p in self.program.stages if not p.first]
        read = self.image(self.made.outputs, max(p.stage.reach for p in mine))
        read += sum(self.gradient(p, p.stage.reach) + 2 * self.image(p.stage.inputs) for p in mine)
        return read, sum(self.transposed(p, self.tiles) for p in mine)

    def input(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        mine = [p for p in self.program.stages if p.first]
        # A tile of x sees a part of a result that is the smaller, the larger the stride.
        see = [ceil_div(p.stage.reach, p.stage.stride) for p in mine]
        read = sum(self.gradient(p, reach) for p, reach in zip(mine, see, strict=True))
        read += self.image(self.made.outputs, max(see, default=0))
        images = 4.0 * self.x_pixels * (2 * self.made.channels)
        aside = 4.0 * (self.made.partial - 1) * self.made.outputs * (2 * self.x_pixels + self.pixels)
        return read + images + aside, sum(self.transposed(p, self.x_tiles) for p in mine)

    def kernels(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        read = self.image(self.made.outputs) + 4.0 * at
        macs = 0.0
        mine = [p for p in self.program.stages if p.stage.kernels]
        first = [p.stage.reach for p in mine if p.first]
        read += self.image(self.made.channels, max(first, default=0), self.made.stride) if first else 0
        for p in mine:
            s, chunks = p.stage, self.program.chunks_of(p.stage.outputs)
            read += self.gradient(p) + (0 if p.first else self.image(s.inputs, s.reach))
            each = self.tiles * PIXELS * s.inputs * s.size**2
            outputs = self.tiles * PIXELS * s.inputs * self.chunk * chunks
            # Pointwise: what the depthwise kernel makes, and products with dz; depthwise: back to there, and products.
            macs += each * self.chunk * chunks if s.kind == DENSE else each * chunks + outputs * 2 + each
        return read, macs

    def gather(self, phase: int, back: bool, at: int) -> tuple[float, float]:
        return 4.0 * (at + self.program.products), 0


def launches_of(case: Mixed, program: GpuProgram) -> Iterator[tuple[str, str, int, Work]]:
    """Pass, kernel, blocks and work of each launch."""
    n, _, height, width = case.shape
    x_size = height, width
    size = ceil_div(height, case.stride), ceil_div(width, case.stride)
    counter, live = Counter(program, n, size, x_size), (1 << len(program.made.candidates)) - 1
    slots = frozenset(range(program.slots))
    passes = {"forward": program.forward(n, *size, live)}
    passes["weight step"] = program.backward(n, size, x_size, live, (True, False, False), slots)
    passes["architecture step"] = program.backward(n, size, x_size, live, (True, True, False), frozenset())
    for name, (launches, sizes) in passes.items():
        for kernel, phase, blocks in launches:
            yield name, KERNELS[kernel], blocks, counter.of(KERNELS[kernel], phase, name != "forward", sizes.products)


def rows_of(case: Mixed, capability: tuple[int, int], compiler: nvrtc.Nvrtc) -> list[Row]:
    """A row for each launch, and one for each pass as a whole."""
    program, card = program_of(case), CARDS[capability]
    built, rows = build(program, compiler, capability), []
    for name, kernel, grid, work in launches_of(case, program):
        own, warps = built[KERNELS.index(kernel)], program.threads(KERNELS.index(kernel)) // 32
        blocks = blocks_that_fit(card, own, warps)
        at_peak = work.bytes / card.bytes * 1e6, 2 * work.macs / card.operations * 1e6
        busy = min(1.0, grid / card.multiprocessors)
        rows.append({
            "pass": name,
            "kernel": kernel,
            "registers": own.registers,
            "spilled": own.spilled,
            "shared, KiB": own.shared / 1024,
            "blocks/SM": blocks,
            "warps/SM": blocks * warps,
            "occupancy": blocks * warps / card.warps,
            "grid": grid,
            "MB": work.bytes / 1e6,
            "MMAC": work.macs / 1e6,
            "limit, us": max(at_peak),
            "estimate, us": LAUNCH + max(at_peak[0], at_peak[1] / busy) / PART,
        })  # fmt: skip
    summed = ("MB", "MMAC", "limit, us", "estimate, us")
    for name in dict.fromkeys(row["pass"] for row in rows):
        mine = [row for row in rows if row["pass"] == name]
        rows.append({"pass": name, "kernel": "all", **{figure: sum(row[figure] for row in mine) for figure in summed}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {".".join(map(str, capability)): capability for capability in CARDS}
    parser.add_argument("--case", choices=CASES, action="append", help="again for more; default: all")
    parser.add_argument("--capability", choices=known, action="append", help="again for more; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; default: bench/results")
    arguments = parser.parse_args()
    try:
        compiler = nvrtc.find()
    except Unavailable as failure:
        raise SystemExit(f"nothing to count: {failure.reason}; {failure.remedy}") from None
    place = {"nvrtc": ".".join(map(str, compiler.version)), "srnas_fast": __version__, "commit": commit()}
    place["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for case in arguments.case or CASES:
        for shown in arguments.capability or known:
            capability, card = known[shown], CARDS[known[shown]]
            if int("".join(map(str, capability))) not in compiler.architectures:
                print(f"{case}: NVRTC {place['nvrtc']} does not compile for {shown}")
                continue
            rows = rows_of(MIXED[case], capability, compiler)
            columns = ["pass", "kernel", *FIGURES]
            shape = "x".join(map(str, MIXED[case].shape))
            title = f"{case}, x {shape}: {card.name} ({shown}), NVRTC {place['nvrtc']}, commit {place['commit']}"
            show_table(f"{title}; times are estimates", columns, [[row.get(name) for name in columns] for row in rows])
            first = ["case", "card", "capability"]
            found = [{"case": case, "card": card.name, "capability": shown, **row, **place} for row in rows]
            append(arguments.out / "passes.csv", [*first, *columns, *place], found)


if __name__ == "__main__":
    main()
