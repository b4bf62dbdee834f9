"""What draws HNAS architectures: a recurrent network for each kind of decision."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.hnas.genotype import EDGES_PER_NODE, NODES, Edge, Genotype
from srnas_fast.spaces.hnas.operations import UPSAMPLING
from srnas_fast.spaces.hnas.supernet import SupernetConfig

HIDDEN = 100
RANGE = 0.1  # of the initial weights


class Drawn(NamedTuple):
    """A genotype, and of its normal cell, its upsampling cell and its position the sums over their decisions.

    ``log_probabilities``: of what was decided; ``entropies``: of the distributions it was drawn from. Both (3,), with a
    graph.
    """

    genotype: Genotype
    log_probabilities: Tensor
    entropies: Tensor


class Decisions:
    """Decides by logits and adds up what that says.

    Args:
        choose: the index, given the (n,) log-probabilities.

    >>> decide = Decisions(choose=lambda log_probabilities: 1)
    >>> decide(torch.zeros(4)), decide(torch.zeros(2)), round(decide.log_probability.exp().item(), 4)
    (1, 1, 0.125)
    """

    def __init__(self, choose: Callable[[Tensor], int]):
        self.choose, self.log_probability, self.entropy = choose, 0.0, 0.0

    def __call__(self, logits: Tensor) -> int:
        log_probabilities = logits.log_softmax(-1)
        chosen = self.choose(log_probabilities.detach())
        self.log_probability = self.log_probability + log_probabilities[chosen]
        self.entropy = self.entropy - (log_probabilities.exp() * log_probabilities).sum()
        return chosen


class Pointer(nn.Module):
    """Logits of embedded things, given the hidden state: v . tanh(A e + B h), (n, 100) and (100,) in, (n,) out."""

    def __init__(self):
        super().__init__()
        self.of_rows = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.of_hidden = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.score = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, rows: Tensor, hidden: Tensor) -> Tensor:
        return self.score(torch.tanh(self.of_rows(rows) + self.of_hidden(hidden)))[:, 0]


class CellController(nn.Module):
    """Decides on a cell: for each node the states that its edges come from, then their operations.

    Each step reads what was decided in the one before.

    Args:
        names: of the operations.

    ``forward(decide)``: the edges, and the last hidden state (100,).
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.embedding = nn.Parameter(torch.empty(NODES[-1] + len(names), HIDDEN))  # of the states, the operations
        self.lstm = nn.LSTMCell(HIDDEN, HIDDEN)
        self.state = Pointer()
        self.operation = nn.Linear(HIDDEN, len(names))

    def forward(self, decide: Decisions) -> tuple[list[Edge], Tensor]:
        given = hidden = memory = self.embedding.new_zeros(HIDDEN)
        edges = []
        for node in NODES:
            sources, operations = [], []
            for _ in range(EDGES_PER_NODE):
                hidden, memory = self.lstm(given, (hidden, memory))
                sources.append(decide(self.state(self.embedding[:node], hidden)))
                given = self.embedding[sources[-1]]
            for _ in range(EDGES_PER_NODE):
                hidden, memory = self.lstm(given, (hidden, memory))
                operations.append(decide(self.operation(hidden)))
                given = self.embedding[NODES[-1] + operations[-1]]
            edges += [(self.names[k], source, node) for k, source in zip(operations, sources, strict=True)]
        return edges, hidden


class PositionController(nn.Module):
    """Decides which cell upsamples: ``forward(seen, decide)``, with (200,) of the cells' last hidden states."""

    def __init__(self, cells: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(cells, HIDDEN))
        self.lstm = nn.LSTMCell(2 * HIDDEN, HIDDEN)
        self.position = Pointer()

    def forward(self, seen: Tensor, decide: Decisions) -> int:
        hidden, _ = self.lstm(seen)
        return decide(self.position(self.embedding, hidden))


class Controller(nn.Module):
    """The policy of HNAS, from which architectures are drawn and which learns by the rewards they get.

    It draws the normal cell, the upsampling cell, and, having seen how, the position. Nothing is ruled out: a node may
    have the same edge twice.

    Args:
        config: of the supernet: its candidates and the number of its cells.

    ``weights``: how much each of a :class:`Drawn`'s three parts counts in the policy gradient.

    Source: HNAS, arXiv 2003.04619, section 3.3; the recurrent network is that of ENAS, arXiv 1802.03268.

    >>> controller = Controller(SupernetConfig())
    >>> sum(p.numel() for p in controller.parameters())
    347111
    >>> drawn = controller.sample(torch.Generator().manual_seed(0))
    >>> drawn.genotype.cells, torch.equal(drawn.log_probabilities, controller.of(drawn.genotype).log_probabilities)
    (12, True)
    """

    weights = (1.0, 1.0, 10.0)

    def __init__(self, config: SupernetConfig):
        super().__init__()
        self.cells = config.cells
        self.normal = CellController(config.names)
        self.upsampling = CellController(list(UPSAMPLING))
        self.position = PositionController(config.cells)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -RANGE, RANGE)
        nn.init.zeros_(self.normal.operation.bias)  # of the upsampling, the published code leaves it as drawn

    def sample(self, generator: torch.Generator) -> Drawn:
        """A genotype drawn from the policy, a pure function of the weights and the generator, which is the CPU's."""

        def choose(log_probabilities: Tensor) -> int:
            return int(torch.multinomial(log_probabilities.exp().cpu(), 1, generator=generator))

        return self._drawn(choose)

    def of(self, genotype: Genotype) -> Drawn:
        """What :meth:`sample` gives when it draws that genotype; raises InputError for one that it cannot draw."""
        names = {name for name, _, _ in genotype.normal}
        if genotype.cells != self.cells or not names <= set(self.normal.names):
            raise InputError(
                f"a genotype of {genotype.cells} cells and {', '.join(sorted(names))}; this controller draws "
                f"{self.cells} cells and {', '.join(self.normal.names)}"
            )
        decided = iter(
            [
                *_decisions(genotype.normal, self.normal.names),
                *_decisions(genotype.upsampling, self.upsampling.names),
                genotype.position,
            ]
        )
        return self._drawn(lambda _: next(decided))

    def _drawn(self, choose: Callable[[Tensor], int]) -> Drawn:
        decisions = [Decisions(choose) for _ in self.weights]
        normal, after_normal = self.normal(decisions[0])
        upsampling, after_upsampling = self.upsampling(decisions[1])
        position = self.position(torch.cat([after_normal, after_upsampling]), decisions[2])
        return Drawn(
            Genotype(normal, upsampling, position, self.cells),
            torch.stack([made.log_probability for made in decisions]),
            torch.stack([made.entropy for made in decisions]),
        )


def _decisions(edges: Sequence[Edge], names: list[str]) -> list[int]:
    """A cell's edges in the order in which a controller decides on them."""
    decided = []
    for first in range(0, len(edges), EDGES_PER_NODE):
        pair = edges[first : first + EDGES_PER_NODE]
        decided += [source for _, source, _ in pair] + [names.index(operation) for operation, _, _ in pair]
    return decided
