"""What a search algorithm is to the loop, the run's folder and the command line, and what it is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from srnas_fast.data import loader
from srnas_fast.errors import InputError
from srnas_fast.search.validation import validate
from srnas_fast.spaces import Space, Task
from srnas_fast.spaces.check import Trial


class Batches:
    """The batches of a stream by number; they are prepared ahead where the numbers follow one another.

    Args:
        stream: patches as a function of their number.
        data: has ``batch`` and ``workers``.
    """

    def __init__(self, stream: Dataset, data: Any):
        self._stream, self._data, self._next = stream, data, None

    def take(self, number: int, total: int) -> Sequence[Tensor]:
        """Batch ``number`` of ``total``: (input, target)."""
        if number != self._next:
            self._loader = iter(loader(self._stream, number, total, self._data.batch, self._data.workers))
        self._next = number + 1
        return next(self._loader)


@dataclass
class Problem:
    """What every algorithm is given.

    Args:
        space: the search space.
        config: of the supernet.
        supernet: with its first weights, not yet on the device.
        fabric: where it computes, and in which precision.
        loss: of (restored, target).
        task: measures.
        weights, architecture: batches of images that the weights and the architecture learn from.
        epoch_steps: batches in one pass over the images of the weights.
        held_out: (input, target) pairs that nothing learns from, on the [0, 255] scale.
        seed: of the run: what is drawn in a step must depend on it and on the step's number alone, so that a resumed
            run draws the same.
        cuda_graphs: whether steps may run as CUDA graphs.
    """

    space: Space
    config: Any
    supernet: nn.Module
    fabric: Fabric
    loss: Callable[[Tensor, Tensor], Tensor]
    task: Task
    weights: Batches
    architecture: Batches
    epoch_steps: int
    held_out: list[tuple[np.ndarray, np.ndarray]]
    seed: int
    cuda_graphs: bool

    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR, SSIM and score of the model on the images held out."""
        return validate(model, self.fabric.device, self.held_out, self.task)


class Algorithm(Protocol):
    """One search in progress: ``Algorithm(problem, **settings)``, a dataclass of settings for each of its groups.

    ``total``: steps of the whole search.
    """

    total: int

    @staticmethod
    def groups(space: Space) -> dict[str, type]:
        """The groups of settings beside supernet, data and loss, by the name that stands before their options' dot."""

    @staticmethod
    def check(trial: Trial, supernet: nn.Module) -> Any:
        """Refuse a supernet that it cannot search in, tried on noise; a genotype to be tried further, or None.

        An algorithm may do without: then nothing of this is checked.
        """

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: objects with ``state_dict`` and ``load_state_dict``."""

    def step(self, step: int) -> tuple[dict[str, Any], str]:
        """Do step ``step`` (from 0): a record for the log, with "epoch" and losses (keys that begin with "loss", which
        end the run where they are not finite), and a line of text for the live view."""

    def genotype(self) -> Any:
        """The architecture that the search would end with now."""

    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures for ``result.json``, from the log of all steps."""

    def draw(self, records: list[dict[str, Any]], folder: Path) -> list[str]:
        """Draw what happened over the steps; the names of the pictures."""


class Best:
    """Of all genotypes that were measured the one with the highest score; a part of a checkpoint.

    >>> best = Best()
    >>> for score, genotype in ((0.3, "a"), (0.9, "b"), (0.9, "c")):
    ...     best.offer({"score": score, "genotype": genotype})
    >>> best.found["genotype"]  # of equal ones the first
    'b'
    """

    def __init__(self):
        self.found: dict[str, Any] = {}

    def offer(self, record: Mapping[str, Any]) -> None:
        """Keep the record if its "score" is the highest so far."""
        if not self.found or record["score"] > self.found["score"]:
            self.found = dict(record)

    def state_dict(self) -> dict[str, Any]:
        return self.found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found = dict(state)


def algorithm_of(space: Space) -> type[Algorithm]:
    """The algorithm that searches in a space: that of the name it gives, or a class of its own.

    Raises:
        InputError: there is none of that name, or the class lacks something.

    >>> from srnas_fast.spaces import find_space
    >>> algorithm_of(find_space("dlsr-x2")).__name__
    'BilevelSearch'
    """
    given = space.algorithm
    if isinstance(given, str):
        if given not in _NAMED:
            known = ", ".join(_NAMED)
            raise InputError(f"{space.name} names the algorithm {given!r}; known: {known}, or give a class")
        return getattr(import_module(f"srnas_fast.search.{given}"), _NAMED[given])
    needed = ("groups", "parts", "step", "genotype", "result", "draw")
    missing = [name for name in needed if not callable(getattr(given, name, None))]
    if not isinstance(given, type) or missing:
        raise InputError(
            f"{space.name} has the algorithm {given!r}, which lacks {', '.join(missing) or 'a class'}; give bilevel, "
            "reinforce or a class like srnas_fast.search.Algorithm"
        )
    return given


_NAMED = {"bilevel": "BilevelSearch", "reinforce": "Reinforce"}  # in the file of the name
