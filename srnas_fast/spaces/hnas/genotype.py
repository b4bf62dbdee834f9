"""What an HNAS search finds: a normal cell, an upsampling cell, and which of the cells upsamples; how it is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from srnas_fast.errors import InputError, require_whole
from srnas_fast.spaces.hnas.operations import NORMAL, UPSAMPLING
from srnas_fast.spaces.own import brief, candidate

Edge = tuple[str, int, int]  # operation, from, to

NODES = (2, 3, 4, 5)  # of a cell: states 0 and 1 are its inputs
EDGES_PER_NODE = 2
STEM = -1  # its number among the cells


@dataclass(frozen=True)
class Genotype:
    """A derived architecture.

    Cell k reads cells k - 2 and k - 1 as its states 0 and 1; the stem stands before the first, and the upsampling cell
    twice before the next.

    Args:
        normal, upsampling: the edges ``(operation, from, to)`` of the two kinds of cells, two for each of the nodes 2
            to 5, node by node; a node is their sum, the cell's output all nodes.
        position: which cell upsamples, from 0.
        cells: of the network (paper: 12).

    Raises:
        InputError: an unknown operation, other edges than two for each node from earlier states, no such position.

    >>> normal = [("skip_connect", 0, 2), ("rcab", 1, 2)] + [("sep_conv_3x3", 2, to) for to in (3, 3, 4, 4, 5, 5)]
    >>> upsampling = [("nearest", 1, to) for to in (2, 2, 3, 3, 4, 4, 5, 5)]
    >>> print(Genotype(normal, upsampling, position=3))
    normal [skip(0) rcab(1)] [sep3(2) sep3(2)] [sep3(2) sep3(2)] [sep3(2) sep3(2)], upsampling at 3 of 12
    [nearest(1) nearest(1)] [nearest(1) nearest(1)] [nearest(1) nearest(1)] [nearest(1) nearest(1)]
    """

    normal: Sequence[Edge]
    upsampling: Sequence[Edge]
    position: int
    cells: int = 12

    def __post_init__(self):
        require_whole(self, "the genotype's ", cells=1, position=0)
        if self.position >= self.cells:
            raise InputError(
                f"the genotype's position is {self.position}; of {self.cells} cells give one from 0 to {self.cells - 1}"
            )
        for kind, known in (("normal", NORMAL), ("upsampling", UPSAMPLING)):
            edges = _checked(kind, getattr(self, kind), known)
            object.__setattr__(self, kind, edges)  # lists from JSON, too, make an equal genotype

    def edges(self, cell: int) -> tuple[Edge, ...]:
        """Those of a cell of the network."""
        return self.upsampling if cell == self.position else self.normal

    def wiring(self) -> list[tuple[int, tuple[int, int]]]:
        """The cells that the result depends on, in order, each with those that are its states 0 and 1; -1: the stem.

        Where no edge reads state 1, every other cell is read by nobody.

        >>> [cell for cell, _ in HNAS_A.wiring()] == list(range(12)), HNAS_A.wiring()[-2:]
        (True, [(10, (9, 9)), (11, (9, 10))])
        """
        read, wires = {self.cells - 1}, []
        for cell in reversed(range(self.cells)):
            if cell in read:
                earliest = self.position if cell > self.position else STEM
                sources = (max(cell - 2, earliest), cell - 1)
                wires.append((cell, sources))
                read |= {sources[state] for state in inputs_read(self.edges(cell))}
        return wires[::-1]

    def graph(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """The cells and the network as (title, edges) with edges (source, target, operation), for drawing."""
        states = ["prev-prev", "prev", *(f"node {i + 1}" for i in range(len(NODES)))]

        def drawn(edges: Sequence[Edge]) -> list[tuple[str, str, str]]:
            wires = [(states[source], states[target], operation) for operation, source, target in edges]
            return wires + [(states[node], "out", "") for node in NODES]

        cells = [cell for cell, _ in self.wiring()]
        low, high = (sum(cells) for cells in ([c < self.position for c in cells], [c > self.position for c in cells]))
        chain = ["stem", *[f"{low} LR cells"] * (low > 0), "upsampling", *[f"{high} HR cells"] * (high > 0), "tail"]
        network = [(source, target, "") for source, target in zip(chain, chain[1:], strict=False)]
        return [("normal cell", drawn(self.normal)), ("upsampling cell", drawn(self.upsampling)), ("network", network)]

    @classmethod
    def from_dict(cls, data: dict) -> "Genotype":
        """The genotype that a file of ours holds, from its JSON data; raises InputError for anything else."""
        try:
            return cls(data["normal"], data["upsampling"], data["position"], data["cells"])
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no HNAS genotype, it lacks or spoils {error}") from None

    def __str__(self) -> str:
        def short(edges: Sequence[Edge]) -> str:
            names = [f"{brief(operation)}({source})" for operation, source, _ in edges]
            return " ".join(f"[{' '.join(names[i : i + 2])}]" for i in range(0, len(names), EDGES_PER_NODE))

        at = f"{self.position} of {self.cells}"
        return f"normal {short(self.normal)}, upsampling at {at} {short(self.upsampling)}"


def inputs_read(edges: Sequence[Edge]) -> list[int]:
    """Which of the cell's inputs, the states 0 and 1, its edges read.

    >>> inputs_read(HNAS_A.normal), inputs_read([("skip_connect", 1, 2), ("skip_connect", 2, 3)])
    ([0, 1], [1])
    """
    return sorted({source for _, source, _ in edges if source < NODES[0]})


def _checked(kind: str, edges: Any, known: Mapping[str, Any]) -> tuple[Edge, ...]:
    """The edges of a cell as tuples; raises InputError."""
    count = EDGES_PER_NODE * len(NODES)
    if not isinstance(edges, list | tuple) or len(edges) != count:
        raise InputError(f"the genotype's {kind} edges are {edges!r}; give {count} of (operation, from, to)")
    for i, edge in enumerate(edges):
        node = NODES[i // EDGES_PER_NODE]
        if not isinstance(edge, list | tuple) or [type(part) for part in edge] != [str, int, int]:
            raise InputError(f"edge {i} of the genotype's {kind} cell is {edge!r}; give (operation, from, to)")
        operation, source, target = edge
        if target != node or not 0 <= source < node:
            raise InputError(
                f"edge {i} of the genotype's {kind} cell is {edge!r}; it leads to node {node} from a state of 0 to "
                f"{node - 1}"
            )
        if kind == "normal":
            candidate(operation, known)
        elif operation not in known:
            raise InputError(f"unknown upsampling operation {operation!r}; known: {', '.join(known)}")
    return tuple(map(tuple, edges))


# Those of the paper; B and C stand in its code.
HNAS_A = Genotype(
    normal=[
        ("skip_connect", 1, 2),
        ("sep_conv_5x5", 1, 2),
        ("dil_conv_3x3", 0, 3),
        ("dil_conv_5x5", 1, 3),
        ("skip_connect", 1, 4),
        ("dil_conv_3x3", 1, 4),
        ("dil_conv_5x5", 1, 5),
        ("sep_conv_3x3", 4, 5),
    ],
    upsampling=[
        ("deconvolution", 0, 2),
        ("bilinear", 0, 2),
        ("area", 1, 3),
        ("deconvolution", 0, 3),
        ("area", 3, 4),
        ("bilinear", 0, 4),
        ("bilinear", 1, 5),
        ("deconvolution", 3, 5),
    ],
    position=9,
)
HNAS_B = Genotype(
    normal=[
        ("dil_conv_3x3", 0, 2),
        ("rcab", 1, 2),
        ("dil_conv_5x5", 0, 3),
        ("sep_conv_5x5", 1, 3),
        ("sep_conv_3x3", 1, 4),
        ("dil_conv_3x3", 0, 4),
        ("sep_conv_3x3", 2, 5),
        ("dil_conv_5x5", 3, 5),
    ],
    upsampling=[
        ("sub_pixel", 1, 2),
        ("bilinear", 1, 2),
        ("bilinear", 1, 3),
        ("sub_pixel", 0, 3),
        ("sub_pixel", 3, 4),
        ("sub_pixel", 3, 4),
        ("deconvolution", 0, 5),
        ("nearest", 1, 5),
    ],
    position=11,
)
HNAS_C = Genotype(
    normal=[
        ("rcab", 1, 2),
        ("skip_connect", 1, 2),
        ("dil_conv_3x3", 1, 3),
        ("skip_connect", 0, 3),
        ("dil_conv_5x5", 0, 4),
        ("rcab", 3, 4),
        ("dil_conv_5x5", 4, 5),
        ("dil_conv_3x3", 0, 5),
    ],
    upsampling=[
        ("sub_pixel", 0, 2),
        ("nearest", 1, 2),
        ("deconvolution", 2, 3),
        ("nearest", 0, 3),
        ("deconvolution", 3, 4),
        ("sub_pixel", 2, 4),
        ("bilinear", 0, 5),
        ("area", 0, 5),
    ],
    position=11,
)


def random_genotype(seed: int, candidates: Sequence[str] = tuple(NORMAL), cells: int = 12) -> Genotype:
    """A genotype of which every decision is drawn uniformly, as by a controller that has learned nothing.

    The peer that a search has to beat. Of its operations the space holds several copies: area is nearest, and between
    nodes of the upsampling cell, where nothing is left to enlarge, all but the deconvolution do nothing.

    Args:
        seed: of the draw.
        candidates: names of the operations in the normal cell.
        cells: of the network.

    >>> random_genotype(0) == random_genotype(0), random_genotype(1, cells=4).cells
    (True, 4)
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def cell(names: Sequence[str]) -> list[Edge]:
        targets = [node for node in NODES for _ in range(EDGES_PER_NODE)]
        return [(names[draw(len(names))], draw(target), target) for target in targets]

    return Genotype(cell(list(candidates)), cell(list(UPSAMPLING)), draw(cells), cells)
