"""What a HiNAS search finds: the cells' edges and the path of widths; how it is derived and stored."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import index

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.spaces import own
from srnas_fast.spaces.hinas.candidates import OPERATIONS
from srnas_fast.spaces.hinas.operations import ACTIVATIONS, CANDIDATES

WIDTHS = (1.0, 1.5, 2.0)
INPUTS_PER_NODE = 2


@dataclass(frozen=True)
class Genotype:
    """A derived architecture.

    Args:
        cells: for each layer the edges ``(operation, input)``, two per node, node by node; input 0 is the output
            of the layer before the previous one, 1 that of the previous layer, 2 and up the earlier nodes. An
            operation of the user's own is named ``FILE.py:CLASS``, and its file must be loaded.
        path: for each layer the index of its width: x1, x1.5, x2.
        activation: of all candidate operations.
        layer2_reads: what layer 2 sees as the output before layer 1: stem2, as published, or stem1, as genotypes did
            that lack the field.

    Raises:
        InputError: an unknown operation or activation, an input that does not exist yet, a path that is of
            another length than ``cells`` or jumps over a width.

    >>> node = [("con_c_3x3", 0), ("sep_c_3x3", 1)]
    >>> print(Genotype(cells=[node, node], path=[0, 1]))
    x1 [con3(0) sep3(1)] x1.5 [con3(0) sep3(1)]
    """

    cells: list[list[tuple[str, int]]]
    path: list[int]
    activation: str = "leaky"
    layer2_reads: str = "stem2"

    def __post_init__(self):
        if self.layer2_reads not in ("stem1", "stem2"):
            raise InputError(f"layer2_reads is {self.layer2_reads!r} in the genotype; known: stem1, stem2")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {self.activation!r} in the genotype; known: {', '.join(ACTIVATIONS)}")
        if not self.cells or len(self.cells) != len(self.path):
            raise InputError(
                f"the genotype has {len(self.cells)} cells and a path of {len(self.path)} widths; both need one per "
                "layer"
            )
        for before, width in zip([0, *self.path], self.path, strict=False):
            if width not in range(len(WIDTHS)) or abs(width - before) > 1:
                raise InputError(
                    f"the genotype's path {self.path} is not possible: widths are 0, 1, 2, start beside 0 and change "
                    "by one step at most"
                )
        for layer, edges in enumerate(self.cells):
            if not edges or len(edges) % INPUTS_PER_NODE:
                raise InputError(
                    f"cell {layer + 1} of the genotype has {len(edges)} edges; every node takes {INPUTS_PER_NODE}"
                )
            for i, (operation, source) in enumerate(edges):
                own.candidate(operation, OPERATIONS)
                if source not in range(2 + i // INPUTS_PER_NODE):
                    raise InputError(
                        f"edge {i} of cell {layer + 1} of the genotype is {(operation, source)}; inputs of node "
                        f"{i // INPUTS_PER_NODE + 1} are below {2 + i // INPUTS_PER_NODE}"
                    )

    @property
    def nodes(self) -> int:
        """Nodes per cell."""
        return len(self.cells[0]) // INPUTS_PER_NODE

    def graph(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """The cells as (title, edges) with edges (source, target, operation), for drawing."""
        pictures = []
        for layer, (edges, width) in enumerate(zip(self.cells, self.path, strict=True)):
            names = ["prev-prev", "prev"] + [f"node {n + 1}" for n in range(len(edges) // INPUTS_PER_NODE)]
            drawn = [
                (names[source], names[2 + i // INPUTS_PER_NODE], operation)
                for i, (operation, source) in enumerate(edges)
            ]
            drawn += [(name, "out", "") for name in names[2:]]
            pictures.append((f"layer {layer + 1}, width x{WIDTHS[width]:g}", drawn))
        return pictures

    @classmethod
    def from_dict(cls, data: dict) -> "Genotype":
        """The genotype that a file of ours holds, from its JSON data; raises InputError for anything else.

        Where the data lack ``layer2_reads``, a line on stderr says once what that means.
        """
        try:
            cells = [[(operation, index(source)) for operation, source in cell] for cell in data["cells"]]
            path, activation = [index(width) for width in data["path"]], data.get("activation", "leaky")
            genotype = cls(cells, path, activation, data.get("layer2_reads", "stem1"))
            if "layer2_reads" not in data:
                _tell_of_stem1()
            return genotype
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(f"this is no HiNAS genotype, it lacks or spoils {error}") from None

    def __str__(self) -> str:
        return " ".join(
            f"x{WIDTHS[width]:g} [{' '.join(f'{own.brief(o)}({s})' for o, s in cell)}]"
            for cell, width in zip(self.cells, self.path, strict=True)
        )


def edges_of(nodes: int) -> list[tuple[int, int]]:
    """The edges of a cell as (source state, node), in the order of alpha's rows.

    >>> edges_of(2)
    [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]
    """
    return [(source, node) for node in range(nodes) for source in range(2 + node)]


def derive_cell(weights: Tensor, nodes: int, candidates: Sequence[str] = tuple(CANDIDATES)) -> list[tuple[str, int]]:
    """The discrete cell of one layer: each node keeps the two inputs whose best operation weighs most, that one first.

    ``none`` takes no part. Of equal inputs and of equal operations the first one wins.
    ``weights``: (edges, candidates), after softmax. Source: DARTS, section 2.4.

    >>> derive_cell(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), nodes=1, candidates=["none", "con", "sep"])
    [('sep', 1), ('con', 0)]
    """
    real = [k for k, name in enumerate(candidates) if name != "none"]
    best, choice = weights[:, real].max(dim=1)  # of equal ones the first
    cell = []
    for node in range(nodes):
        rows = [row for row, (_, target) in enumerate(edges_of(nodes)) if target == node]
        kept = sorted(rows, key=lambda row: -best[row].item())[:INPUTS_PER_NODE]
        cell += [(candidates[real[choice[row]]], edges_of(nodes)[row][0]) for row in kept]
    return cell


def derive_path(rows: list[dict[int, dict[int, float]]]) -> list[int]:
    """The most probable path of widths (Viterbi, maximal product), which starts at width 0.

    ``rows[l][h][g]`` is the weight of going from width h to width g into layer l, narrow before wide. Of equal paths to
    a width that from the narrower one is kept, and of equal ends the narrowest.

    >>> derive_path([{0: {0: 0.4, 1: 0.6}}, {0: {0: 1.0, 1: 0.0}, 1: {0: 0.3, 1: 0.3, 2: 0.4}}])
    [0, 0]
    """
    best = {0: (1.0, [])}
    for layer in rows:
        reached = {}
        for h, steps in layer.items():
            if h not in best:
                continue
            for g, weight in steps.items():
                score = best[h][0] * weight
                if g not in reached or score > reached[g][0]:
                    reached[g] = (score, [*best[h][1], g])
        best = dict(sorted(reached.items()))
    return max(best.values(), key=lambda item: item[0])[1]


def random_genotype(
    layers: int, nodes: int, seed: int, activation: str = "leaky", candidates: Sequence[str] = tuple(CANDIDATES)
) -> Genotype:
    """A genotype drawn uniformly: two distinct inputs per node, any operation but ``none``, any legal path.

    The peer that a search has to beat.

    >>> random_genotype(3, 4, seed=0) == random_genotype(3, 4, seed=0)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    operations = [name for name in candidates if name != "none"]

    def draw(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    cells, path = [], []
    for layer in range(layers):
        cell = []
        for node in range(nodes):
            inputs = torch.randperm(2 + node, generator=generator)[:INPUTS_PER_NODE].sort().values.tolist()
            cell += [(draw(operations), source) for source in inputs]
        cells.append(cell)
        before = path[-1] if path else 0
        path.append(draw([w for w in (before - 1, before, before + 1) if 0 <= w < min(len(WIDTHS), layer + 2)]))
    return Genotype(cells, path, activation)


@cache
def _tell_of_stem1() -> None:
    print(
        "srnas_fast: a genotype without layer2_reads, from before layer 2 read stem2 as published; its network reads "
        'stem1 as ever; for the published wiring write "layer2_reads": "stem2" into the file and train anew',
        file=sys.stderr,
    )
