"""What a DLSR search finds: the operations of the cell and each cell's inputs; how it is derived and stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.spaces.dlsr.layers import POSITIONS
from srnas_fast.spaces.dlsr.operations import CANDIDATES
from srnas_fast.spaces.own import brief, candidate, short_name

INPUTS_PER_CELL = 2
FIRST_JOIN = 3  # the first cell that has a choice of inputs: the second has one, the first the image's features


@dataclass(frozen=True)
class Genotype:
    """A derived architecture.

    Args:
        operations: at the three positions of every cell, each of the nine or ``FILE.py:CLASS`` of a loaded file.
        inputs: for each cell from the third on the two earlier cells it reads, numbered from 1, in the order in which
            its convolution takes them.

    Raises:
        InputError: not three known operations; no inputs; a cell that does not read two different earlier ones.

    >>> print(Genotype(["conv_1x1", "sep_conv_7x7", "sep_conv_5x5"], [(1, 2), (2, 3)]))
    conv1 sep7 sep5, B3(1,2) B4(2,3)
    """

    operations: Sequence[str]
    inputs: Sequence[tuple[int, int]]

    def __post_init__(self):
        if len(_entries(self.operations)) != POSITIONS:
            raise InputError(
                f"the genotype's operations are {self.operations}; it needs {POSITIONS} of {', '.join(CANDIDATES)}"
            )
        for name in self.operations:
            candidate(name, CANDIDATES)
        if not _entries(self.inputs):
            raise InputError(
                f"the genotype's inputs are {self.inputs}; cells from the third on need {INPUTS_PER_CELL} each"
            )
        for cell, pair in enumerate(self.inputs, FIRST_JOIN):
            sources = [j for j in _entries(pair) if type(j) is int and 1 <= j < cell]
            if len({*sources}) != INPUTS_PER_CELL or len(pair) != INPUTS_PER_CELL:
                raise InputError(
                    f"the inputs of cell {cell} of the genotype are {pair}; it reads {INPUTS_PER_CELL} different ones "
                    f"of the cells 1 to {cell - 1}"
                )
        object.__setattr__(self, "operations", tuple(self.operations))  # lists from JSON, too, make an equal genotype
        object.__setattr__(self, "inputs", tuple(map(tuple, self.inputs)))

    @property
    def cells(self) -> int:
        """Cells of the network."""
        return FIRST_JOIN - 1 + len(self.inputs)

    def graph(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """The cell and the network as (title, edges) with edges (source, target, operation), for drawing."""
        states = ["in", *(f"r{i + 1}" for i in range(POSITIONS))]
        cell = list(zip(states, states[1:], self.operations, strict=False)) + [(s, "join", "") for s in states]
        names = [f"cell {k + 1}" for k in range(self.cells)]
        wires = [("head", names[0], ""), (names[0], names[1], "")]
        wires += [(names[j - 1], names[k], "") for k, pair in enumerate(self.inputs, FIRST_JOIN - 1) for j in pair]
        wires += [(name, "tail", "") for name in ["head", *names]]
        return [("every cell", cell), ("network", wires)]

    @classmethod
    def from_dict(cls, data: dict) -> "Genotype":
        """The genotype that a file of ours holds, from its JSON data; raises InputError for anything else."""
        try:
            return cls(data["operations"], data["inputs"])
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no DLSR genotype, it lacks or spoils {error}") from None

    def __str__(self) -> str:
        operations = " ".join(map(brief, self.operations))
        inputs = " ".join(f"B{cell}({a},{b})" for cell, (a, b) in enumerate(self.inputs, FIRST_JOIN))
        return f"{operations}, {inputs}"


def _entries(value: object) -> Sequence:
    """Of a list or tuple; anything else has none."""
    return value if isinstance(value, list | tuple) else ()


# Those of the published checkpoints.
BETA21 = Genotype(["conv_1x1", "sep_conv_7x7", "sep_conv_5x5"], [(1, 2), (2, 3), (2, 4), (4, 5)])
BETA_PARA1 = Genotype(["sep_conv_3x3", "sep_conv_5x5", "sep_conv_5x5"], [(2, 1), (3, 2), (4, 3), (1, 3)])


def derive(alpha: Tensor, beta: Tensor, candidates: Sequence[str] = tuple(CANDIDATES)) -> Genotype:
    """The discrete architecture: at each position the operation that weighs most, for each cell its two best inputs.

    Args:
        alpha: (3, candidates) weights.
        beta: (cells - 2, cells - 1) weights; row i holds those of cell i + 3, of which it reads the first i + 2.
        candidates: the names of alpha's columns.

    >>> alpha = torch.eye(9)[[0, 6, 5]]
    >>> print(derive(alpha, torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.6, 0.3]])))
    conv1 sep7 sep5, B3(1,2) B4(2,3)
    """
    inputs = []
    for cell, row in enumerate(beta.tolist(), FIRST_JOIN):
        best = sorted(range(1, cell), key=lambda j, row=row: -row[j - 1])[:INPUTS_PER_CELL]
        inputs.append(tuple(sorted(best)))
    return Genotype([short_name(candidates[k]) for k in alpha.argmax(-1).tolist()], inputs)


def random_genotype(cells: int, seed: int, candidates: Sequence[str] = tuple(CANDIDATES)) -> Genotype:
    """A genotype drawn uniformly: any of the candidates at each position, any two inputs of each cell.

    The peer that a search has to beat.

    >>> random_genotype(6, seed=0) == random_genotype(6, seed=0)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(candidates), (POSITIONS,), generator=generator).tolist()
    operations = [short_name(candidates[k]) for k in drawn]
    inputs = []
    for cell in range(FIRST_JOIN, cells + 1):
        order = torch.randperm(cell - 1, generator=generator)[:INPUTS_PER_CELL]
        inputs.append(tuple((order + 1).sort().values.tolist()))
    return Genotype(operations, inputs)
