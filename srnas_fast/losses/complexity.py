"""What an architecture would cost, as a term that its weights can be learnt from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srnas_fast.errors import InputError, require_number


@dataclass
class ComplexityLoss:
    """``coefficient * sum over positions of <weights, costs> / sum(costs)``, with its gradient for the weights.

    At each position the term is the expected cost of the candidate that will be chosen there, as a share of the cost
    of all candidates. It has no unit, so parameters and Multi-Adds give terms of one size. The complexity term of DLSR
    (arXiv 2105.03939), whose code detaches it from the graph.

    Args:
        costs: of each candidate, from 0 up, in any unit; for example from ``metrics.candidates.candidate_costs``.
        coefficient: weight of the term, a number from 0 up.

    Raises:
        InputError: a coefficient or a cost is negative or not finite, or no cost is above 0; when called, the weights
            are not floating point or not one per candidate.

    >>> loss = ComplexityLoss([1, 3, 0], coefficient=2.0)
    >>> weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], requires_grad=True)
    >>> loss(weights).item()  # 2 * ((0.5 * 1 + 0.5 * 3) / 4 + 0)
    1.0
    >>> torch.autograd.grad(loss(weights), weights)[0][0].tolist()
    [0.5, 1.5, 0.0]
    """

    costs: Sequence[float]
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        require_number(self, "", above=[], least=["coefficient"])
        for cost in self.costs:
            if not (math.isfinite(cost) and cost >= 0):
                raise InputError(f"a candidate costs {cost}; give finite numbers from 0 up")
        if not sum(self.costs) > 0:
            raise InputError(f"the costs of the candidates are {list(self.costs)}; give at least one above 0")

    def __call__(self, weights: Tensor) -> Tensor:
        """The term of (..., candidates) architecture weights (not logits), a scalar tensor; in float32 at least."""
        if not weights.is_floating_point() or weights.dim() < 1 or weights.shape[-1] != len(self.costs):
            raise InputError(
                f"architecture weights of shape {tuple(weights.shape)} and {weights.dtype} for {len(self.costs)} "
                "costs; give floating point weights, one per candidate in the last dimension"
            )
        # Numbers, not a tensor of them: that would be a copy from the CPU, which waits and no CUDA graph can hold.
        total, wide = sum(self.costs), weights.to(torch.promote_types(weights.dtype, torch.float32))
        terms = [weight * (cost / total) for weight, cost in zip(wide.unbind(-1), self.costs, strict=True)]
        return self.coefficient * torch.stack(terms, -1).sum()
