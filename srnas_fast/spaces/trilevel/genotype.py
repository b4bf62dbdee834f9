"""What a TrilevelNAS search finds: a path of cells and ups, and of each cell its operations and widths."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from srnas_fast.errors import InputError
from srnas_fast.spaces.own import brief, candidate, short_name
from srnas_fast.spaces.trilevel.operations import CANDIDATES, WIDTHS
from srnas_fast.spaces.trilevel.tree import Tree

POSITIONS = 5  # of operations in a cell
VARIANTS = ("A", "B")


@dataclass(frozen=True)
class Genotype:
    """A derived architecture.

    Args:
        path: 0 for a cell, 1 for an up, in their order; stem cells stand first.
        operations: of each cell its five, each of the four or ``FILE.py:CLASS`` of a loaded file.
        widths: of each cell the widths between its operations, as numbers 0 to 4 for 3, 4, 5, 7 and 8 eighths of
            the full width, which the ends of a cell have.
        variant: A: an up enlarges, by 2 or by 3. B: an up is a convolution, and all enlarging is done at the end.

    Raises:
        InputError: a path that does not begin with a cell; not five known operations and four widths for each cell.

    >>> print(B1)
    B 000: [dwsblock 1 skip 1 dwsblock 0 dwsblock 2 dwsblock] [dwsblock 0 skip 3 conv3x3 0 dwsblock 0
    conv3x3] [residual 4 skip 0 skip 0 skip 0 skip]
    """

    path: str
    operations: Sequence[Sequence[str]]
    widths: Sequence[Sequence[int]]
    variant: str = "B"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise InputError(f"the genotype's variant is {self.variant!r}; known: {', '.join(VARIANTS)}")
        if not isinstance(self.path, str) or {*self.path} - {"0", "1"} or not self.path.startswith("0"):
            raise InputError(
                f"the genotype's path is {self.path!r}; give 0 for each cell and 1 for each up, a cell first, as '0010'"
            )
        cells = self.path.count("0")
        for name, wanted in (("operations", POSITIONS), ("widths", POSITIONS - 1)):
            rows = getattr(self, name)
            if len(_entries(rows)) != cells or not all(len(_entries(row)) == wanted for row in rows):
                raise InputError(f"the genotype's {name} are {rows!r}; its {cells} cells need {wanted} each")
            object.__setattr__(self, name, tuple(map(tuple, rows)))  # lists from JSON, too, make an equal genotype
        for row in self.operations:
            for operation in row:
                candidate(operation, CANDIDATES)
        for row in self.widths:
            if not all(type(width) is int and width in range(len(WIDTHS)) for width in row):
                raise InputError(f"the genotype has widths {list(row)} in a cell; give numbers 0 to {len(WIDTHS) - 1}")

    @property
    def cells(self) -> int:
        """Cells of the network."""
        return len(self.operations)

    def channels(self, cell: int, width: int) -> list[tuple[int, int]]:
        """Channels before and after each operation of a cell, of a network of that full width.

        >>> B1.channels(0, 64)
        [(64, 32), (32, 32), (32, 24), (24, 40), (40, 64)]
        """
        ends = [width, *(WIDTHS[index] * width // 8 for index in self.widths[cell]), width]
        return list(zip(ends, ends[1:], strict=False))

    def graph(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """The path and the cells as (title, edges) with edges (source, target, operation), for drawing."""
        names, cells, ups = ["image"], 0, 0
        for step in self.path:
            cells, ups = cells + (step == "0"), ups + (step == "1")
            names.append(f"cell {cells}" if step == "0" else f"up {ups}")
        names.append("pixels")
        pictures = [("path", [(a, b, "") for a, b in zip(names, names[1:], strict=False)])]
        for k, (operations, widths) in enumerate(zip(self.operations, self.widths, strict=True), 1):
            states = ["in", *(f"{i}: {WIDTHS[width]}/8" for i, width in enumerate(widths, 1)), "out"]
            chain = list(zip(states, states[1:], operations, strict=False))
            pictures.append((f"cell {k}", [*chain, ("in", "out", "")]))
        return pictures

    @classmethod
    def from_dict(cls, data: dict) -> "Genotype":
        """The genotype that a file of ours holds, from its JSON data; raises InputError for anything else."""
        try:
            return cls(data["path"], data["operations"], data["widths"], data["variant"])
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no TrilevelNAS genotype, it lacks or spoils {error}") from None

    def __str__(self) -> str:
        cells = []
        for operations, widths in zip(self.operations, self.widths, strict=True):
            words = [f"{brief(name)} {width}" for name, width in zip(operations, [*widths, ""], strict=True)]
            cells.append(f"[{' '.join(words).rstrip()}]")
        return f"{self.variant} {self.path}: {' '.join(cells)}"


def _entries(value: object) -> Sequence:
    """Of a list or tuple; anything else has none."""
    return value if isinstance(value, list | tuple) else ()


_OPS = tuple(CANDIDATES)

# The only published architecture whose every choice is known.
B1 = Genotype(
    path="000",
    operations=[[_OPS[k] for k in row] for row in ([3, 0, 3, 3, 3], [3, 0, 1, 3, 1], [2, 0, 0, 0, 0])],
    widths=[[1, 1, 0, 2], [0, 3, 0, 0], [4, 0, 0, 0]],
)


def random_genotype(tree: Tree, variant: str, seed: int, candidates: Sequence[str] = _OPS) -> Genotype:
    """A genotype drawn uniformly: any exit of the tree (of a lattice: and any path to it), operations and widths.

    The peer that a search has to beat.

    >>> tree = Tree(5, 4, 2)
    >>> random_genotype(tree, "A", seed=0) == random_genotype(tree, "A", seed=0)
    True
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    exits = [node for node, legal in zip(tree.nodes, tree.exits(variant == "A"), strict=True) if legal]
    node, path = exits[draw(len(exits))], ""
    while node.steps:
        step = node.steps[draw(len(node.steps)) if len(node.steps) > 1 else 0]
        node, path = tree.nodes[tree.index[step.source]], f"{int(step.up)}{path}"
    path = tree.stem[-1] + path
    names = list(map(short_name, candidates))
    cells = range(path.count("0"))
    operations = [[names[draw(len(names))] for _ in range(POSITIONS)] for _ in cells]
    widths = [[draw(len(WIDTHS)) for _ in range(POSITIONS - 1)] for _ in cells]
    return Genotype(path, operations, widths, variant)
