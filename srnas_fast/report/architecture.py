"""A derived architecture as a picture: one graph per cell, coloured by operation."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from srnas_fast.errors import InputError
from srnas_fast.files import replacing
from srnas_fast.report.colours import COLOURS

Edge = tuple[str, str, str]

# All lengths in inches: one unit of the axes is one inch of paper.
NODE_WIDTH, NODE_HEIGHT = 0.92, 0.32
ROW = 0.98  # from one node to the next below
LEVELS = np.arange(-3, 4) * 0.55  # where a node may stand, left to right
CELL_WIDTH = 2 * LEVELS[-1] + NODE_WIDTH + 0.4
LABEL_HEIGHT, LABEL_CHARACTER = 0.19, 0.077
PLAIN = "#b4b4b4"  # edges without an operation


def draw_architecture(cells: Sequence[tuple[str, Sequence[Edge]]], file: str | os.PathLike, title: str = "") -> None:
    """A PNG of a derived architecture: the cells side by side, each a graph that runs downwards.

    Args:
        cells: (title, edges) per cell, left to right; an edge is (source, target, label), e.g. ("prev", "node
            1", "sep_c_3x3"). Edges of one label have one colour in all cells; an empty label is a thin gray
            edge.
        file: the picture to write; replaced whole.
        title: the line on top.

    Raises:
        InputError: there is no cell, a cell has no edge, or its edges form a loop.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "architecture.png"
    >>> edges = [("prev", "node 1", "conv"), ("prev", "node 2", "skip"), ("node 1", "node 2", "conv")]
    >>> draw_architecture([("cell", edges)], file)
    >>> file.stat().st_size > 5_000
    True
    """
    if not cells:
        raise InputError("an architecture of no cells; give at least one (title, edges)")
    orders = [_order(name, edges) for name, edges in cells]
    labels = sorted({label for _, edges in cells for _, _, label in edges if label})
    colours = {label: COLOURS[position % len(COLOURS)] for position, label in enumerate(labels)}

    width = max(CELL_WIDTH * len(cells), 5)
    graph = (max(map(len, orders)) - 1) * ROW + 2 * NODE_HEIGHT
    legend_columns = max(1, int((width - 0.4) // 1.9))
    legend = 0.3 * -(-len(labels) // legend_columns)
    heads = (0.45 if title else 0.0, 0.35)  # title, titles of the cells
    height = sum(heads) + graph + legend + 0.3

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(-height, 0))
    axes.axis("off")
    if title:
        axes.text(width / 2, -0.3, title, ha="center", va="center", fontsize=14, weight="bold")
    for position, ((name, edges), order) in enumerate(zip(cells, orders, strict=True)):
        centre = width * (position + 0.5) / len(cells)
        top = -sum(heads)
        axes.text(centre, top + 0.17, name, ha="center", va="center", fontsize=11, weight="bold")
        if position:
            axes.plot([centre - width / len(cells) / 2] * 2, [top, top - graph], color="#e6e6e6", linewidth=1)
        _draw_cell(axes, edges, order, colours, centre, top - NODE_HEIGHT)
    if labels:
        handles = [Line2D([], [], color=colours[label], linewidth=3, label=label) for label in labels]
        axes.legend(
            handles=handles,
            ncols=min(legend_columns, len(labels)),
            loc="lower center",
            frameon=False,
            fontsize=10,
            bbox_to_anchor=(0.5, 0.0),
        )
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _order(title: str, edges: Sequence[Edge]) -> list[list[str]]:
    """The nodes in rows, every edge pointing down: the inputs, one inner node a row, the ends."""
    if not edges:
        raise InputError(f"cell {title} has no edges; give at least one (source, target, label)")
    nodes = list(dict.fromkeys(node for source, target, _ in edges for node in (source, target)))
    sources, targets = {source for source, _, _ in edges}, {target for _, target, _ in edges}
    rows = [[node for node in nodes if node not in targets]]
    placed = set(rows[0])
    inner = sorted(node for node in nodes if node in targets and node in sources)  # node 1, node 2, ...
    while inner:
        ready = [n for n in inner if all(source in placed for source, target, _ in edges if target == n)]
        if not ready:
            raise InputError(f"cell {title}: the edges of {', '.join(inner)} form a loop; give a graph without one")
        rows.append([ready[0]])
        placed.add(ready[0])
        inner.remove(ready[0])
    return rows + [[node for node in nodes if node in targets and node not in sources]]


def _spread(count: int, span: float) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * (span / max(1, count - 1) if count > 1 else 0)


class _Layout:
    """Places the nodes of one cell so that arrows keep off other nodes, and labels off everything."""

    def __init__(self, edges: Sequence[Edge], rows: list[list[str]]) -> None:
        self.edges = edges
        self.nodes = [node for row in rows for node in row]
        index = {node: position for position, node in enumerate(self.nodes)}
        self.source = np.array([index[source] for source, _, _ in edges])
        self.target = np.array([index[target] for _, target, _ in edges])
        self.y = np.array([-ROW * position for position, row in enumerate(rows) for _ in row])
        fixed = [_spread(len(row), min(2.2 * (len(row) - 1), CELL_WIDTH - 1.5)) for row in (rows[0], rows[-1])]
        self.inner = range(len(rows[0]), len(self.nodes) - len(rows[-1]))
        self.start = np.concatenate([fixed[0], np.zeros(len(self.inner)), fixed[1]])

    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x of the nodes, control points of the edges (E, 4, 2), centres of their labels (E, 2)."""
        generator = np.random.default_rng(0)
        candidates = []
        for _ in range(8):
            x = self.start.copy()
            x[self.inner] = generator.choice(LEVELS, len(self.inner))
            candidates.append(self._settled(x))
        labelled = [(*self._labels(x), x) for x in candidates]
        _, places, x = min(labelled, key=lambda item: item[0] + self._cost(item[2]))
        return x, self._controls(x), places

    def _settled(self, x: np.ndarray) -> np.ndarray:
        """Move one node at a time to its best level, until none moves."""
        cost = self._cost(x)
        for _ in range(6):
            before = cost
            for node in self.inner:
                for level in LEVELS:
                    other = x.copy()
                    other[node] = level
                    if (new := self._cost(other)) < cost - 1e-9:
                        x, cost = other, new
            if cost == before:
                break
        return x

    def _controls(self, x: np.ndarray) -> np.ndarray:
        """Cubic curves that leave a node downwards and arrive from above, side by side along its edge."""
        ends = np.zeros((2, len(self.edges)))
        for side, (here, there) in enumerate([(self.source, self.target), (self.target, self.source)]):
            for node in range(len(self.nodes)):
                at = np.flatnonzero(here == node)
                across, down = x[there[at]] - x[node], np.abs(self.y[there[at]] - self.y[node])
                at = at[np.lexsort((-down * np.sign(across), across))]  # of equals the nearer one outside
                ends[side, at] = x[node] + _spread(len(at), 0.6 * NODE_WIDTH)
        top, bottom = self.y[self.source] - NODE_HEIGHT / 2, self.y[self.target] + NODE_HEIGHT / 2
        bend = 0.45 * (top - bottom)
        points = [(ends[0], top), (ends[0], top - bend), (ends[1], bottom + bend), (ends[1], bottom)]
        return np.stack([np.stack(point, -1) for point in points], 1)

    def _cost(self, x: np.ndarray) -> float:
        points = _curve(self._controls(x), np.linspace(0.06, 0.94, 15))  # (E, 15, 2)
        # Arrows under nodes that are not theirs.
        away = np.abs(points[:, :, None] - np.stack([x, self.y], -1))  # (E, 15, nodes, 2)
        hit = (away[..., 0] < NODE_WIDTH / 2 + 0.1) & (away[..., 1] < NODE_HEIGHT / 2 + 0.06)
        every = np.arange(len(self.nodes))
        hit &= ((every != self.source[:, None]) & (every != self.target[:, None]))[:, None]
        # Arrows so close to each other that they cross or leave no room for labels.
        middle = points[:, 3:12]
        gap = np.abs(middle[:, None, :, None] - middle[None, :, None, :])
        near = ((gap[..., 0] < 0.3) & (gap[..., 1] < 0.1)).any((2, 3))
        bends = np.abs(x[self.source] - x[self.target]).sum()
        return 10 * hit.sum() + (near.sum() - len(self.edges)) + 0.35 * bends + 0.1 * abs(x[self.inner].sum())

    def _labels(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Total overlap and the centre of each label, each put on its arrow where it hides least."""
        controls = self._controls(x)
        everything = _curve(controls, np.linspace(0, 1, 40))
        coloured = np.array([bool(label) for _, _, label in self.edges])
        places = np.zeros((len(self.edges), 2))
        boxes = [(x[node], self.y[node], NODE_WIDTH, NODE_HEIGHT) for node in range(len(self.nodes))]
        total = 0.0
        # Short arrows have the least choice.
        for edge in np.argsort(controls[:, 0, 1] - controls[:, 3, 1], kind="stable"):
            label = self.edges[edge][2]
            if not label:
                continue
            size = np.array([LABEL_CHARACTER * len(label) + 0.1, LABEL_HEIGHT])
            others = everything[coloured & (np.arange(len(self.edges)) != edge)].reshape(-1, 2)
            best = np.inf
            for t in (0.5, 0.42, 0.58, 0.35, 0.65, 0.28, 0.72, 0.2, 0.8):
                centre = _curve(controls[edge], np.array([t]))[0]
                overlap = 0.3 * abs(t - 0.5) + 0.06 * (np.abs(others - centre) < size / 2 + 0.02).all(1).sum()
                for bx, by, width, height in boxes:
                    wide = (size[0] + width) / 2 + 0.04 - abs(centre[0] - bx)
                    high = (size[1] + height) / 2 + 0.04 - abs(centre[1] - by)
                    overlap += 100 * max(0.0, wide) * max(0.0, high)
                if overlap < best:
                    best, places[edge] = overlap, centre
            total += best
            boxes.append((*places[edge], *size))
        return total, places


def _curve(controls: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points of cubic Bezier curves: (..., 4, 2) control points at T parameters give (..., T, 2)."""
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], -1)
    return basis @ controls


def _draw_cell(
    axes: Axes,
    edges: Sequence[Edge],
    rows: list[list[str]],
    colours: dict[str, str],
    centre: float,
    top: float,
) -> None:
    layout = _Layout(edges, rows)
    x, controls, places = layout.best()
    origin = np.array([centre, top])
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    for (_, _, label), points, place in zip(edges, controls + origin, places + origin, strict=True):
        colour = colours.get(label, PLAIN)
        axes.add_patch(
            FancyArrowPatch(
                path=Path(points, codes),
                arrowstyle="-|>",
                mutation_scale=13 if label else 9,
                linewidth=2.0 if label else 1.1,
                color=colour,
                shrinkA=0,
                shrinkB=0,
                zorder=2 if label else 1,
            )
        )
        if label:
            box = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8}
            axes.text(*place, label, ha="center", va="center", fontsize=8, color=colour, bbox=box, zorder=4)
    for position, (node, left, height) in enumerate(zip(layout.nodes, x, layout.y, strict=True)):
        end = position not in layout.inner
        corner = origin + (left - NODE_WIDTH / 2, height - NODE_HEIGHT / 2)
        axes.add_patch(
            FancyBboxPatch(
                corner,
                NODE_WIDTH,
                NODE_HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.1",
                facecolor="#e9eef5" if end else "#fff6df",
                edgecolor="#555555",
                linewidth=1.1,
                zorder=3,
            )
        )
        axes.text(*(origin + (left, height)), node, ha="center", va="center", fontsize=9, zorder=5)
