"""The plainest search space, as a base for one's own: an operation to choose for each edge, all from one list."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.supernet import DifferentiableSupernet


@dataclass(frozen=True)
class Choices:
    """A genotype that is the name of an operation for each edge; drawn as a chain.

    Args:
        operations: their names, edge by edge.

    >>> print(Choices(["conv", "skip"]))
    conv skip
    """

    operations: list[str]

    def graph(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """The chain as (title, edges) with edges (source, target, operation), for drawing.

        >>> Choices(["conv", "skip"]).graph()
        [('chain', [('x0', 'x1', 'conv'), ('x1', 'x2', 'skip')])]
        """
        return [("chain", [(f"x{i}", f"x{i + 1}", name) for i, name in enumerate(self.operations)])]

    @classmethod
    def from_dict(cls, data: dict, known: Iterable[str]) -> "Choices":
        """The genotype that a file of ours holds, from its JSON data.

        Args:
            data: what the file holds.
            known: the operations that there are.

        Raises:
            InputError: the data hold no list of operations, or one that is not known.

        >>> Choices.from_dict({"operations": ["conv", "dance"]}, ["conv", "skip"])
        Traceback (most recent call last):
        ...
        srnas_fast.errors.InputError: unknown operation 'dance' in the genotype; known: conv, skip
        """
        names, known = data.get("operations") if isinstance(data, dict) else None, list(known)
        if not isinstance(names, list) or not names:
            raise InputError('this genotype names no operations; it needs "operations", a list with one for each edge')
        for name in names:
            if name not in known:
                raise InputError(f"unknown operation {name!r} in the genotype; known: {', '.join(known)}")
        return cls(names)

    def __str__(self) -> str:
        return " ".join(self.operations)


class ChoiceSupernet(DifferentiableSupernet):
    """A supernet that chooses an operation for each edge, by a softmax; a class of one's own adds ``forward``.

    ``logits``: (edges, operations), nearly even at first.

    Args:
        edges: how many choices there are.
        operations: the names to choose from, such as the keys of a dictionary; one order for all edges.

    Raises:
        InputError: there is no edge, no operation, or a name stands twice.

    >>> net = ChoiceSupernet(3, ["conv", "skip"])
    >>> net.weights().shape
    torch.Size([3, 2])
    >>> with torch.no_grad():
    ...     net.logits[1, 1] = 5
    >>> net.genotype().operations[1]
    'skip'
    """

    def __init__(self, edges: int, operations: Iterable[str]):
        super().__init__()
        self.operations = list(operations)
        if edges < 1 or not self.operations or len(set(self.operations)) < len(self.operations):
            raise InputError(
                f"a supernet of {edges} edges and the operations {self.operations} has nothing to choose from; give "
                "edges from 1 up, and each operation once"
            )
        self.logits = nn.Parameter(1e-3 * torch.randn(edges, len(self.operations)))

    def weights(self) -> Tensor:
        """(edges, operations): a row of weights for each edge. What overrides it has its weights everywhere."""
        return self.logits.softmax(-1)

    def architecture_parameters(self) -> list[nn.Parameter]:
        return [self.logits]

    def architecture_weights(self) -> dict[str, tuple[list[str], Tensor]]:
        return {"edges": (self.operations, self.weights())}

    def genotype(self) -> Choices:
        """For each edge the operation of the largest weight; of equal ones the first."""
        return Choices([self.operations[best] for best in self.weights().argmax(-1).tolist()])


def random_choices(edges: int, operations: Iterable[str], seed: int) -> Choices:
    """A genotype drawn uniformly: the peer that a search has to beat.

    >>> random_choices(4, ["conv", "skip"], seed=0) == random_choices(4, ["conv", "skip"], seed=0)
    True
    """
    names, generator = list(operations), torch.Generator().manual_seed(seed)
    return Choices([names[k] for k in torch.randint(len(names), (edges,), generator=generator).tolist()])
