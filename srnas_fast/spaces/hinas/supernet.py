"""The HiNAS supernet for denoising: every cell, every width, every candidate, in one network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.mixed import MixedOp
from srnas_fast.simplex import masked_softmax, sparsestmax_tables
from srnas_fast.spaces.hinas.genotype import WIDTHS, Genotype, derive_cell, derive_path, edges_of
from srnas_fast.spaces.hinas.operations import ACTIVATIONS, CANDIDATES, SpatialPyramid, conv_bn

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
    """

    filters: int = 10
    layers: int = 3
    nodes: int = 4
    activation: str = "leaky"
    weights: str = "softmax"

    def __post_init__(self):
        require_whole(self, "supernet.", filters=2, layers=1, nodes=1)
        for field, known in (("activation", ACTIVATIONS), ("weights", MAPS)):
            if getattr(self, field) not in known:
                raise InputError(f"supernet.{field} is {getattr(self, field)!r}; known: {', '.join(known)}")

    def widths(self, layer: int) -> int:
        """How many widths layer ``layer`` (1-based; 0 is the stem) has."""
        return min(len(WIDTHS), layer + 1)


class Cell(nn.Module):
    """A directed acyclic graph whose every edge is a mixed operation; output: all nodes, concatenated.

    Shapes: (N, C, H, W) twice in, (N, nodes * C, H, W) out; ``weights``: (edges, candidates); ``support``: which
    candidates are alive, a row of booleans for each edge, or None if all are.
    """

    def __init__(
        self, channels: int, nodes: int, activation: str, mixed_op: Callable[[Iterable[nn.Module]], nn.Module]
    ):
        super().__init__()
        self.nodes = nodes
        self.edges = nn.ModuleList(
            mixed_op([make(channels, activation, False) for make in CANDIDATES.values()]) for _ in edges_of(nodes)
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


class _Idle(torch.autograd.Function):
    """The tensor as it is, and gradients of exact zero for the parameters of modules that did not run."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return dx, *(torch.zeros_like(parameter) if asked else None for parameter, asked in wanted)


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
    ``radius``: that of sparsestmax, 0 at first; a search sets it before each step, as a number or a tensor (). The
    other maps have none.
    ``forward(x, support=None)``: with what :meth:`support` returned, it need not look at the weights again.

    With a sparse map, candidates and routers of zero weight do not run. Output and gradients are those of a supernet
    that runs them, exact zeros for their parameters included; their batch norms' running statistics stay as they are.

    Source: HiNAS, arXiv 1909.08228, sections 3.1 and 3.2, and arXiv 2012.13212.

    >>> net = Supernet(SupernetConfig(filters=2, layers=2, nodes=1))
    >>> net.alpha.shape, net.beta.shape
    (torch.Size([2, 2, 7]), torch.Size([3, 3]))
    >>> net(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(self, config: SupernetConfig, mixed_op: Callable[[Iterable[nn.Module]], nn.Module] = MixedOp):
        super().__init__()
        self.config, self.radius = config, 0.0
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
        self.choices = self.alpha.numel() + sum(len(targets) for steps in self.steps for _, targets in steps.values())

    def architecture_parameters(self) -> list[nn.Parameter]:
        """The logits that the search learns on held-out data."""
        return [self.alpha, self.beta]

    def network_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        architecture = {id(p) for p in self.architecture_parameters()}
        return [p for p in self.parameters() if id(p) not in architecture]

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
        groups = {f"alpha, layer {i + 1}": (list(CANDIDATES), rows) for i, rows in enumerate(alpha)}
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
            idle: dict[int, list[nn.Parameter]] = {}
            for h, (row, targets) in steps.items():
                for g, column in targets.items():
                    router = self.routers[layer][str(h)][str(g)]
                    if support and not support[len(self.alpha) * edges + row][column]:
                        idle.setdefault(g, []).extend(router.parameters())
                        continue
                    part = beta[row, column] * router(hidden[h])
                    inputs[g] = inputs[g] + part if g in inputs else part
            for g in (inputs.keys() | idle.keys()) - earlier.keys():
                earlier[g] = self.upsamplers[str(g)](earlier[g - 1])
            for g, parameters in idle.items():
                inputs[g] = _Idle.apply(inputs[g] if g in inputs else torch.zeros_like(earlier[g]), *parameters)
            alive = support and support[layer * edges : (layer + 1) * edges]
            hidden = {g: self.cells[layer][g](earlier[g], s, alpha[layer], alive) for g, s in sorted(inputs.items())}
            earlier = inputs
        features = torch.cat([pyramid(hidden[g]) for g, pyramid in enumerate(self.pyramids)], dim=1)
        return torch.sigmoid(x - self.head(features))

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete architecture: two inputs per node with their best operation, and the likeliest path.

        Equal weights of a sparse map, such as zeros beside ``none`` or the ones of several inputs, are told apart by
        the softmax of their logits.
        """
        alpha, beta, support = self._weights()
        if support:
            alpha = alpha.double() + 1e-9 * self.alpha.double().softmax(-1)
        cells = [derive_cell(rows, self.config.nodes) for rows in alpha]
        moves = [
            {h: {g: beta[row, column].item() for g, column in targets.items()} for h, (row, targets) in steps.items()}
            for steps in self.steps
        ]
        return Genotype(cells, derive_path(moves), self.config.activation)
