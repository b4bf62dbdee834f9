"""The HNAS supernet: every candidate on every edge of every cell, of which one path runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.metrics.candidates import candidate_costs
from srnas_fast.spaces.hnas.genotype import NODES, Edge, Genotype, inputs_read
from srnas_fast.spaces.hnas.layers import COLOURS, Frame, Inputs, reader, width
from srnas_fast.spaces.hnas.operations import NORMAL, SCALES, UPSAMPLING, make_normal
from srnas_fast.spaces.own import require_candidates, short_name


@dataclass
class SupernetConfig:
    """The size of the supernet and what its normal cells choose from; the defaults are the paper's.

    Args:
        channels: of a cell's nodes, from 3 up; four times as many go from cell to cell (paper: 8).
        cells: cells of the network, one of which upsamples (paper: 12).
        scale: how many times larger the result is: 2, 3 or 4 (paper: 2).
        candidates: the operations of the normal cells: rcab, skip_connect, sep_conv_3x3, sep_conv_5x5, dil_conv_3x3,
            dil_conv_5x5 (paper: all), and your own as FILE.py:CLASS, a class of modules that takes a number of
            channels and keeps the shape of its input.

    Raises:
        InputError: a value is out of its range; no candidates, an unknown one, or one twice.
    """

    channels: int = 8
    cells: int = 12
    scale: int = 2
    candidates: list[str] = field(default_factory=lambda: list(NORMAL))

    smallest: ClassVar[int] = 2  # pixels of the shorter side of the images it takes: a batch norm needs two values

    def __post_init__(self):
        require_whole(self, "supernet.", channels=3, cells=1, scale=2)
        if self.scale not in SCALES:
            raise InputError(f"supernet.scale is {self.scale!r}; known: {', '.join(map(str, SCALES))}")
        require_candidates("supernet.candidates", self.candidates, NORMAL)

    @property
    def names(self) -> list[str]:
        """The candidates as genotypes know them."""
        return list(map(short_name, self.candidates))


class SearchCell(nn.Module):
    """A cell with all candidates on each edge from an earlier state to a node.

    Args:
        channels: of its nodes.
        names: of the candidates.
        make: the candidates of an edge, given the state it comes from.

    ``forward(inputs, edges)``: the two inputs (N, 4 C, H, W), and the edges to run; (N, 4 C, H', W') out.
    """

    def __init__(self, channels: int, names: Sequence[str], make: Callable[[int], list[nn.Module]]):
        super().__init__()
        self.names = list(names)
        self.readers = nn.ModuleList(reader(channels, search=True) for _ in range(NODES[0]))
        self.candidates = nn.ModuleDict(
            {f"{source}-{node}": nn.ModuleList(make(source)) for node in NODES for source in range(node)}
        )

    def operation(self, edge: Edge) -> nn.Module:
        """The candidate that an edge of a genotype names."""
        name, source, node = edge
        return self.candidates[f"{source}-{node}"][self.names.index(name)]

    def forward(self, inputs: Inputs, edges: Sequence[Edge]) -> Tensor:
        states = {state: self.readers[state](inputs[state]) for state in inputs_read(edges)}
        for first, second in zip(edges[::2], edges[1::2], strict=True):
            one = self.operation(first)(states[first[1]])
            # The same edge twice is the same module with the same input: run again, it would make the same.
            other = one if second == first else self.operation(second)(states[second[1]])
            states[first[2]] = one + other
        return torch.cat([states[node] for node in NODES], dim=1)


class Supernet(nn.Module):
    """The supernet of HNAS, of which a call runs the path of one genotype.

    Each position has a normal and an upsampling cell, of which the genotype chooses one. All batch norms take their
    statistics from the images at hand, in evaluation, too.

    Args:
        config: its size, and the candidates.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, H and W from 2 up, in; (N, 3, scale * H, scale * W) out, not
    clipped.
    ``forward(x, genotype)``: what is not on the path neither runs nor gets a gradient.

    Raises:
        InputError: images of another shape; a genotype of another number of cells or other candidates; a candidate of
            the user's own that fails, or changes its input or the shape of it.

    Source: HNAS, arXiv 2003.04619.

    >>> from srnas_fast.spaces.hnas.genotype import random_genotype
    >>> net = Supernet(SupernetConfig(channels=4, cells=2, scale=3))
    >>> net(torch.rand(1, 3, 5, 7), random_genotype(seed=0, cells=2)).shape
    torch.Size([1, 3, 15, 21])
    """

    def __init__(self, config: SupernetConfig):
        super().__init__()
        self.config = config
        channels, names = config.channels, config.names

        def normal(source: int) -> list[nn.Module]:
            return [make_normal(name, channels, search=True) for name in names]

        def upsampling(source: int) -> list[nn.Module]:
            stride = config.scale if source < NODES[0] else 1  # the nodes are large already
            return [make(channels, stride) for make in UPSAMPLING.values()]

        self.frame = Frame(channels, search=True, smallest=config.smallest)
        self.normal = nn.ModuleList(SearchCell(channels, names, normal) for _ in range(config.cells))
        self.upsampling = nn.ModuleList(SearchCell(channels, list(UPSAMPLING), upsampling) for _ in range(config.cells))
        self._costs: dict[tuple[str, int], dict[tuple[str, str], int]] = {}

    def network_parameters(self) -> list[nn.Parameter]:
        """All parameters: what chooses the path is not in here."""
        return list(self.parameters())

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        self._check(genotype)

        def run(cell: int, inputs: Inputs) -> Tensor:
            kind = self.upsampling if cell == genotype.position else self.normal
            return kind[cell](inputs, genotype.edges(cell))

        return self.frame(x, genotype, run)

    def cost(self, genotype: Genotype, by: str = "madds", side: int = 48) -> int:
        """What the path of a genotype costs: its parameters, or the Multi-Adds of one image of side x side.

        Exactly those of ``forward``, transposed convolutions included: what runs once counts once. The mean is added
        and taken off without Multi-Adds; the published convolutions that do so have 9 for each pixel on either side.

        Args:
            genotype: the path.
            by: params or madds.
            side: pixels of the image, before it is enlarged.

        Raises:
            InputError: another ``by``, an image too small, or a genotype of another supernet.

        >>> from srnas_fast.spaces.hnas.genotype import HNAS_A
        >>> Supernet(SupernetConfig()).cost(HNAS_A, "madds", side=48)
        101818368
        """
        self._check(genotype)
        if side < self.config.smallest:
            raise InputError(f"costs of an image of {side} pixels a side; give {self.config.smallest} or more")
        if (by, side) not in self._costs:
            self._costs[by, side] = self._table(by, side)
        table = self._costs[by, side]
        total = table["stem", "low"] + table["tail", "high"]
        for cell, _ in genotype.wiring():
            edges = genotype.edges(cell)
            read = "high" if cell > genotype.position else "low"
            total += len(inputs_read(edges)) * table["reader", read]
            for name, source, _ in set(edges):
                enlarges = cell == genotype.position and source < NODES[0]
                at = "enlarging" if enlarges else "low" if cell < genotype.position else "high"
                total += table[name, at]
        return total

    def _table(self, by: str, side: int) -> dict[tuple[str, str], int]:
        """The cost of each part by its name, with images at low and at high resolution, and from one to the other."""
        channels, large, edges = self.config.channels, self.config.scale * side, [(0, 2), (2, 3)]
        normal, upsampling = self.normal[0], self.upsampling[0]
        enlarging, same = (upsampling.candidates[f"{source}-{node}"] for source, node in edges)
        parts = [
            ("low", side, width(channels), {"reader": normal.readers[0]}),
            ("high", large, width(channels), {"reader": normal.readers[0], "tail": self.frame.tail}),
            ("low", side, COLOURS, {"stem": self.frame.stem}),
            ("low", side, channels, dict(zip(normal.names, normal.candidates["0-2"], strict=True))),
            ("high", large, channels, dict(zip(normal.names, normal.candidates["0-2"], strict=True))),
            ("enlarging", side, channels, dict(zip(upsampling.names, enlarging, strict=True))),
            ("high", large, channels, dict(zip(upsampling.names, same, strict=True))),
        ]
        table = {}
        for at, pixels, inputs, modules in parts:
            costs = candidate_costs(list(modules.values()), by, (1, inputs, pixels, pixels))
            table |= {(name, at): cost for name, cost in zip(modules, costs, strict=True)}
        return table

    def _check(self, genotype: Genotype) -> None:
        foreign = {name for name, _, _ in genotype.normal} - set(self.config.names)
        if genotype.cells != self.config.cells or foreign:
            raise InputError(
                f"a genotype of {genotype.cells} cells and {', '.join(sorted({n for n, _, _ in genotype.normal}))}; "
                f"this supernet has {self.config.cells} cells and {', '.join(self.config.names)}"
            )
