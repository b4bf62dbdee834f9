"""The DLSR supernet: every operation at every position, every earlier cell before every cell."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.metrics.candidates import candidate_costs
from srnas_fast.mixed import MixedOp
from srnas_fast.simplex import masked_softmax, sparsestmax_tables
from srnas_fast.spaces.dlsr.genotype import FIRST_JOIN, Genotype, derive
from srnas_fast.spaces.dlsr.layers import POSITIONS, SCALES, SMALLEST, Cell, Head, Join, Tail, act
from srnas_fast.spaces.dlsr.operations import CANDIDATES, made
from srnas_fast.spaces.own import require_candidates, short_name
from srnas_fast.spaces.supernet import DifferentiableSupernet

MAPS = ("softmax", "sparsemax", "sparsestmax")
Support = tuple[list[list[bool]], list[list[bool]]]


@dataclass
class SupernetConfig:
    """The size of the supernet; the defaults are the paper's.

    Args:
        width: channels of the cells, from 4 up (paper: 48).
        cells: cells, from 3 up (paper: 6).
        scale: how many times larger the result is: 2, 3 or 4 (paper: 2).
        weights: the map from logits to architecture weights: softmax, sparsemax or sparsestmax (paper: softmax). With
            the sparse ones a candidate or input whose weight is zero is not run; with sparsestmax the search ends
            with one of each.
        candidates: names of the operations to choose from, and FILE.py:CLASS of your own, which take a number of
            channels and keep the shape (paper: all nine).
    """

    width: int = 48
    cells: int = 6
    scale: int = 2
    weights: str = "softmax"
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES))

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it takes

    def __post_init__(self):
        require_whole(self, "supernet.", width=4, cells=FIRST_JOIN, scale=2)
        for name, known in (("scale", SCALES), ("weights", MAPS)):
            if getattr(self, name) not in known:
                raise InputError(f"supernet.{name} is {getattr(self, name)!r}; known: {', '.join(map(str, known))}")
        require_candidates("supernet.candidates", self.candidates, CANDIDATES)


class Supernet(DifferentiableSupernet):
    """The supernet of DLSR.

    All cells share their architecture weights. From the third on a cell reads all earlier ones, each multiplied with
    its weight, joined by a 1x1 convolution.

    Args:
        config: its size.
        mixed_op: what stands at the positions; :class:`srnas_fast.mixed.PlainMixedOp` gives the supernet as one would
            write it in plain PyTorch, with the same ``state_dict``.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, H and W from 15 up, in; (N, 3, scale * H, scale * W) out, not
    clipped.
    ``alpha``: (3, candidates) logits of the operations; ``beta``: (cells - 2, cells - 1) logits of the inputs, row i
    those of cell i + 3, which has i + 2 of them: what stands behind is never read and stays 0.
    ``radius``: that of sparsestmax, a number or a tensor (); the other maps have none.
    ``forward(x, support=None)``: with what :meth:`support` returned, it need not look at the weights again.

    With a sparse map, candidates and inputs of zero weight do not run. Output and gradients are those of a supernet
    that runs them, exact zeros for their parameters included.

    Raises:
        InputError: images of another shape, or smaller.

    Source: DLSR, arXiv 2105.03939.

    >>> net = Supernet(SupernetConfig(width=4, cells=4))
    >>> net.alpha.shape, net.beta.shape
    (torch.Size([3, 9]), torch.Size([2, 3]))
    >>> net(torch.rand(1, 3, 15, 20)).shape
    torch.Size([1, 3, 30, 40])
    """

    def __init__(self, config: SupernetConfig, mixed_op: Callable[[Iterable[nn.Module]], nn.Module] = MixedOp):
        super().__init__()
        self.config = config
        width, joins = config.width, range(FIRST_JOIN - 1, config.cells)  # how many cells each join reads

        def mixed() -> nn.Module:
            return mixed_op([made(name, width) for name in config.candidates])

        self.head = Head(width)
        self.cells = nn.ModuleList(Cell([mixed() for _ in range(POSITIONS)], width) for _ in range(config.cells))
        self.joins = nn.ModuleList(Join([width] * inputs, width) for inputs in joins)
        self.tail = Tail(width, config.cells, config.scale)

        legal = torch.tensor([[column < inputs for column in range(config.cells - 1)] for inputs in joins])
        self.register_buffer("legal", legal, persistent=False)
        self.alpha = nn.Parameter(1e-3 * torch.randn(POSITIONS, len(config.candidates)))
        self.beta = nn.Parameter(1e-3 * torch.randn(legal.shape) * legal)
        self.choices = self.alpha.numel() + sum(joins)

    def architecture_parameters(self) -> list[nn.Parameter]:
        return [self.alpha, self.beta]

    def _weights(self, look: bool = True) -> tuple[Tensor, Tensor, Support | None]:
        """alpha and beta as weights, what a row of beta does not have weighing exactly nothing; which are not zero.

        The last a row of booleans for each row of alpha, and of beta; None where all are alive, and without a look,
        which waits for a GPU.
        """
        if self.config.weights == "softmax":
            return self.alpha.softmax(dim=-1), masked_softmax(self.beta, self.legal), None
        radius = self.radius if self.config.weights == "sparsestmax" else 0.0
        tables = [self.alpha, self.beta.masked_fill(~self.legal, -torch.inf)]
        (alpha, candidates), (beta, inputs) = sparsestmax_tables(tables, radius, look)
        return alpha, beta, (candidates, inputs) if look else None

    @torch.no_grad()
    def support(self) -> Support | None:
        """Which weights are not zero now: the rows of alpha, and those of beta; None of softmax: all.

        >>> Supernet(SupernetConfig(width=4, cells=4, weights="sparsemax")).support()[1]
        [[True, True, False], [True, True, True]]
        """
        return None if self.config.weights == "softmax" else self._weights()[2]

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        """A group for each position and each join."""
        alpha, beta, _ = self._weights()
        names = list(map(short_name, self.config.candidates))
        groups = {f"alpha, position {i + 1}": (names, row[None]) for i, row in enumerate(alpha)}
        for cell, row in enumerate(beta, FIRST_JOIN):
            groups[f"beta, cell {cell}"] = ([f"cell {j}" for j in range(1, cell)], row[None, : cell - 1])
        return groups

    def candidate_weights(self) -> Tensor:
        """The weights of the operations, a row for each position of the cell that all share: (3, candidates)."""
        return self._weights(look=False)[0]

    @staticmethod
    def candidate_costs(config: SupernetConfig, by: str) -> list[int]:
        """The cost of each candidate at that width: params, or madds for an input of 32 x 32 pixels.

        >>> Supernet.candidate_costs(SupernetConfig(), "params")
        [2304, 20736, 57600, 112896, 5472, 7008, 9312, 2736, 3504]
        """
        operations = [made(name, config.width) for name in config.candidates]
        return candidate_costs(operations, by, (1, config.width, 32, 32))

    @torch.no_grad()
    def sparsity(self) -> dict[str, float]:
        """For the log: the share of the candidates and inputs that are alive, and the radius; of softmax nothing.

        >>> Supernet(SupernetConfig(width=4, cells=3, weights="sparsestmax")).sparsity()
        {'live': 1.0, 'radius': 0.0}
        """
        if self.config.weights == "softmax":
            return {}
        live = sum(sum(row) for rows in self.support() for row in rows) / self.choices
        return {"live": live} | ({"radius": self.radius} if self.config.weights == "sparsestmax" else {})

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        alpha, beta, found = self._weights(look=support is None)
        operations, inputs = support or found or ([None] * len(alpha), [None] * len(beta))
        choices = list(zip(alpha, operations, strict=True))
        first = self.head(x)
        outputs: list[Tensor] = []
        for k, cell in enumerate(self.cells):
            join = k - FIRST_JOIN + 1
            if join < 0:
                read = outputs[-1] if outputs else first
            else:
                read = act(self.joins[join](outputs, beta[join], inputs[join]))
            outputs.append(cell(read, choices))
        return self.tail(first, outputs)

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete architecture: the operation of each position, and two inputs of each cell.

        Equal weights of a sparse map, such as the zeros beside a single input, are told apart by the softmax of their
        logits.
        """
        alpha, beta, support = self._weights()
        if support:
            alpha = alpha.double() + 1e-9 * self.alpha.double().softmax(-1)
            beta = beta.double() + 1e-9 * masked_softmax(self.beta.double(), self.legal)
        return derive(alpha, beta, self.config.candidates)
