"""The TrilevelNAS supernet: every order of cells and ups, every operation and every width, in one network."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from srnas_fast.errors import InputError, require_number, require_whole
from srnas_fast.metrics import count_parameters
from srnas_fast.mixed import MixedOp
from srnas_fast.mixed.recomputed import recomputed
from srnas_fast.simplex import gumbel_softmax, sorted_sparsestmax, sparsestmax_tables
from srnas_fast.spaces.idle import idle
from srnas_fast.spaces.own import short_name
from srnas_fast.spaces.supernet import DifferentiableSupernet
from srnas_fast.spaces.trilevel.genotype import POSITIONS, Genotype
from srnas_fast.spaces.trilevel.layers import SMALLEST, Frame, added, factors, multi_adds_of, require_frame, up
from srnas_fast.spaces.trilevel.operations import (
    CANDIDATES,
    WIDTHS,
    channels_of,
    costs_of,
    made,
    narrowed,
    require_operations,
    require_width,
    supernet_form,
)
from srnas_fast.spaces.trilevel.tree import Lattice, Node, Tree

SPARSE = ("sparsemax", "sparsestmax")
MAPS = {
    "exit_weights": ("softmax", *SPARSE, "sorted"),
    "operation_weights": ("softmax", *SPARSE),
    "width_weights": ("softmax", *SPARSE, "gumbel"),
}
ORDERS = ("hinge", "telescoping")


@dataclass
class SupernetConfig:
    """The size of the supernet; the defaults are the paper's, or its published code's.

    Args:
        width: channels at the ends of a cell, a multiple of 8 (published: 64).
        cells: cells of the longest network, its stem included (published: 5).
        searched: of these, those whose place among the ups is searched; the others are the stem (published: 4).
        ups: of the longest network (published: 2). In variant A 1 at x2 and x3, 2 at x4.
        scale: how many times larger the result is: 2, 3 or 4 (published: 4).
        variant: A: ups enlarge, so that later cells run at a higher resolution, and only what is behind all ups can
            be the end. B: ups are convolutions, all enlarging is done at the end, and any node can be it. B is the
            default, as what has survived of the published code.
        lattice: whether all orders of as many cells and ups share their features and weights: 15 nodes instead of
            55. Ours, not published.
        exit_weights: the map from logits to the weights of the nodes at which networks end: softmax, sparsemax,
            sparsestmax (paper), or sorted: sparsestmax of logits that fall from the root on, which ends in the stem
            where the radius becomes 1.
        operation_weights: of the operations: softmax, sparsemax or sparsestmax (paper).
        width_weights: of the widths: sparsestmax, as the paper says of all three levels, or softmax, sparsemax, or
            gumbel, as its code: one is drawn for each step. The default decides by itself, which draws never do.
        order: weight of the order term in the loss of the architecture, which asks that no node weighs more than the
            one it follows from, so that short networks come first; 0 leaves it out (published: 1e-5 and less beside
            an error of images on the [0, 1] scale; the default leaves depth to the images).
        order_by: hinge: the weights' rise from node to node, summed. telescoping: as published, the logits' sum over
            all paths of child minus parent, of which only root and leaves remain.
        output: tanh: (tanh + 1) / 2 (published). plain: what the last convolution makes. added: that, added to the
            image enlarged bicubically, which is ours, and where the network starts.
        candidates: names of the operations to choose from, and FILE.py:CLASS of your own, which take a number of
            channels and keep the shape (paper: all four). Your own always compute at the full width.

    Raises:
        InputError: a value is out of its range, or does not go with another.
    """

    width: int = 64
    cells: int = 5
    searched: int = 4
    ups: int = 2
    scale: int = 4
    variant: str = "B"
    lattice: bool = False
    exit_weights: str = "sparsestmax"
    operation_weights: str = "sparsestmax"
    width_weights: str = "sparsestmax"
    order: float = 0.0
    order_by: str = "hinge"
    output: str = "tanh"
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES))

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it can learn from

    def __post_init__(self):
        require_whole(self, "supernet.", width=8, cells=1, searched=0, ups=0, scale=2)
        require_width("supernet.", self.width)
        require_frame("supernet.", self)
        require_number(self, "supernet.", above=[], least=["order"])
        for name, known in {**MAPS, "order_by": ORDERS}.items():
            if getattr(self, name) not in known:
                raise InputError(f"supernet.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.searched >= self.cells:
            raise InputError(f"supernet.searched is {self.searched} of {self.cells} cells; one at least is the stem")
        factors(self.variant, self.scale, self.ups)
        if self.exit_weights == "sorted" and (self.lattice or self.variant == "A"):
            raise InputError("supernet.exit_weights is sorted, which needs a tree of which every node can be the end")
        require_operations(self.candidates)

    @property
    def tree(self) -> Tree:
        """The orders of cells and ups."""
        return (Lattice if self.lattice else Tree)(self.cells, self.searched, self.ups)


class Support(NamedTuple):
    """What runs in a step, and is all that ``forward`` has to know beside the weights.

    ``exits``: of each node, whether its features are part of the result. ``routes``: of each fork of a lattice, which
    ways into it are alive. ``operations``: of each cell and position, which candidates are. ``widths``: of each cell
    the channels between its operations, those of the largest width that is alive. ``decided``: where no other width
    is. ``seed``: of the widths that were drawn; None: none were.
    """

    exits: list[bool]
    routes: list[list[bool]]
    operations: list[list[list[bool]]]
    widths: list[list[int]]
    decided: list[list[bool]]
    seed: int | None = None


class Weights(NamedTuple):
    """Of the nodes (nodes,), the ways into forks (forks, 2), candidates (cells, 5, K), widths (cells, 4, 5)."""

    exits: Tensor
    routes: Tensor
    operations: Tensor
    widths: Tensor


class _Scaled(torch.autograd.Function):
    """``y * factors`` by channel, of which the product is held, which others hold anyway, and y is not.

    The factors must be above 0.
    """

    @staticmethod
    def forward(ctx, y: Tensor, factors: Tensor) -> Tensor:
        by_channel = factors.to(y.dtype).view(1, -1, 1, 1)
        product = y * by_channel
        ctx.save_for_backward(product, factors)
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dproduct):
        product, factors = ctx.saved_tensors
        dy = dproduct * factors.to(product.dtype).view(1, -1, 1, 1) if ctx.needs_input_grad[0] else None
        dfactors = None
        if ctx.needs_input_grad[1]:
            dfactors = (dproduct * product).sum((0, 2, 3), dtype=factors.dtype) / factors
        return dy, dfactors


def _plainly_scaled(y: Tensor, factors: Tensor) -> Tensor:
    return y * factors.view(1, -1, 1, 1)


class SearchCell(nn.Module):
    """Five mixed operations, one after the other, added to their input: (N, C, H, W) in and out.

    Each is made of candidates of full width, of whose kernels the first channels make the narrower ones.

    ``forward(x, weights, support, widths, shares, scores)``: ``weights``, ``support``: (5, K), of the candidates;
    ``widths``: the four numbers of channels between them; ``shares``: for each what these channels are multiplied with,
    or None for 1. ``scores``: four tensors () whose value is 1, through which a draw of the widths learns; or None.
    """

    def __init__(self, width: int, candidates: Sequence[str], mixed_op: Callable[[Iterable[nn.Module]], nn.Module]):
        super().__init__()
        self.width, self.candidates = width, candidates
        form = supernet_form(width)
        self.positions = nn.ModuleList(
            mixed_op([made(name, width, width, form, width) for name in candidates]) for _ in range(POSITIONS)
        )
        self._scaled = _Scaled.apply if mixed_op is MixedOp else _plainly_scaled

    def forward(
        self,
        x: Tensor,
        weights: Tensor,
        support: Sequence[Sequence[bool]],
        widths: Sequence[int],
        shares: Sequence[Tensor | None],
        scores: Tensor | None,
    ) -> Tensor:
        y = x
        for p, position in enumerate(self.positions):
            outputs = widths[p] if p < len(widths) else self.width
            share = shares[p] if p < len(widths) else None
            score = None
            if scores is not None:
                around = [scores[i] for i in (p - 1, p) if 0 <= i < len(widths)]
                score = around[0] if len(around) == 1 else around[0] * around[1]
            kernels = {}
            for k, name in enumerate(self.candidates):
                narrow = narrowed(name, position.ops[k], y.shape[1], outputs, share)
                kernels |= {f"ops.{k}.{place}": kernel for place, kernel in narrow.items()}
            given = (y, weights[p], support[p], score)
            y = functional_call(position, kernels, given) if kernels else position(*given)
            if share is not None:
                y = self._scaled(y, share)
        return added(x, y)


def _held(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


class Supernet(DifferentiableSupernet):
    """The supernet of TrilevelNAS.

    The result is made of ``sum over nodes of weight * features``: a node's weight is that of the networks that end
    there. A kernel of undecided width is the weighted sum of its slices, each filled up with zeros.

    Args:
        config: its size.
        mixed_op: what stands at the positions; :class:`srnas_fast.mixed.PlainMixedOp` gives the supernet as one would
            write it in plain PyTorch, with the same ``state_dict``.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, in; (N, 3, scale * H, scale * W) out, in (0, 1) after tanh,
    else not clipped.
    ``gamma``: (nodes,) logits of the exits; ``alpha``: (cells, 5, candidates) of the operations; ``ratio``: (cells, 4,
    5) of the widths; of a lattice ``routes``: (forks, 2) of the ways into a node, by a cell and by an up.
    ``radius``: that of sparsestmax, a number or a tensor (); the other maps have none. That of routes is 2 radius - 1.
    ``forward(x, support=None)``: with what :meth:`support` returned, it need not look at the weights again.

    What only exits of zero weight need is not computed, candidates of zero weight are not, and no channel beyond the
    largest width that is alive. Output and gradients are those of a supernet that computes all, exact zeros for the
    parameters of what did not run included.

    With ``MixedOp`` it holds the inputs of mixed operations, and of ups.

    Raises:
        InputError: images of another shape; a candidate of the user's own that fails, or changes its input or the
            shape of it.

    Source: TrilevelNAS, arXiv 2101.06658, and code that descends from it.

    >>> net = Supernet(SupernetConfig(width=8, cells=3, searched=2, ups=1))
    >>> net.gamma.shape, net.alpha.shape, net.ratio.shape
    (torch.Size([9]), torch.Size([6, 5, 4]), torch.Size([6, 4, 5]))
    >>> net(torch.rand(1, 3, 6, 5)).shape
    torch.Size([1, 3, 24, 20])
    """

    def __init__(self, config: SupernetConfig, mixed_op: Callable[[Iterable[nn.Module]], nn.Module] = MixedOp):
        super().__init__()
        self.config, self.tree = config, config.tree
        self._run = recomputed if mixed_op is MixedOp and config.variant == "A" else _held
        enlarges, width = factors(config.variant, config.scale, config.ups), config.width
        self.frame = Frame(width, config.variant, config.scale, config.output)
        self.cells = nn.ModuleDict({name: SearchCell(width, config.candidates, mixed_op) for name in self.tree.cells})
        self.ups = nn.ModuleDict(
            {name: up(width, config.variant, enlarges[level - 1]) for name, level in self.tree.ups.items()}
        )
        exits = self.tree.exits(at_full_level=config.variant == "A")
        self.register_buffer("exits", torch.tensor(exits), persistent=False)
        cells, channels = len(self.cells), torch.tensor(channels_of(width))
        # Which channels each width has: weights of the widths times this are the shares of the channels.
        self.register_buffer("members", torch.arange(width) < channels[:, None], persistent=False)
        # Of the order term: (parent, child) of all steps between exits; how often a node ends a path less begins one.
        index = self.tree.index
        steps = [(index[step.source], index[node.name]) for node in self.tree.nodes for step in node.steps]
        rises = [pair for pair in steps if exits[pair[0]] and exits[pair[1]]]
        self.register_buffer("rises", torch.tensor(rises, dtype=torch.long).view(-1, 2).T, persistent=False)
        telescope = torch.zeros(len(exits))
        for path in self.tree.paths():
            telescope[index[path[-1]]] += 1
            telescope[index[path[0]]] -= 1
        self.register_buffer("telescope", telescope, persistent=False)
        self._known_costs: dict[str, tuple] = {}
        self._tables: dict[tuple, Tensor] = {}

        self.gamma = nn.Parameter(torch.full((len(exits),), 0.3))
        self.alpha = nn.Parameter(torch.full((cells, POSITIONS, len(config.candidates)), 1e-3))
        self.ratio = nn.Parameter(1e-3 * torch.randn(cells, POSITIONS - 1, len(WIDTHS)))
        self.routes = nn.Parameter(torch.zeros(len(self.tree.forks), 2)) if config.lattice else None
        self.choices = sum(exits) + self.alpha.numel() + 2 * len(self.tree.forks)
        if config.width_weights in SPARSE:
            self.choices += self.ratio.numel()

    def architecture_parameters(self) -> list[nn.Parameter]:
        logits = [self.gamma, self.alpha, self.ratio]
        return logits if self.routes is None else [*logits, self.routes]

    # From logits to weights

    def _weights(self, look: bool = True) -> tuple[Weights, list[list[list[bool]]] | None]:
        """All logits as weights, and of the four tables which entries are not zero; None without a look.

        Widths that are drawn weigh what they are drawn with.
        """
        config = self.config
        # A tree has no routes: an empty table, in one call with others.
        routes, of_routes = self.gamma.new_zeros(0, 2), config.operation_weights
        if self.routes is not None:
            routes, of_routes = self.routes, config.exit_weights
        tables = [
            (self.gamma.masked_fill(~self.exits, -torch.inf)[None], config.exit_weights),
            (routes, "late" if of_routes == "sparsestmax" and self.routes is not None else of_routes),
            (self.alpha.flatten(0, 1), config.operation_weights),
            (self.ratio.flatten(0, 1), config.width_weights),
        ]
        # Any radius above 0 freezes a choice between two, so that of the routes grows in the second half only.
        late = 2 * self.radius - 1
        late = late.clamp(min=0.0) if isinstance(late, Tensor) else max(late, 0.0)
        radii = {"sparsemax": 0.0, "sparsestmax": self.radius, "late": late}
        found: dict[int, tuple[Tensor, list[list[bool]] | None]] = {}
        for kind in dict.fromkeys(kind for _, kind in tables):
            mine = [i for i, (_, other) in enumerate(tables) if other == kind]
            if kind in radii:
                projected = sparsestmax_tables([tables[i][0] for i in mine], radii[kind], look)
                found |= dict(zip(mine, projected, strict=True))
            elif kind == "sorted":
                weights, alive = sorted_sparsestmax(self.gamma[None], self.tree.parents, self.radius, True)
                found[0] = weights, alive.tolist() if look else None
            else:
                for i in mine:
                    legal = self._legal if i == 0 else [[True] * tables[i][0].shape[1]] * tables[i][0].shape[0]
                    found[i] = tables[i][0].softmax(-1), legal
        exits, routes, operations, widths = (found[i][0] for i in range(len(tables)))
        weights = Weights(exits[0], routes, operations.view_as(self.alpha), widths.view_as(self.ratio))
        return weights, [found[i][1] for i in range(len(tables))] if look else None

    @cached_property
    def _legal(self) -> list[list[bool]]:
        return [self.tree.exits(at_full_level=self.config.variant == "A")]

    def _drawn(self, seed: int | None) -> Tensor:
        """One width of each position, drawn by a seed, or the likeliest: one-hot (cells, 4, 5), with a gradient."""
        if seed is None:
            soft = self.ratio.softmax(-1)
            hard = torch.zeros_like(soft).scatter(-1, soft.detach().argmax(-1, keepdim=True), 1.0)
            return hard + (soft - soft.detach())
        generator = torch.Generator(self.ratio.device).manual_seed(seed)
        return gumbel_softmax(self.ratio.log_softmax(-1), hard=True, generator=generator)

    @torch.no_grad()
    def support(self) -> Support:
        """What runs now. Where widths are drawn, they are drawn here, in training mode; else they are the likeliest.

        >>> net = Supernet(SupernetConfig(width=8, cells=2, searched=1, ups=1))
        >>> net.radius = 1.0
        >>> support = net.support()
        >>> sum(support.exits), [sum(row) for row in support.operations[0]]
        (1, [1, 1, 1, 1, 1])
        """
        _, (exits, routes, operations, widths) = self._weights()
        seed, channels, count = None, channels_of(self.config.width), len(self.cells)
        if self.config.width_weights == "gumbel":
            if self.training:
                seed = int(torch.randint(2**62, ()))
            widths = (self._drawn(seed) > 0).flatten(0, 1).tolist()
        largest = [max(c for c, alive in zip(channels, row, strict=True) if alive) for row in widths]

        def by_cell(rows: list, each: int) -> list[list]:
            return [rows[i * each : (i + 1) * each] for i in range(count)]

        return Support(
            exits[0],
            routes,
            by_cell(operations, POSITIONS),
            by_cell(largest, POSITIONS - 1),
            by_cell([sum(row) == 1 for row in widths], POSITIONS - 1),
            seed,
        )

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        """A group for the nodes where networks can end, one for all operations, one for all widths, one for routes."""
        weights, _ = self._weights(look=False)
        legal = self._legal[0]
        names = [node.name for node, is_exit in zip(self.tree.nodes, legal, strict=True) if is_exit]
        groups = {
            "exits": (names, weights.exits[self.exits][None]),
            "operations": (list(map(short_name, self.config.candidates)), weights.operations.flatten(0, 1)),
            "widths": (list(map(str, channels_of(self.config.width))), weights.widths.flatten(0, 1)),
        }
        return groups | ({"routes": (["cell", "up"], weights.routes)} if self.tree.forks else {})

    def _alive_nodes(self, support: Support) -> tuple[set[str], set[tuple[str, int]]]:
        """The nodes that are computed, and the steps into forks that are alive."""
        steps = {
            (node.name, i)
            for node, row in zip(self.tree.forks, support.routes, strict=True)
            for i, alive in enumerate(row)
            if alive
        }
        return self.tree.alive(support.exits, steps), steps

    def running(self, support: Support) -> tuple[list[str], list[str]]:
        """The cells and the ups that run, by their names."""
        nodes, steps = self._alive_nodes(support)
        taken = [step for node in self.tree.nodes if node.name in nodes for step in self.tree.living(node, steps)]
        cells = [*self.tree.stem, *(step.module for step in taken if not step.up)]
        return cells, [step.module for step in taken if step.up]

    @torch.no_grad()
    def sparsity(self) -> dict[str, float]:
        """For the log: the share of all choices that are alive, of the cells that run, and the radius.

        >>> Supernet(SupernetConfig(width=8, cells=2, searched=1, ups=1)).sparsity()
        {'live': 1.0, 'live_cells': 1.0, 'radius': 0.0}
        """
        _, (exits, routes, operations, widths) = self._weights()
        counted = [exits, routes, operations, *([widths] if self.config.width_weights in SPARSE else [])]
        count = sum(sum(row) for table in counted for row in table)
        cells, _ = self.running(Support(exits[0], routes, [], [], []))
        return {"live": count / self.choices, "live_cells": len(cells) / len(self.cells), "radius": self.radius}

    # The network

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        support = support or self.support()
        weights, _ = self._weights(look=False)
        nodes, steps = self._alive_nodes(support)
        shares: list[list[Tensor | None]] = [[None] * (POSITIONS - 1)] * len(self.cells)
        scores = None
        if self.config.width_weights == "gumbel":
            drawn = self._drawn(support.seed)
            scores = (drawn * (drawn.detach() > 0)).sum(-1)
        else:
            table = (weights.widths[..., None] * self.members).sum(-2)
            shares = [
                [None if decided else row[:outputs] for row, decided, outputs in zip(*of_cell, strict=True)]
                for of_cell in zip(table, support.decided, support.widths, strict=True)
            ]
        rank = {name: i for i, name in enumerate(self.cells)}
        forks = {node.name: i for i, node in enumerate(self.tree.forks)}

        def cell(name: str, y: Tensor) -> Tensor:
            i = rank[name]
            return self.cells[name](
                y,
                weights.operations[i],
                support.operations[i],
                support.widths[i],
                shares[i],
                None if scores is None else scores[i],
            )

        def arrive(node: Node, held: dict[str, Tensor]) -> Tensor:
            total = None
            for i, step in enumerate(node.steps):
                if len(node.steps) > 1 and (node.name, i) not in steps:
                    continue
                source = held[step.source]
                part = self._run(self.ups[step.module], source) if step.up else cell(step.module, source)
                if len(node.steps) > 1:
                    part = weights.routes[forks[node.name], i] * part
                total = part if total is None else total + part
            return total

        alive = [node for node in self.tree.nodes if node.name in nodes]
        last = {step.source: node.name for node in alive for step in self.tree.living(node, steps)}
        features, held, total = self.frame.first(x), {}, None
        for name in self.tree.stem:
            features = cell(name, features)
        for node in alive:
            if node.steps:
                features = arrive(node, held)
            if support.exits[self.tree.index[node.name]]:
                weight = weights.exits[self.tree.index[node.name]]
                if sum(support.exits) == 1:  # whose weight is 1 and has no gradient
                    total = features
                else:
                    total = weight * features if total is None else torch.addcmul(total, features, weight)
            if node.name in last:
                held[node.name] = features
            for step in node.steps:
                if last.get(step.source) == node.name:
                    held.pop(step.source, None)
        cells, ups = self.running(support)
        unused = [module for name, module in self.cells.items() if name not in cells]
        unused += [module for name, module in self.ups.items() if name not in ups]
        # The logits, too: where all is decided, nothing has asked for their weights.
        total = idle(total, [*self.architecture_parameters(), *(p for module in unused for p in module.parameters())])
        return self.frame.result(total, x)

    # What is derived, and what it costs

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete architecture: the path to the node that weighs most, and of its cells what weighs most.

        Of sorted weights the node is the farthest that is alive. Equal weights of a sparse map are told apart by the
        softmax of their logits.
        """
        weights, alive = self._weights()
        tied = 1e-9 * self.gamma.double().masked_fill(~self.exits, -torch.inf).softmax(-1)
        scores = (weights.exits.double() + tied).tolist()
        if self.config.exit_weights == "sorted":
            scores = [
                len(node.name) + score if lives else 0.0
                for node, score, lives in zip(self.tree.nodes, scores, alive[0][0], strict=True)
            ]
        node = self.tree.nodes[max(range(len(scores)), key=scores.__getitem__)]
        forks = {fork.name: i for i, fork in enumerate(self.tree.forks)}
        path, cells = "", []
        while node.steps:
            step = node.steps[0]
            if node.name in forks:
                step = node.steps[int(weights.routes[forks[node.name]].argmax())]
            path = f"{int(step.up)}{path}"
            cells += [] if step.up else [step.module]
            node = self.tree.nodes[self.tree.index[step.source]]
        rank = {name: i for i, name in enumerate(self.cells)}
        rows = [rank[name] for name in [*self.tree.stem, *reversed(cells)]]

        def chosen(table: Tensor, logits: Tensor) -> list[list[int]]:
            return (table.double() + 1e-9 * logits.double().softmax(-1))[rows].argmax(-1).tolist()

        names = list(map(short_name, self.config.candidates))
        operations = [[names[k] for k in row] for row in chosen(weights.operations, self.alpha)]
        return Genotype(self.tree.stem[-1] + path, operations, chosen(weights.widths, self.ratio), self.config.variant)

    def cost(self, by: str = "madds") -> Tensor:
        """What the derived network is expected to cost, as a share of :meth:`largest_cost`, with a gradient.

        Exits, operations and widths are taken for independent draws by their weights; where all are decided, it is
        what the derived network costs.

        Args:
            by: params, or madds, which differ by the resolution that the cells of variant A run at.

        >>> net = Supernet(SupernetConfig(width=8, cells=2, searched=1, ups=0))
        >>> 0 < net.cost().item() < 1
        True
        """
        weights, _ = self._weights(look=False)
        fixed, per_up, per_cell, costs = self._costs(by)
        like, key = weights.operations, (by, weights.operations.dtype, weights.operations.device)
        if key not in self._tables:  # once: a copy from the CPU, which no CUDA graph can hold
            self._tables[key] = torch.as_tensor(costs, dtype=like.dtype, device=like.device)
        table = self._tables[key]
        ends = torch.zeros_like(weights.widths[:, :1])
        ends[..., -1] = 1.0
        before, after = (torch.cat(pair, 1) for pair in ((ends, weights.widths), (weights.widths, ends)))
        of_cells = torch.einsum("cpk,cpi,cpo,kio->c", weights.operations, before, after, table)
        rank = {name: i for i, name in enumerate(self.cells)}
        forks = {node.name: i for i, node in enumerate(self.tree.forks)}
        reached = dict(zip(self.tree.index, weights.exits.unbind(), strict=True))  # by how much weight each node is
        total = 0.0
        for node in reversed(self.tree.nodes):
            for i, step in enumerate(node.steps):
                mass = reached[node.name]
                if node.name in forks:
                    mass = mass * weights.routes[forks[node.name], i]
                own = per_up[step.module] if step.up else per_cell[step.module] * of_cells[rank[step.module]]
                total = total + mass * own
                reached[step.source] = reached[step.source] + mass
        for name in self.tree.stem:
            total = total + of_cells[rank[name]]
        return (total + fixed) / self.largest_cost(by)

    def largest_cost(self, by: str = "madds") -> int:
        """What the dearest derived network costs: parameters, or Multi-Adds for one pixel of its input.

        >>> Supernet(SupernetConfig(width=8, cells=2, searched=1, ups=0)).largest_cost()
        15192
        """
        fixed, per_up, per_cell, costs = self._costs(by)
        dearest = POSITIONS * max(max(max(row) for row in table) for table in costs)
        reached: dict[str, int] = {}
        for node in self.tree.nodes:
            before = [
                reached[step.source] + (per_up[step.module] if step.up else per_cell[step.module] * dearest)
                for step in node.steps
            ]
            reached[node.name] = max(before, default=len(self.tree.stem) * dearest)
        legal = self._legal[0]
        return fixed + max(cost for cost, is_exit in zip(reached.values(), legal, strict=True) if is_exit)

    def _costs(self, by: str) -> tuple[int, dict[str, int], dict[str, int], list[list[list[int]]]]:
        """The cost of both ends, of each up, how often the pixels of each cell count, and the candidates' costs."""
        config = self.config
        if by not in ("params", "madds"):
            raise InputError(f"costs by {by!r}; give params or madds")
        if by in self._known_costs:
            return self._known_costs[by]
        first, last, ups, pixels = multi_adds_of(config.width, config.variant, config.scale, config.ups)
        costs = [costs_of(name, config.width, by) for name in config.candidates]
        if by == "madds":
            ends, per_up = first + last, {name: ups[level - 1] for name, level in self.tree.ups.items()}
            per_cell = {name: pixels[level] for name, level in self.tree.cells.items()}
        else:
            ends = count_parameters(self.frame)
            per_up = {name: count_parameters(module) for name, module in self.ups.items()}
            per_cell = dict.fromkeys(self.tree.cells, 1)
        self._known_costs[by] = ends, per_up, per_cell, costs
        return self._known_costs[by]

    def penalty(self) -> Tensor | None:
        """The order term of the loss; None where its weight is 0."""
        if not self.config.order:
            return None
        if self.config.order_by == "telescoping":
            return self.config.order * (self.gamma * self.telescope).sum()
        weights, _ = self._weights(look=False)
        parents, children = self.rises
        return self.config.order * F.relu(weights.exits[children] - weights.exits[parents]).sum()
