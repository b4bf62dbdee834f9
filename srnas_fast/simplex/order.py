"""Weights that fall from the root of a tree to its leaves: asked for by a penalty, or by construction.

TrilevelNAS (arXiv 2101.06658) weighs the nodes of a tree of network paths by a "sorted sparsestmax", so that shorter
networks come first, but gives no formula; the code that descends from it adds ``sum(child - parent)`` over all paths
to the loss, which telescopes to leaves minus root and sorts nothing. The two functions here are our readings.

A tree is given by its ``parents``: for each of its K nodes the index of its parent, which comes before it, and -1 for
the root, which comes first. ``[-1, 0, 1, 1]`` is a root, its child, and two children of that.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.simplex.sparsestmax import sparsestmax


def order_penalty(weights: Tensor, parents: Sequence[int] | Tensor) -> Tensor:
    """By how much weights rise along the edges of a tree: ``sum over edges of max(0, child - parent)``.

    A term of the loss, which leaves the map from logits to weights as it is. To be used softly: where the order
    holds everywhere, the largest weight is the root's, that of the shortest network.

    Args:
        weights: (..., K), such as those of ``sparsestmax``; K the number of nodes.
        parents: K indices, -1 first (see above); a list, or a tensor, best on the CPU.

    Returns:
        (...), 0 where no child weighs more than its parent; its gradient for equal weights is 0.

    Raises:
        InputError: ``parents`` is no tree of K nodes in that order.

    >>> order_penalty(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), parents=[-1, 0, 0])
    tensor([0.0000, 0.7000])
    """
    _, *above = _tree(parents, weights)
    return F.relu(weights[..., 1:] - weights[..., above]).sum(-1)


def sorted_sparsestmax(
    logits: Tensor, parents: Sequence[int] | Tensor, radius: float | Tensor, return_support: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """``sparsestmax`` of logits that fall along the edges of a tree: ``child = parent - softplus(logits[child])``.

    No child weighs more than its parent, so the support is a connected part of the tree around its root. With a
    radius that makes it one-hot this is the root alone: read the depth of the network from the support before.

    Args:
        logits: (..., K), floating: how far each node is to fall below its parent. The root's own does not matter.
        parents: K indices, -1 first (see above); a list, or a tensor, best on the CPU.
        radius, return_support: as for ``sparsestmax``.

    Returns:
        weights of the shape and type of ``logits``, and if asked for the support, booleans of that shape.

    Raises:
        InputError: as ``sparsestmax``, and if ``parents`` is no tree of K nodes in that order.

    >>> sorted_sparsestmax(torch.tensor([0.0, -2.0, 1.0, -3.0]), parents=[-1, 0, 0, 1], radius=0.2)
    tensor([0.4341, 0.3072, 0.0000, 0.2586])
    """
    if not logits.dtype.is_floating_point or logits.ndim == 0:
        raise InputError(f"logits are {logits.dtype} of shape {tuple(logits.shape)}; give floating rows (..., K)")
    ancestry = [[False] * logits.shape[-1]]  # whose fall adds to a node's: its own and its ancestors', but no root's
    for node, parent in enumerate(_tree(parents, logits)[1:], start=1):
        ancestry.append(ancestry[parent].copy())
        ancestry[node][node] = True
    falls = F.softplus(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    # A sum, as autocast would compute a product of matrices in lower precision.
    heights = -(falls[..., None, :] * torch.tensor(ancestry, device=logits.device)).sum(-1)
    answer = sparsestmax(heights, radius, return_support)
    return (answer[0].to(logits.dtype), answer[1]) if return_support else answer.to(logits.dtype)


def _tree(parents: Sequence[int] | Tensor, rows: Tensor) -> list[int]:
    """The parents as a list; raises InputError."""
    tree = parents.tolist() if isinstance(parents, Tensor) else list(parents)
    if len(tree) != rows.shape[-1] or tree[:1] != [-1] or any(p not in range(i) for i, p in enumerate(tree) if i):
        raise InputError(
            f"parents are {tree} for {rows.shape[-1]} nodes; give one for each node: -1 for the root, which comes "
            "first, and for the others the index of a node before them"
        )
    return tree
