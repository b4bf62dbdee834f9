"""One call of a mixed operation: what its branches share on the way forward and collect on the way back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srnas_fast.mixed.norm import AffineGradients, MapParameters
from srnas_fast.mixed.stage import Stage


class Slots(NamedTuple):
    """At which places among the mixed operation's parameters those of a stage stand; None for what it has not."""

    depthwise: int | None
    conv: int | None
    bias: int | None
    gamma: int | None
    beta: int | None
    activation: int | None

    @property
    def map(self) -> tuple[int | None, ...]:
        """Those of the linear map and its norm."""
        return self.conv, self.bias, self.gamma, self.beta


class Member(NamedTuple):
    """A stage of a candidate."""

    candidate: int
    stage: Stage
    slots: Slots


@dataclass(eq=False)
class Call:
    """What the forward pass of one call knows, and the little that it leaves for the backward pass in ``kept``.

    Attributes:
        live: the candidates to run.
        weights: (K,) in the type of the computation.
        parameters: those of all candidates, at their slots.
        dtype: the type of the computation, float32 or wider.
        conv_dtype: what dense convolutions run in: autocast's type, where it is on.
        kept: per branch, tensors that depend on parameters and statistics alone.
    """

    live: frozenset[int]
    weights: Tensor
    parameters: Sequence[Tensor]
    dtype: torch.dtype
    conv_dtype: torch.dtype
    kept: dict[Any, Any] = field(default_factory=dict)

    def read(self, slot: int | None) -> Tensor | None:
        """The parameter at a slot, in the type of the computation."""
        if slot is None:
            return None
        parameter = self.parameters[slot]
        return parameter if parameter.dtype is self.dtype else parameter.to(self.dtype)

    def read_map(self, slots: Slots) -> MapParameters:
        """The parameters of a stage's linear map and norm, its kernel as a matrix."""
        weight, bias, gamma, beta = map(self.read, slots.map)
        return MapParameters(weight.flatten(1), bias, gamma, beta)


@dataclass(eq=False)
class Return(Call):
    """The backward pass of a call: the gradients that are wanted and those found so far."""

    wanted: Sequence[bool] = ()
    x_wanted: bool = False
    dweights: Tensor | None = None  # None: nobody wants them
    found: list[Tensor | None] = field(default_factory=list)

    def wants(self, *slots: int | None) -> bool:
        """Whether any of these parameters wants a gradient."""
        return any(slot is not None and self.wanted[slot] for slot in slots)

    def give(self, slot: int | None, gradient: Tensor | None) -> None:
        """The gradient of the parameter at a slot, where it is wanted."""
        if slot is not None and self.wanted[slot] and gradient is not None:
            parameter = self.parameters[slot]
            self.found[slot] = gradient.reshape(parameter.shape).to(parameter.dtype)

    def give_map(self, slots: Slots, gradients: AffineGradients) -> None:
        """The gradients of a stage's linear map and norm, where they are wanted."""
        parts = (gradients.matrix, gradients.bias, gradients.gamma, gradients.beta)
        for slot, part in zip(slots.map, parts, strict=True):
            self.give(slot, part)

    def give_weight(self, candidate: int, gradient: Tensor) -> None:
        """The gradient of a candidate's architecture weight, where it is wanted."""
        if self.dweights is not None:
            self.dweights[candidate] += gradient
