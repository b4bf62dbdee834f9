"""What the policies of searches by reinforcement have in common."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Sample(Protocol):
    """An architecture that a policy drew, with what its gradient is made of.

    ``genotype``: the architecture. ``log_probabilities``, ``entropies``: (parts,) tensors with a graph, an entry for
    each kind of decision: the sum of its decisions' log-probabilities and of their entropies.
    """

    genotype: Any
    log_probabilities: Tensor
    entropies: Tensor


class Policy(Protocol):
    """A module that draws architectures and learns by their rewards.

    ``weights``: how much each part of a :class:`Sample` counts in the policy gradient.
    """

    weights: Sequence[float]

    def sample(self, generator: torch.Generator) -> Sample:
        """An architecture: a pure function of the parameters and the generator, which is the CPU's."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What learns."""
