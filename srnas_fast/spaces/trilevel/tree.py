"""The network level: where cells and ups stand, as a tree of all orders in which they can, or as a lattice.

A node is what has been computed after some cells and ups. From each node one can apply a cell, or an up. Its name is
the path that leads to it: 0 for a cell, 1 for an up, stem cells included.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Step:
    """A way into a node: from which, whether by an up or by a cell, and the name of that up or cell."""

    source: str
    up: bool
    module: str


@dataclass(frozen=True)
class Node:
    """What has been computed after ``layer`` cells and ``level`` ups, and the steps that lead there."""

    name: str
    layer: int
    level: int
    steps: tuple[Step, ...]


class Tree:
    """All orders of cells and ups: each node has one way in, and cells and ups belong to their node.

    The root stands behind the stem's cells. Nodes come depth first, cells before ups: a node comes before those that
    follow from it.

    Args:
        cells: in the longest path, stem included.
        searched: of these, those whose place is searched; the others are the stem.
        ups: in the longest path.

    Source: code that descends from TrilevelNAS (arXiv 2101.06658).

    >>> tree = Tree(cells=5, searched=4, ups=2)
    >>> len(tree.nodes), len(tree.cells), len(tree.ups), len(tree.paths())
    (55, 35, 20, 15)
    >>> [node.name for node in tree.nodes[:6]], tree.parents[:8]
    (['0', '00', '000', '0000', '00000', '000001'], [-1, 0, 1, 2, 3, 4, 5, 3])
    """

    def __init__(self, cells: int, searched: int, ups: int):
        self.layers, self.levels = cells, ups
        self.stem = ["0" * (k + 1) for k in range(cells - searched)]
        self.nodes = self._nodes()

    def _nodes(self) -> list[Node]:
        nodes: list[Node] = []

        def add(name: str, layer: int, level: int, steps: tuple[Step, ...]) -> None:
            nodes.append(Node(name, layer, level, steps))
            for up, (further, higher) in enumerate([(layer + 1, level), (layer, level + 1)]):
                if further <= self.layers and higher <= self.levels:
                    child = f"{name}{up}"
                    add(child, further, higher, (Step(name, bool(up), child),))

        add(self.stem[-1], len(self.stem), 0, ())
        return nodes

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each node."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def cells(self) -> dict[str, int]:
        """The names of all cells, in order, and the level at which each runs."""
        levels = dict.fromkeys(self.stem, 0)
        for node in self.nodes:
            levels |= {step.module: node.level for step in node.steps if not step.up}
        return levels

    @cached_property
    def ups(self) -> dict[str, int]:
        """The names of all ups, in order, and the level to which each leads."""
        return {step.module: node.level for node in self.nodes for step in node.steps if step.up}

    @property
    def parents(self) -> list[int]:
        """The number of each node's parent, -1 for the root."""
        return [self.index[node.steps[0].source] if node.steps else -1 for node in self.nodes]

    @cached_property
    def forks(self) -> list[Node]:
        """The nodes with more than one way in: none of a tree."""
        return [node for node in self.nodes if len(node.steps) > 1]

    def paths(self) -> list[list[str]]:
        """The complete paths, from the root to the leaves, as names of nodes."""
        read = {step.source for node in self.nodes for step in node.steps}
        found: dict[str, list[list[str]]] = {}
        for node in self.nodes:
            before = [path for step in node.steps for path in found[step.source]] or [[]]
            found[node.name] = [[*path, node.name] for path in before]
        return [path for node in self.nodes if node.name not in read for path in found[node.name]]

    def exits(self, at_full_level: bool) -> list[bool]:
        """At which nodes a network may end: all, or those behind all ups.

        >>> sum(Tree(5, 4, 2).exits(at_full_level=True))
        35
        """
        return [not at_full_level or node.level == self.levels for node in self.nodes]

    def alive(self, exits: Sequence[bool], steps: Collection[tuple[str, int]] | None = None) -> set[str]:
        """The nodes that a living exit hangs on.

        Args:
            exits: which nodes are living exits.
            steps: (node, number) of the steps into forks that are alive; None: all.

        >>> sorted(Tree(3, 2, 1).alive([node == "001" for node in Tree(3, 2, 1).index]))
        ['0', '00', '001']
        """
        needed = {node.name for node, alive in zip(self.nodes, exits, strict=True) if alive}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed |= {step.source for step in self.living(node, steps)}
        return needed

    def living(self, node: Node, steps: Collection[tuple[str, int]] | None) -> list[Step]:
        """The steps into a node that are alive."""
        if steps is None or len(node.steps) < 2:
            return list(node.steps)
        return [step for i, step in enumerate(node.steps) if (node.name, i) in steps]


class Lattice(Tree):
    """One node for each number of cells and of ups, whatever their order: all orders share their cells and ups.

    Ours, not published: a fraction of the memory. A node with two ways in is their weighted sum; its name is that of
    the path with the ups last.

    >>> lattice = Lattice(cells=5, searched=4, ups=2)
    >>> len(lattice.nodes), len(lattice.cells), len(lattice.ups), len(lattice.paths()), len(lattice.forks)
    (15, 13, 10, 15, 8)
    """

    def _nodes(self) -> list[Node]:
        nodes = []
        for level in range(self.levels + 1):
            for layer in range(len(self.stem), self.layers + 1):
                name, steps = "0" * layer + "1" * level, []
                if layer > len(self.stem):
                    steps.append(Step("0" * (layer - 1) + "1" * level, False, name))
                if level:
                    steps.append(Step(name[:-1], True, name))
                nodes.append(Node(name, layer, level, tuple(steps)))
        return nodes
