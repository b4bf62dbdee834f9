"""The HiNAS supernet: every cell, every width, every candidate, in one network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.mixed import MixedOp
from srnas_fast.mixed.recomputed import recomputed
from srnas_fast.simplex import masked_softmax, sparsestmax_tables
from srnas_fast.spaces.hinas.candidates import make, names_of, require_operations
from srnas_fast.spaces.hinas.genotype import WIDTHS, Genotype, derive_cell, derive_path, edges_of
from srnas_fast.spaces.hinas.heads import SMALLEST, Denoise, Enlarge, require_scale
from srnas_fast.spaces.hinas.operations import ACTIVATIONS, CANDIDATES, SpatialPyramid, conv_bn, conv_bn_act
from srnas_fast.spaces.idle import idle
from srnas_fast.spaces.supernet import DifferentiableSupernet

STEM = 64
ILLEGAL_LOGIT = -50.0
MAPS = ("softmax", "sparsemax", "sparsestmax")


@dataclass
class SupernetConfig:
    """The size of the supernet; the defaults are the paper's for denoising.

    Args:
        filters: channels of the narrowest cells; the wider ones have 1.5 and 2 times as many (paper: 10).
        layers: layers of cells (paper: 3).
        nodes: nodes in a cell (paper: 4).
        activation: of the candidate operations: leaky, relu, prelu or sine (paper: leaky).
        weights: the map from logits to architecture weights: softmax, sparsemax or sparsestmax (paper: softmax). With
            the sparse ones a candidate or router whose weight is zero is not run; with sparsestmax the search ends
            with one of each.
        candidates: names of the candidate operations (paper: all seven); FILE.py:CLASS is one of your own, a module
            that is made of a number of channels and keeps the shape of its input.
    """

    filters: int = 10
    layers: int = 3
    nodes: int = 4
    activation: str = "leaky"
    weights: str = "softmax"
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES))

    def __post_init__(self):
        require_whole(self, "supernet.", filters=2, layers=1, nodes=1)
        require_operations(self.candidates)
        for name, known in (("activation", ACTIVATIONS), ("weights", MAPS)):
            if getattr(self, name) not in known:
                raise InputError(f"supernet.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")

    def widths(self, layer: int) -> int:
        """How many widths layer ``layer`` (1-based; 0 is the stem) has."""
        return min(len(WIDTHS), layer + 1)

    @property
    def finish(self) -> Denoise | Enlarge:
        """What becomes of the last features."""
        return Denoise(sigmoid=True)


@dataclass
class SuperResolutionSupernetConfig(SupernetConfig):
    """The size of the supernet; the defaults are the paper's for super-resolution.

    Args:
        filters: channels of the narrowest cells; the wider ones have 1.5 and 2 times as many (paper: 8).
        layers: layers of cells (paper: 2).
        nodes: nodes in a cell (paper: 3).
        activation: of the candidate operations: leaky, relu, prelu or sine (paper: leaky).
        weights: the map from logits to architecture weights: softmax, sparsemax or sparsestmax (paper: softmax). With
            the sparse ones a candidate or router whose weight is zero is not run; with sparsestmax the search ends
            with one of each.
        candidates: names of the candidate operations (paper: all seven); FILE.py:CLASS is one of your own, a module
            that is made of a number of channels and keeps the shape of its input.
        scale: how many times larger the result is: 2, 3 or 4 (paper: 4).
        sigmoid: whether the result goes through a sigmoid (paper: yes), whose inverse the network then has to learn.
            Without, it is the prediction added to the image enlarged bilinearly, and starts as that image.
    """

    filters: int = 8
    layers: int = 2
    nodes: int = 3
    scale: int = 4
    sigmoid: bool = True

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it can learn from

    def __post_init__(self):
        super().__post_init__()
        require_scale("supernet.", self.scale)

    @property
    def finish(self) -> Enlarge:
        return Enlarge(self.scale, "bilinear", self.sigmoid)


class Cell(nn.Module):
    """A directed acyclic graph whose every edge is a mixed operation; output: all nodes, concatenated.

    Shapes: (N, C, H, W) twice in, (N, nodes * C, H, W) out; ``weights``: (edges, candidates); ``support``: which
    candidates are alive, a row of booleans for each edge, or None if all are.
    """

    def __init__(
        self,
        channels: int,
        nodes: int,
        candidates: Iterable[str],
        activation: str,
        mixed_op: Callable[[Iterable[nn.Module]], nn.Module],
    ):
        super().__init__()
        self.nodes = nodes
        self.edges = nn.ModuleList(
            mixed_op([make(name, channels, activation, affine=False) for name in candidates]) for _ in edges_of(nodes)
        )

    def forward(
        self, before_previous: Tensor, previous: Tensor, weights: Tensor, support: list[list[bool]] | None = None
    ) -> Tensor:
        states = [before_previous, previous]
        edge = 0
        for _ in range(self.nodes):
            total = None
            for state in states.copy():
                part = self.edges[edge](state, weights[edge], support[edge] if support else None)
                total = part if total is None else total + part
                edge += 1
            states.append(total)
        return torch.cat(states[2:], dim=1)


def _held(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


class Supernet(DifferentiableSupernet):
    """The supernet of HiNAS, for denoising or super-resolution.

    Cells of one layer share their architecture weights, layers do not; one cell per layer and width serves all
    the paths that lead to it, whose outputs arrive through 1x1 routers weighted by beta.

    Args:
        config: its size; its type tells the task.
        mixed_op: what stands on the edges; :class:`srnas_fast.mixed.PlainMixedOp` gives the supernet as one would
            write it in plain PyTorch, with the same ``state_dict``.

    Shapes: noisy gray images (N, 1, H, W) on the [0, 1] scale in, restored ones in (0, 1) out; or RGB images
    (N, 3, H, W) in and (N, 3, scale * H, scale * W) out.
    ``alpha``: (layers, edges, candidates) logits of the operations; ``beta``: (routers, 3) logits of the
    widths, one row per router, layer by layer and narrow to wide: to the narrower, the same, the wider width.
    ``radius``: that of sparsestmax, 0 at first; a search sets it before each step, as a number or a tensor (). The
    other maps have none.
    ``forward(x, support=None)``: with what :meth:`support` returned, it need not look at the weights again.

    With a sparse map, candidates and routers of zero weight do not run. Output and gradients are those of a supernet
    that runs them, exact zeros for their parameters included; their batch norms' running statistics stay as they are.

    With ``MixedOp`` it holds the inputs of mixed operations and pyramids, which the backward pass computes again.

    Raises:
        InputError: a candidate of the user's own cannot be made, fails, or changes its input or the shape of it.

    Source: HiNAS, arXiv 1909.08228, sections 3.1 and 3.2, and arXiv 2012.13212.

    >>> net = Supernet(SupernetConfig(filters=2, layers=2, nodes=1))
    >>> net.alpha.shape, net.beta.shape
    (torch.Size([2, 2, 7]), torch.Size([3, 3]))
    >>> net(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 1, 16, 16])
    >>> Supernet(SuperResolutionSupernetConfig(filters=2, nodes=1, scale=3))(torch.rand(2, 3, 8, 9)).shape
    torch.Size([2, 3, 24, 27])
    """

    def __init__(self, config: SupernetConfig, mixed_op: Callable[[Iterable[nn.Module]], nn.Module] = MixedOp):
        super().__init__()
        self.config, self.finish = config, config.finish
        self._run = recomputed if mixed_op is MixedOp else _held
        self.candidates, activation = names_of(config.candidates), config.activation
        channels = [int(config.filters * width) for width in WIDTHS]
        outputs = [config.nodes * c for c in channels]

        self.stem1 = conv_bn_act(self.finish.colours, STEM, 3, activation, affine=False)
        # Not in place: reduce1 reads the same.
        self.stem2 = nn.Sequential(ACTIVATIONS[activation](), *conv_bn(STEM, outputs[0], 3, affine=False))
        self.reduce1 = conv_bn(STEM, channels[0], 3, affine=False)
        # A width that appears for the first time has no input from the layer before the previous one.
        self.upsamplers = nn.ModuleDict()
        self.routers, self.cells = nn.ModuleList(), nn.ModuleList()
        # steps[l][h]: the row of beta and the columns of the moves from width h into layer l
        self.steps: list[dict[int, tuple[int, dict[int, int]]]] = []
        rows, row = 0, 0
        for layer in range(1, config.layers + 1):
            here, before = config.widths(layer), config.widths(layer - 1)
            for width in range(before, here):
                self.upsamplers[str(width)] = conv_bn(channels[width - 1], channels[width], 1, affine=False)
            steps, routers = {}, nn.ModuleDict()
            for h in range(before):
                targets = {h + move: 1 + move for move in (-1, 0, 1) if 0 <= h + move < here}
                routers[str(h)] = nn.ModuleDict(
                    {str(g): conv_bn(outputs[h], channels[g], 1, affine=False) for g in targets}
                )
                steps[h] = (rows, targets)
                rows += 1
            self.steps.append(steps)
            self.routers.append(routers)
            self.cells.append(
                nn.ModuleList(
                    Cell(channels[w], config.nodes, self.candidates, activation, mixed_op) for w in range(here)
                )
            )

        f = outputs[0]
        self.pyramids = nn.ModuleList(
            SpatialPyramid(c, f, f, [16], activation, affine=False) for c in outputs[: config.widths(config.layers)]
        )
        wide = f * len(self.pyramids)
        self.head = nn.Sequential(
            *conv_bn_act(wide, wide, 3, activation, affine=False),
            nn.Conv2d(wide, self.finish.predictions, 3, padding=1),
        )
        if not self.finish.sigmoid:
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)

        self.alpha = nn.Parameter(torch.ones(config.layers, len(edges_of(config.nodes)), len(self.candidates)))
        legal = torch.zeros(rows, 3, dtype=torch.bool)
        for steps in self.steps:
            for row, targets in steps.values():
                legal[row, list(targets.values())] = True
        self.register_buffer("legal", legal, persistent=False)
        self.beta = nn.Parameter(torch.where(legal, 1.0, ILLEGAL_LOGIT))
        self.choices = self.alpha.numel() + sum(len(targets) for steps in self.steps for _, targets in steps.values())

    def architecture_parameters(self) -> list[nn.Parameter]:
        """The logits that the search learns on held-out data."""
        return [self.alpha, self.beta]

    def _weights(self, look: bool = True) -> tuple[Tensor, Tensor, list[list[bool]] | None]:
        """alpha and beta as weights, illegal moves weighing exactly nothing, and which of them are not zero.

        The last a row of booleans for each row of alpha, layer by layer, and then of beta; None where all are alive,
        and without a look, which waits for a GPU.
        """
        if self.config.weights == "softmax":
            return self.alpha.softmax(dim=-1), masked_softmax(self.beta, self.legal), None
        tables = [self.alpha.flatten(0, 1), self.beta.masked_fill(~self.legal, -torch.inf)]
        radius = self.radius if self.config.weights == "sparsestmax" else 0.0
        (alpha, candidates), (beta, moves) = sparsestmax_tables(tables, radius, look)
        return alpha.view_as(self.alpha), beta, candidates + moves if look else None

    @torch.no_grad()
    def support(self) -> list[list[bool]] | None:
        """Which weights are not zero now: a row for each of alpha, layer by layer, and of beta; None of softmax: all.

        >>> Supernet(SupernetConfig(filters=2, layers=1, nodes=1, weights="sparsemax")).support()[-1]
        [False, True, True]
        """
        return None if self.config.weights == "softmax" else self._weights()[2]

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        """For each group its column labels and its weights (rows, columns)."""
        alpha, beta, _ = self._weights()
        groups = {f"alpha, layer {i + 1}": (self.candidates, rows) for i, rows in enumerate(alpha)}
        return groups | {"beta": (["narrower", "same", "wider"], beta)}

    @torch.no_grad()
    def sparsity(self) -> dict[str, float]:
        """For the log: the share of the candidates and legal moves that are alive, and the radius; of softmax nothing.

        >>> Supernet(SupernetConfig(filters=2, layers=1, nodes=1, weights="sparsestmax")).sparsity()
        {'live': 1.0, 'radius': 0.0}
        """
        if self.config.weights == "softmax":
            return {}
        support = self.support()
        live = sum(map(sum, support)) / self.choices
        return {"live": live} | ({"radius": self.radius} if self.config.weights == "sparsestmax" else {})

    def forward(self, x: Tensor, support: list[list[bool]] | None = None) -> Tensor:
        alpha, beta, found = self._weights(look=support is None)
        support = support or found
        edges = self.alpha.shape[1]
        stem = self.stem1(x)
        hidden = {0: self.stem2(stem)}
        earlier = {0: self.reduce1(stem)}
        for layer, steps in enumerate(self.steps):
            inputs: dict[int, Tensor] = {}
            unused: dict[int, list[nn.Parameter]] = {}
            for h, (row, targets) in steps.items():
                for g, column in targets.items():
                    router = self.routers[layer][str(h)][str(g)]
                    if support and not support[len(self.alpha) * edges + row][column]:
                        unused.setdefault(g, []).extend(router.parameters())
                        continue
                    part = beta[row, column] * router(hidden[h])
                    inputs[g] = inputs[g] + part if g in inputs else part
            for g in (inputs.keys() | unused.keys()) - earlier.keys():
                earlier[g] = self.upsamplers[str(g)](earlier[g - 1])
            for g, parameters in unused.items():
                inputs[g] = idle(inputs[g] if g in inputs else torch.zeros_like(earlier[g]), parameters)
            alive = support and support[layer * edges : (layer + 1) * edges]
            hidden = {g: self.cells[layer][g](earlier[g], s, alpha[layer], alive) for g, s in sorted(inputs.items())}
            earlier = inputs
        features = torch.cat([self._run(pyramid, hidden[g]) for g, pyramid in enumerate(self.pyramids)], dim=1)
        return self.finish(x, self.head(features))

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete architecture: two inputs per node with their best operation, and the likeliest path.

        Equal weights of a sparse map, such as zeros beside ``none`` or the ones of several inputs, are told apart by
        the softmax of their logits.
        """
        alpha, beta, support = self._weights()
        if support:
            alpha = alpha.double() + 1e-9 * self.alpha.double().softmax(-1)
        cells = [derive_cell(rows, self.config.nodes, self.candidates) for rows in alpha]
        moves = [
            {h: {g: beta[row, column].item() for g, column in targets.items()} for h, (row, targets) in steps.items()}
            for steps in self.steps
        ]
        return Genotype(cells, derive_path(moves), self.config.activation)
