"""A program on a GPU: the constants that its kernels are compiled with, and the launches of one call.

The kernels stand in ``csrc/gpu``. Here is decided which of them run, on how many blocks, and where their scratch lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from srnas_fast.mixed import stage as stages
from srnas_fast.mixed.dense import merge_groups
from srnas_fast.mixed.norm import uses_batch
from srnas_fast.mixed.program import Program

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "gpu"
STORED = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "Brain"}
KERNELS = ("first", "second", "statistics", "sum", "finish", "back", "input", "kernels", "gather", "merge")
FIRST, SECOND, STATISTICS, SUM, FINISH, BACK, INPUT, PRODUCTS, GATHER, MERGE = range(len(KERNELS))
SIDE = 16  # of a tile
MOST_CHANNELS, MOST_DENSE = 64, 32  # of stages; dense convolutions of more are cuDNN's
FARTHEST = 4  # pixels that a kernel reaches
MOST_WORDS = 512  # of a kernel's arguments
HELD, HELD_DEPTHWISE = 80, 64  # sums of products that a lane holds
BLOCKS = 1024  # that the gradients of kernels are shared among, about
_KINDS = ("dense", "separable", "max_pool", "average_pool")
_ACTIVATIONS = ("none", "relu", "leaky", "prelu", "sine")
_NORMS = ("none", "batch", "frozen")
DENSE, SEPARABLE = 0, 1
BATCH = 1  # what a norm uses
FINISHERS = 16  # warps of a block that adds up what tiles have left


class Stage(NamedTuple):
    """A stage of the description by the names of its numbers; see ``csrc/program/program.h``."""

    kind: int
    activation: int
    slope: float
    slopes: int
    inputs: int
    outputs: int
    size: int
    dilation: int
    stride: int
    counts_padding: bool
    norm: int
    eps: float
    momentum: float
    moves: bool
    counts: bool
    statistics: int
    slots: list[int]

    @property
    def reach(self) -> int:
        return self.dilation * (self.size // 2)

    @property
    def outside(self) -> bool:
        """Whether torch's own convolution runs it, merged with its like."""
        return self.kind == DENSE and max(self.inputs, self.outputs) > MOST_DENSE

    @property
    def kernels(self) -> list[tuple[int, int]]:
        """Slot and size of the dense or pointwise kernel and of the depthwise one, of those that kernels here run."""
        area = self.size**2
        if self.outside:
            return []
        if self.kind == SEPARABLE:
            return [(self.slots[1], self.outputs * self.inputs), (self.slots[0], self.inputs * area)]
        return [(self.slots[1], self.outputs * self.inputs * area)] if self.kind == DENSE else []


class Placed(NamedTuple):
    """A stage and where it stands: its candidate, group and number in its candidate; the places of its partial sums, in
    channels, and of the gradients of its kernels, in numbers."""

    stage: Stage
    candidate: int
    group: int
    first: bool
    last: bool
    other: int
    sums: int
    products: tuple[int, int]

    @property
    def stored(self) -> bool:
        return not self.last or self.stage.norm == BATCH

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers that it keeps, channels of scratch that it makes, and that it returns going back."""
        outputs = self.stage.outputs
        return 3 * outputs * (self.stage.norm > 0), outputs * self.stored, outputs * (not self.last)


class Merge(NamedTuple):
    """Stages, by their places, that run as one convolution of a group's input: its dilation and size, and the steps of
    their own taps inside."""

    group: int
    dilation: int
    size: int
    members: list[int]
    steps: list[int]


class Launch(NamedTuple):
    """A kernel's number in ``KERNELS``, its phase, its blocks."""

    kernel: int
    phase: int
    blocks: int


@dataclass(frozen=True)
class Sizes:
    """How the scratch of a call is divided, in numbers; and into how many shares the sums of kernels' gradients."""

    images: int
    sums: int
    coefficients: int
    products: int
    shares: int

    @property
    def all(self) -> int:
        return self.images + self.sums + self.coefficients + self.products


def takes(stage: stages.Stage, channels: int, outside: bool) -> bool:
    """Whether the kernels take a stage of images of so many channels: nothing that reaches further than shared memory.

    Dense convolutions of many channels are cuDNN's: with ``outside`` as part of a program where they are linear maps,
    so that they merge.
    """
    if stage.kind == "pool":
        return stage.size <= 7 and stage.dilation == 1 and stage.stride <= 2 and channels <= MOST_CHANNELS
    most = max(channels, stage.spatial.in_channels, stage.conv.out_channels)
    if stage.kind == "dense" and most > MOST_DENSE:
        linear = stage.norm is None or not uses_batch(stage.norm)
        return outside and linear and stage.stride == 1 and not isinstance(stage.activation, nn.PReLU)
    return (
        most <= MOST_CHANNELS
        and stage.size <= 7
        and stage.dilation * (stage.size // 2) <= FARTHEST
        and stage.stride <= 2
    )


class GpuProgram:
    """What a program is on a GPU, for images and parameters of given types.

    Args:
        made: the program.
        pixel, parameter: the types that images and parameters are stored in.
    """

    def __init__(self, made: Program, pixel: torch.dtype, parameter: torch.dtype):
        self.made, self.pixel, self.parameter = made, pixel, parameter
        self.stages: list[Placed] = []
        sums = products = 0
        for k, (_, group, rows) in enumerate(made.candidates):
            for number, values in enumerate(rows):
                s = Stage(*values)
                first, last = number == 0, number == len(rows) - 1
                other = len(self.stages) + (0 if len(rows) == 1 else 1 if first else -1)
                at = [products, products]
                for i, (_, size) in enumerate(s.kernels):
                    at[i] = products
                    products += size
                self.stages.append(Placed(s, k, group, first, last, other, sums, (at[0], at[1])))
                sums += s.outputs
        self.sums, self.products = sums, products
        self.identities = sum(1 << k for k, row in enumerate(made.candidates) if row[0] == 1)
        self.staged = sum(1 << k for k, row in enumerate(made.candidates) if row[0] == 2)
        self.groups = 1 + max((placed.group for placed in self.stages), default=-1)
        own = [p.stage for p in self.stages if not p.stage.outside]
        channels = {made.channels, made.outputs}.union(*({stage.inputs, stage.outputs} for stage in own))
        self.warps = max(_warps(count) for count in channels)
        self.chunks = max(map(self.chunks_of, channels))
        self.outside = [place for place, placed in enumerate(self.stages) if placed.stage.outside]
        self.first_stages = sum(placed.first and not placed.stage.outside for placed in self.stages)
        self.second_stages = sum(not placed.first for placed in self.stages)
        slots = [slot for placed in self.stages for slot in placed.stage.slots]
        self.slots = 1 + max(slots, default=-1)
        self.norms = 1 + max((placed.stage.statistics for placed in self.stages), default=-1)
        self.places = lru_cache(1024)(self._places)
        self.merges = lru_cache(1024)(self._merges)
        self.forward = lru_cache(256)(self._forward)
        self.backward = lru_cache(256)(self._backward)

    @property
    def words(self) -> int:
        """Of the arguments of a kernel; see ``Arguments`` in csrc/gpu/call.h."""
        tables = 2 * max(self.slots, 1) + max(3 * self.norms, 1) + 3 * max(len(self.stages), 1)
        return 8 + 4 * 5 + 7 + tables + 5 * max(self.groups, 1) + 4 * max(len(self.outside), 1) + 1

    def threads(self, kernel: int) -> int:
        """Of a block of the kernel with this number."""
        return 32 * (FINISHERS if kernel in (STATISTICS, FINISH) else self.warps)

    @cached_property
    def constants(self) -> str:
        """What stands between stage.h and kernels.h in the text that is compiled."""
        made = self.made
        numbers = {
            "CHANNELS": made.channels, "OUTPUTS": made.outputs, "STRIDE": made.stride, "PARTIAL": made.partial,
            "SLOTS": self.slots, "NORMS": self.norms, "STAGES": len(self.stages), "WARPS": self.warps,
            "CHUNKS": self.chunks, "FIRST_STAGES": self.first_stages, "SECOND_STAGES": self.second_stages,
            "CANDIDATES": len(made.candidates), "GROUPS": self.groups, "IDENTITY_SUMS": self.sums,
            "OUTSIDES": len(self.outside), "PASSING_SUMS": self.groups * made.channels, "PRODUCTS": self.products,
        }  # fmt: skip
        groups = [sum(1 << p.candidate for p in self.stages if p.group == g and p.first) for g in range(self.groups)]
        lines = [
            "namespace srnas_fast_gpu {",
            f"using Pixel = {STORED[self.pixel]};",
            f"using Parameter = {STORED[self.parameter]};",
            *(f"constexpr int {name} = {value};" for name, value in numbers.items()),
            f"constexpr uint64_t IDENTITIES = {self.identities}ull, STAGED = {self.staged}ull;",
            f"constexpr uint64_t GROUP_CANDIDATES[] = {{{', '.join(f'{bits}ull' for bits in groups) or '0'}}};",
            "constexpr Stage STAGE[] = {",
            *(f"    {_initializer(p)}," for p in self.stages or [_NOTHING]),
            "};",
            "}  // namespace srnas_fast_gpu",
        ]
        return "\n".join(lines) + "\n"

    def _places(self, live: int) -> tuple[list[int], list[int]]:
        """Of every stage: where its numbers kept begin, its scratch images and those it returns, in channels, which lie
        behind all of those made; all in a row, nothing of the dead. And of the three how much there is."""
        totals, rows = [0, 0, 0], []
        for placed in self.stages:
            rows.append(list(totals))
            if live >> placed.candidate & 1:
                totals = [total + size for total, size in zip(totals, placed.sizes, strict=True)]
        kept, made, returned = map(list, zip(*rows, strict=True)) if rows else ([0], [0], [0])
        return [*kept, *made, *(totals[1] + place for place in returned)], totals

    def chunks_of(self, channels: int) -> int:
        return ceil_div(channels, 4 * self.warps)

    # ---- launches

    def _forward(self, n: int, height: int, width: int, live: int) -> tuple[list[Launch], Sizes]:
        tiles, made = n * _tiles(height, width), self.made
        launches = self._made(tiles, back=False)
        launches.append(Launch(SUM, 0, tiles * self.chunks_of(made.outputs) * made.partial))
        pixels = n * height * width
        return launches, Sizes(self.places(live)[1][1] * pixels, 3 * self.sums * tiles, 0, 0, 1)

    @property
    def shifts(self) -> bool:
        """Whether a stage that torch runs has a norm or a bias, whose gradients take the sum of dy."""
        return any(s.norm or s.slots[2] >= 0 for s in (self.stages[place].stage for place in self.outside))

    def outside_wanted(self, slots: frozenset) -> bool:
        """Whether one of the gradients is of a stage that torch's own convolution runs."""
        return any(slot in slots for place in self.outside for slot in self.stages[place].stage.slots)

    def _merges(self, live: int) -> list[Merge]:
        """How the live stages that torch's own convolution runs share its calls, those of each input by themselves."""
        found = []
        alive = [self.stages[place] for place in self.outside if live >> self.stages[place].candidate & 1]
        for group in dict.fromkeys(placed.group for placed in alive):
            mine = [placed for placed in alive if placed.group == group]
            parts = merge_groups(mine) if self.made.merge else [(placed.stage.dilation, [placed]) for placed in mine]
            for dilation, members in parts:
                steps = [p.stage.dilation // dilation if p.stage.size > 1 else 1 for p in members]
                size = max(step * (p.stage.size - 1) + 1 for step, p in zip(steps, members, strict=True))
                found.append(Merge(group, dilation, size, list(map(self.stages.index, members)), steps))
        return found

    def _made(self, tiles: int, back: bool, outside: bool = False) -> list[Launch]:
        """What stages make, and forward the statistics of their norms; going back also the gradients of the kernels
        that torch's own convolution ran with."""
        launches = []
        for kernel, first, count in ((FIRST, True, self.first_stages), (SECOND, False, self.second_stages)):
            mine = [p for p in self.stages if p.first == first and not p.stage.outside]
            jobs = count + bool(first and self.identities)
            rows = sum(self.stages[place].stage.outputs for place in self.outside) if first and outside else 0
            if rows or (jobs and (back or any(p.stored for p in mine))):
                launches.append(Launch(kernel, 0, tiles * jobs * self.chunks + rows))
            if not back and any(p.stage.norm for p in mine):
                launches.append(Launch(STATISTICS, int(not first), len(self.stages)))
        return launches

    def _backward(
        self,
        n: int,
        size: tuple[int, int],
        x_size: tuple[int, int],
        live: int,
        wanted: tuple[bool, bool, bool],
        slots: frozenset,
    ) -> tuple[list[Launch], Sizes]:
        """Args: the sizes of results and of x; whether gradients are wanted of x, weights and scale; of which slots."""
        made = self.made
        tiles, x_tiles = n * _tiles(*size), n * _tiles(*x_size)
        launches = self._made(tiles, back=True, outside=wanted[1] or self.outside_wanted(slots))
        # The gradient of a norm's input needs the sums of all pixels: those behind the last stages, then those between.
        batch = any(p.stage.norm == BATCH for p in self.stages)
        if self.second_stages:
            launches += [Launch(FINISH, 0, len(self.stages) + 1)] * batch
            launches.append(Launch(BACK, 0, tiles * self.second_stages * self.chunks))
        launches.append(Launch(FINISH, (1 if batch else 2) if self.second_stages else 0, len(self.stages) + 1))
        slopes = any(p.first and p.stage.slots[5] in slots for p in self.stages)
        if wanted[0] or wanted[2] or slopes:
            launches.append(Launch(INPUT, 0, x_tiles * self.chunks_of(made.channels) * made.partial))
        jobs = sum(map(self._jobs, self.stages))
        shares = max(1, min(tiles, BLOCKS // max(jobs, 1)))
        kernels = any(slot in slots for p in self.stages for slot, _ in p.stage.kernels)
        if kernels:
            launches.append(Launch(PRODUCTS, 0, jobs * shares))
        if kernels or slopes or wanted[2]:
            blocks = ceil_div(self.products, 32 * self.warps) if kernels else 0
            launches.append(Launch(GATHER, 0, self.groups + 1 + blocks))
        pixels = n * size[0] * size[1]
        passing = (made.partial - 1) * self.chunks_of(made.outputs) * self.warps
        sums = max((self.sums + made.channels) * tiles, (self.groups * made.channels + passing) * x_tiles)
        scratch = Sizes(
            sum(self.places(live)[1][1:]) * pixels,
            3 * sums,
            3 * self.sums,
            self.products * shares if kernels else 0,
            shares,
        )
        return launches, scratch

    @property
    def before_merging(self) -> list[Launch]:
        """What keeps the frozen norms of stages that torch's own convolution runs: their kernels are scaled by them."""
        normed = any(self.stages[place].stage.norm for place in self.outside)
        return [Launch(STATISTICS, 2, len(self.stages))] * normed

    def _jobs(self, placed: Placed) -> int:
        """Of the gradients of a stage's kernels; as csrc/gpu/pass_kernels.h counts them."""
        s = placed.stage
        if s.outside:
            return 0
        if s.kind == SEPARABLE:
            pointwise = ceil_div(s.inputs, ceil_div(s.inputs, 16))
            depthwise = min(ceil_div(s.inputs, self.warps), max(1, min(4, HELD_DEPTHWISE // s.size**2)))
            jobs = self.chunks_of(s.outputs) * ceil_div(s.inputs, pointwise)
            return jobs + ceil_div(s.inputs, self.warps * depthwise)
        if s.kind != DENSE:
            return 0
        parts = ceil_div(s.size, max(1, HELD // (4 * s.size)))
        inputs = 1 if parts > 1 else min(s.inputs, 8, HELD // (4 * s.size**2))
        return self.chunks_of(s.outputs) * parts * ceil_div(s.inputs, inputs)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _warps(channels: int) -> int:
    """Of a block: each has four channels, up to sixteen together; a single one would have too many pixels to hold."""
    blocks = ceil_div(channels, 16)
    return max(2, ceil_div(ceil_div(channels, blocks), 4))


def _tiles(height: int, width: int) -> int:
    return ceil_div(height, SIDE) * ceil_div(width, SIDE)


_NOTHING = Placed(
    Stage(0, 0, 0.0, 0, 1, 1, 1, 1, 1, False, 0, 0.0, 0.0, False, False, -1, [-1] * 6),
    0, -1, False, False, 0, 0, (0, 0),
)  # fmt: skip


def _initializer(placed: Placed) -> str:
    s = placed.stage
    depthwise, conv, bias, gamma, beta, slope = s.slots
    values = [
        placed.candidate, placed.group, placed.first, placed.last, placed.other,
        f"Kind::{_KINDS[s.kind]}", f"Activation::{_ACTIVATIONS[s.activation]}", s.slope, s.slopes,
        s.inputs, s.outputs, s.size, s.dilation, s.stride, s.counts_padding,
        f"Norm::{_NORMS[s.norm]}", s.eps, s.momentum, s.moves, s.counts, s.statistics,
        depthwise, conv, bias, gamma, beta, slope, placed.sums,
        *placed.products, s.outside,
    ]  # fmt: skip
    return "{" + ", ".join(str(int(v)) if isinstance(v, bool) else str(v) for v in values) + "}"


def addresses_of(views: Sequence) -> list[int]:
    """Of images: address and strides, zeros for none."""
    return [number for view in views for number in ([0] * 5 if view is None else [view.data_ptr(), *view.stride()])]
