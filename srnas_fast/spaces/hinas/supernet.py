"""The HiNAS supernet for denoising: every cell, every width, every candidate, in one network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.mixed import MixedOp
from srnas_fast.simplex import masked_softmax
from srnas_fast.spaces.hinas.genotype import WIDTHS, Genotype, derive_cell, derive_path, edges_of
from srnas_fast.spaces.hinas.operations import ACTIVATIONS, CANDIDATES, SpatialPyramid, conv_bn

STEM = 64
ILLEGAL_LOGIT = -50.0


@dataclass
class SupernetConfig:
    """The size of the supernet; the defaults are the paper's for denoising.

    Args:
        filters: channels of the narrowest cells; the wider ones have 1.5 and 2 times as many (paper: 10).
        layers: layers of cells (paper: 3).
        nodes: nodes in a cell (paper: 4).
        activation: of the candidate operations: leaky, relu, prelu or sine (paper: leaky).
    """

    filters: int = 10
    layers: int = 3
    nodes: int = 4
    activation: str = "leaky"

    def __post_init__(self):
        require_whole(self, "supernet.", filters=2, layers=1, nodes=1)
        if self.activation not in ACTIVATIONS:
            raise InputError(f"supernet.activation is {self.activation!r}; known: {', '.join(ACTIVATIONS)}")

    def widths(self, layer: int) -> int:
        """How many widths layer ``layer`` (1-based; 0 is the stem) has."""
        return min(len(WIDTHS), layer + 1)


class Cell(nn.Module):
    """A directed acyclic graph whose every edge is a mixed operation; output: all nodes, concatenated.

    Shapes: (N, C, H, W) twice in, (N, nodes * C, H, W) out; ``weights``: (edges, candidates).
    """

    def __init__(
        self, channels: int, nodes: int, activation: str, mixed_op: Callable[[Iterable[nn.Module]], nn.Module]
    ):
        super().__init__()
        self.nodes = nodes
        self.edges = nn.ModuleList(
            mixed_op([make(channels, activation, False) for make in CANDIDATES.values()]) for _ in edges_of(nodes)
        )

    def forward(self, before_previous: Tensor, previous: Tensor, weights: Tensor) -> Tensor:
        states = [before_previous, previous]
        edge = 0
        for _ in range(self.nodes):
            total = None
            for state in states.copy():
                part = self.edges[edge](state, weights[edge])
                total = part if total is None else total + part
                edge += 1
            states.append(total)
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """The denoising supernet of HiNAS.

    Cells of one layer share their architecture weights, layers do not; one cell per layer and width serves all
    the paths that lead to it, whose outputs arrive through 1x1 routers weighted by beta.

    Args:
        config: its size.
        mixed_op: what stands on the edges; :class:`srnas_fast.mixed.PlainMixedOp` gives the supernet as one would
            write it in plain PyTorch, with the same ``state_dict``.

    Shapes: noisy gray images (N, 1, H, W) on the [0, 1] scale in, restored ones in (0, 1) out.
    ``alpha``: (layers, edges, candidates) logits of the operations; ``beta``: (routers, 3) logits of the
    widths, one row per router, layer by layer and narrow to wide: to the narrower, the same, the wider width.

    Source: HiNAS, arXiv 1909.08228, sections 3.1 and 3.2, and arXiv 2012.13212.

    >>> net = Supernet(SupernetConfig(filters=2, layers=2, nodes=1))
    >>> net.alpha.shape, net.beta.shape
    (torch.Size([2, 2, 7]), torch.Size([3, 3]))
    >>> net(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(self, config: SupernetConfig, mixed_op: Callable[[Iterable[nn.Module]], nn.Module] = MixedOp):
        super().__init__()
        self.config = config
        act = ACTIVATIONS[config.activation]
        channels = [int(config.filters * width) for width in WIDTHS]
        outputs = [config.nodes * c for c in channels]

        self.stem1 = nn.Sequential(*conv_bn(1, STEM, 3, affine=False), act())
        self.stem2 = nn.Sequential(act(), *conv_bn(STEM, outputs[0], 3, affine=False))
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
                nn.ModuleList(Cell(channels[w], config.nodes, config.activation, mixed_op) for w in range(here))
            )

        f = outputs[0]
        self.pyramids = nn.ModuleList(
            SpatialPyramid(c, f, f, [16], config.activation, affine=False)
            for c in outputs[: config.widths(config.layers)]
        )
        wide = f * len(self.pyramids)
        self.head = nn.Sequential(*conv_bn(wide, wide, 3, affine=False), act(), nn.Conv2d(wide, 1, 3, padding=1))

        self.alpha = nn.Parameter(torch.ones(config.layers, len(edges_of(config.nodes)), len(CANDIDATES)))
        legal = torch.zeros(rows, 3, dtype=torch.bool)
        for steps in self.steps:
            for row, targets in steps.values():
                legal[row, list(targets.values())] = True
        self.register_buffer("legal", legal, persistent=False)
        self.beta = nn.Parameter(torch.where(legal, 1.0, ILLEGAL_LOGIT))

    def architecture_parameters(self) -> list[nn.Parameter]:
        """The logits that the search learns on held-out data."""
        return [self.alpha, self.beta]

    def network_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        architecture = {id(p) for p in self.architecture_parameters()}
        return [p for p in self.parameters() if id(p) not in architecture]

    def _weights(self) -> tuple[Tensor, Tensor]:
        """alpha and beta as weights; illegal moves weigh exactly nothing."""
        return self.alpha.softmax(dim=-1), masked_softmax(self.beta, self.legal)

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        """For each group its column labels and its weights (rows, columns) after softmax."""
        alpha, beta = self._weights()
        groups = {f"alpha, layer {i + 1}": (list(CANDIDATES), rows) for i, rows in enumerate(alpha)}
        return groups | {"beta": (["narrower", "same", "wider"], beta)}

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self._weights()
        stem = self.stem1(x)
        hidden = {0: self.stem2(stem)}
        earlier = {0: self.reduce1(stem)}
        for layer, steps in enumerate(self.steps):
            inputs: dict[int, Tensor] = {}
            for h, (row, targets) in steps.items():
                for g, column in targets.items():
                    part = beta[row, column] * self.routers[layer][str(h)][str(g)](hidden[h])
                    inputs[g] = inputs[g] + part if g in inputs else part
            for g in inputs.keys() - earlier.keys():
                earlier[g] = self.upsamplers[str(g)](earlier[g - 1])
            hidden = {g: self.cells[layer][g](earlier[g], s, alpha[layer]) for g, s in sorted(inputs.items())}
            earlier = inputs
        features = torch.cat([pyramid(hidden[g]) for g, pyramid in enumerate(self.pyramids)], dim=1)
        return torch.sigmoid(x - self.head(features))

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete architecture: two inputs per node with their best operation, and the likeliest path."""
        alpha, beta = self._weights()
        cells = [derive_cell(rows, self.config.nodes) for rows in alpha]
        moves = [
            {h: {g: beta[row, column].item() for g, column in targets.items()} for h, (row, targets) in steps.items()}
            for steps in self.steps
        ]
        return Genotype(cells, derive_path(moves), self.config.activation)
