"""The derived HNAS network: what a genotype is retrained as."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.spaces.hnas.genotype import NODES, STEM, Edge, Genotype, inputs_read
from srnas_fast.spaces.hnas.layers import COLOURS, Frame, Inputs, reader
from srnas_fast.spaces.hnas.operations import SCALES, UPSAMPLING, make_normal
from srnas_fast.spaces.hnas.reach import Interval, hull, normal_reads, upsampling_reads
from srnas_fast.spaces.reach import shared_by_tiles

Place = tuple[int, int, int, int]  # of a part in a whole image: top, left; height and width of the whole


@dataclass
class NetworkConfig:
    """The size of the derived network; the defaults are the paper's.

    Args:
        channels: of a cell's nodes, from 3 up; four times as many go from cell to cell (paper: 64).
        scale: how many times larger the result is: 2, 3 or 4.
    """

    channels: int = 64
    scale: int = 2

    smallest: ClassVar[int] = 1  # pixels of the shorter side of the images it takes

    def __post_init__(self):
        require_whole(self, "network.", channels=3, scale=2)
        if self.scale not in SCALES:
            raise InputError(f"network.scale is {self.scale!r}; known: {', '.join(map(str, SCALES))}")


class DerivedCell(nn.Module):
    """A cell of chosen operations, of which each edge has its own, equal edges too.

    Args:
        edges: of a genotype.
        channels: of its nodes.
        stride: by how much it enlarges; 0: it is a normal cell.

    ``forward(inputs)``: the two inputs (N, 4 C, H, W) in, (N, 4 C, H', W') out.
    """

    def __init__(self, edges: Sequence[Edge], channels: int, stride: int):
        super().__init__()
        self.edges, self.read = edges, inputs_read(edges)
        self.readers = nn.ModuleList(reader(channels, search=False) for _ in self.read)
        self.strides = [stride and (stride if source < NODES[0] else 1) for _, source, _ in edges]
        self.operations = nn.ModuleList(
            UPSAMPLING[name](channels, here) if here else make_normal(name, channels, search=False)
            for (name, _, _), here in zip(edges, self.strides, strict=True)
        )

    def forward(self, inputs: Inputs) -> Tensor:
        states = {state: read(inputs[state]) for state, read in zip(self.read, self.readers, strict=True)}
        for (_, source, node), operation in zip(self.edges, self.operations, strict=True):
            part = operation(states[source])
            states[node] = states[node] + part if node in states else part
        return torch.cat([states[node] for node in NODES], dim=1)

    def reads(self, interval: Interval) -> dict[int, Interval]:
        """Which pixels of its inputs, by their states, an interval of its output's pixels depends on."""
        needed = dict.fromkeys(NODES, interval)
        edges = list(zip(self.edges, self.operations, self.strides, strict=True))
        for (name, source, node), operation, stride in reversed(edges):
            part = upsampling_reads(name, stride, needed[node]) if stride else normal_reads(operation, needed[node])
            needed[source] = hull(needed.get(source), part)
        return {state: needed[state] for state in self.read}


class DerivedNetwork(nn.Module):
    """The network of a genotype: it enlarges images. It has no batch norm.

    Args:
        genotype: what the search found.
        config: its size.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, of any size, in; (N, 3, scale * H, scale * W) out, not
    clipped.
    ``forward(x, place=None)``: ``place``, where in a larger image x lies, changes nothing.

    ``channels``, ``smallest``: of the images it takes; pixels of the shorter side. ``scale``: how many times larger.
    ``grid``: parts of an image may start at any pixel.

    Where the genotype has rcab, whose attention weighs channels by their means over the image, a part of an image sees
    the means of the part.

    Raises:
        InputError: images of another shape; a candidate of the user's own that fails, or changes its input or the
            shape of it.

    Source: HNAS, arXiv 2003.04619.

    >>> from srnas_fast.spaces.hnas.genotype import HNAS_A
    >>> net = DerivedNetwork(HNAS_A, NetworkConfig(channels=4))
    >>> net(torch.rand(1, 3, 5, 7)).shape, net.radius
    (torch.Size([1, 3, 10, 14]), 42)
    """

    channels, smallest, grid = COLOURS, NetworkConfig.smallest, 1

    def __init__(self, genotype: Genotype, config: NetworkConfig):
        super().__init__()
        self.genotype, self.config, self.scale = genotype, config, config.scale
        self.frame = Frame(config.channels, search=False, smallest=config.smallest)
        self.cells = nn.ModuleDict(
            {
                str(cell): DerivedCell(
                    genotype.edges(cell), config.channels, config.scale if cell == genotype.position else 0
                )
                for cell, _ in genotype.wiring()
            }
        )

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        return self.frame(x, self.genotype, lambda cell, inputs: self.cells[str(cell)](inputs))

    @property
    def reach(self) -> int:
        """Low-resolution pixels that neighbouring tiles should share."""
        return shared_by_tiles(self.radius)

    @property
    def radius(self) -> int:
        """How many low-resolution pixels to each side a pixel depends on, but for rcab's means over the image.

        Exactly so many of the published candidates. Of the user's own it counts the convolutions, as if they stood one
        after the other.
        """
        needed = {self.genotype.cells - 1: (-1, self.scale)}  # by the tail, for all that becomes of pixel 0
        for cell, sources in reversed(self.genotype.wiring()):
            for state, interval in self.cells[str(cell)].reads(needed[cell]).items():
                needed[sources[state]] = hull(needed.get(sources[state]), interval)
        low, high = needed[STEM]
        return 1 + max(-low, high)  # 1: the stem's

    @torch.no_grad()
    def start_from(self, other: "DerivedNetwork") -> None:
        """Take the weights of a trained network, all but those of the upsampling cell where its scale is another.

        Raises:
            InputError: the other network has another genotype or other channels.

        >>> from srnas_fast.spaces.hnas.genotype import HNAS_A
        >>> x2, x4 = (DerivedNetwork(HNAS_A, NetworkConfig(channels=4, scale=scale)) for scale in (2, 4))
        >>> x4.start_from(x2)
        >>> torch.equal(x4.frame.tail.weight, x2.frame.tail.weight)
        True
        """
        if self.genotype != other.genotype or self.config.channels != other.config.channels:
            raise InputError(
                f"a network of {self.genotype} and {self.config.channels} channels cannot start from one of "
                f"{other.genotype} and {other.config.channels} channels; give equal ones"
            )
        same, upsampling = self.scale == other.scale, f"cells.{self.genotype.position}."
        theirs = other.state_dict()
        weights = {
            name: theirs[name] if same or not name.startswith(upsampling) else value
            for name, value in self.state_dict().items()
        }
        self.load_state_dict(weights)
