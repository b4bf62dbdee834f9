"""The mixed operation as everybody writes it: the reference that ``MixedOp`` is held to."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class PlainMixedOp(nn.Module):
    """``sum_k weights[k] * ops[k](x)`` under plain autograd, which keeps what every candidate keeps.

    Same signature, parameters and ``state_dict`` as :class:`srnas_fast.MixedOp`. It is the specification of
    that class, the peer in the benches, and the way to second-order gradients.

    >>> import torch
    >>> op = PlainMixedOp([torch.nn.Identity(), torch.nn.ReLU()])
    >>> op(torch.tensor([-1.0, 2.0]), torch.tensor([0.25, 0.75]))
    tensor([-0.2500,  2.0000])
    """

    def __init__(self, ops: Iterable[nn.Module]):
        super().__init__()
        self.ops = nn.ModuleList(ops)

    def forward(self, x: Tensor, weights: Tensor, support: Tensor | Sequence[bool] | None = None) -> Tensor:
        live = range(len(self.ops)) if support is None else torch.as_tensor(support).nonzero().flatten().tolist()
        return sum(weights[k] * self.ops[k](x) for k in live)
