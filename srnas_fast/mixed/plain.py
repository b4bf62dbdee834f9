"""The mixed operation as everybody writes it: the reference that ``MixedOp`` is held to."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from srnas_fast.mixed.partial import first_channels, whole_partial
from srnas_fast.primitives.shuffle_concat import shuffle_concat_reference


class PlainMixedOp(nn.Module):
    """``sum_k weights[k] * ops[k](x)`` under plain autograd, which keeps what every candidate keeps.

    Same signature, parameters and ``state_dict`` as :class:`srnas_fast.MixedOp`. It is the specification of
    that class, the peer in the benches, and the way to second-order gradients.

    >>> import torch
    >>> op = PlainMixedOp([torch.nn.Identity(), torch.nn.ReLU()])
    >>> op(torch.tensor([-1.0, 2.0]), torch.tensor([0.25, 0.75]))
    tensor([-0.2500,  2.0000])
    """

    def __init__(self, ops: Iterable[nn.Module], partial: int = 1):
        super().__init__()
        self.ops, self.partial = nn.ModuleList(ops), whole_partial(partial)

    def forward(
        self,
        x: Tensor,
        weights: Tensor,
        support: Tensor | Sequence[bool] | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        y = self.mixed(first_channels(x, self.partial), weights, support)
        if self.partial > 1:
            y = shuffle_concat_reference(y, x, self.partial)
        return y if edge_weight is None else edge_weight * y

    def mixed(self, x: Tensor, weights: Tensor, support: Tensor | Sequence[bool] | None) -> Tensor:
        """The weighted sum, of the channels that the candidates see."""
        live = range(len(self.ops)) if support is None else torch.as_tensor(support).nonzero().flatten().tolist()
        return sum(weights[k] * self.ops[k](x) for k in live)
