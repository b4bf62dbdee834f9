"""Partial channels and edge normalisation, the two ideas of PC-DARTS (arXiv 1907.05737)."""

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.primitives import shuffle_concat


class PartialChannels(nn.Module):
    """A module on the first C/K channels; the others pass by, and the result is shuffled.

    For a weighted sum of candidates use ``MixedOp(ops, partial=K)``, which keeps nothing but x.

    Args:
        op: any module that returns as many channels as it gets, and the height and width of its input or half of them.
        partial: K, a whole number from 1 up that divides the channels of the input. With 1 the result is ``op(x)``.

    ``forward(x)``: (N, C, H, W) to (N, C, H, W) or, where ``op`` halves them, to (N, C, H / 2, W / 2), of x's memory
    format. Channel ``j * K`` is channel j of ``op(x[:, : C // K])``; channel ``j * K + i``, i from 1 up, is channel
    ``i * C / K + j`` of x, or the maxima of its 2 x 2 windows. Differentiable once.

    Raises:
        InputError: ``partial`` is no such number, or ``op`` returns another shape.

    >>> op = PartialChannels(nn.Tanh(), partial=2)
    >>> op(torch.arange(4.0).view(1, 4, 1, 1)).flatten()
    tensor([0.0000, 2.0000, 0.7616, 3.0000])
    """

    def __init__(self, op: nn.Module, partial: int):
        super().__init__()
        self.op, self.partial = op, whole_partial(partial)

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(first_channels(x, self.partial))
        return y if self.partial == 1 else shuffle_concat(y, x, self.partial)

    def extra_repr(self) -> str:
        return f"partial={self.partial}"


def edge_normalise(logits: Tensor, nodes: int) -> Tensor:
    """The weights of a cell's edges: the softmax of their logits over the edges that enter the same node.

    Node i of the cell has i + 2 incoming edges, from the cell's two inputs and from each node before it; edges are
    ordered by the node that they enter, as in DARTS.

    Args:
        logits: (..., E), one per edge, E = 2 + 3 + ... + (nodes + 1).
        nodes: of the cell, from 1 up.

    Returns:
        (..., E), of which those of each node add up to 1. Each is the ``edge_weight`` of its edge's ``MixedOp``.

    Raises:
        InputError: another number of logits.

    Source: PC-DARTS (arXiv 1907.05737), edge normalization.

    >>> edge_normalise(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), nodes=2)
    tensor([0.5000, 0.5000, 0.3333, 0.3333, 0.3333])
    """
    if nodes < 1:
        raise InputError(f"nodes is {nodes}; give a whole number from 1 up")
    edges = [node + 2 for node in range(nodes)]
    if not logits.ndim or logits.shape[-1] != sum(edges):
        raise InputError(
            f"edge logits have shape {tuple(logits.shape)}; a cell of {nodes} nodes has {sum(edges)} edges "
            f"({' + '.join(map(str, edges))}), so give (..., {sum(edges)})"
        )
    return torch.cat([part.softmax(-1) for part in logits.split(edges, -1)], -1)


def whole_partial(partial: int) -> int:
    """The number that was given for K of partial channels; raises InputError where it is none."""
    if type(partial) is not int or partial < 1:
        raise InputError(f"partial is {partial!r}; give a whole number from 1 up: 1 shows the candidates all channels")
    return partial


def first_channels(x: Tensor, partial: int) -> Tensor:
    """The first C/K channels of x; x itself for ``partial`` = 1.

    Raises:
        InputError: x is no (N, C, H, W) of which ``partial`` divides the channels.
    """
    if partial == 1:
        return x
    if x.dim() != 4 or x.shape[1] % partial or not x.shape[1]:
        raise InputError(
            f"x is {tuple(x.shape)} for partial={partial}; give (N, C, H, W) with a multiple of {partial} channels"
        )
    return x[:, : x.shape[1] // partial]
