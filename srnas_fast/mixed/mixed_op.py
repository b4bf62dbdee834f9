"""``MixedOp``: the module that stands in for ``sum(w * op(x) for w, op in zip(weights, ops))``."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from srnas_fast.errors import InputError
from srnas_fast.mixed.opaque import OpaqueSum, places_of


class MixedOp(nn.Module):
    """``y = sum_k weights[k] * ops[k](x)``, keeping only ``x`` and ``weights`` for the backward pass.

    Candidates run one at a time in both directions; the backward pass runs them again instead of having
    kept what they computed. Gradients for ``x``, ``weights`` and all parameters are those of plain autograd,
    and one that nobody asked for is not computed. Batch statistics move once, numbers drawn from torch's default
    generators repeat, autocast and the modes of the forward pass are entered again.

    What the recomputation cannot know of, it cannot repeat: a candidate must learn nothing but its own registered
    parameters and draw from no other generator (Python's, numpy's).

    Args:
        ops: the candidate operations, at least one: any modules that map a tensor to a tensor and whose
            results have one common shape. They stay ordinary submodules (``state_dict`` keys ``ops.<k>.*``).

    ``forward(x, weights, support=None)``:
        x: any tensor the candidates take, usually (N, C, H, W). ``channels_last`` in gives it out.
        weights: (K,) floating point, one weight per candidate, not necessarily normalised.
        support: which candidates are alive, K booleans (a tensor or a sequence). The others are not run:
            they add nothing to ``y``, and their weights and parameters get gradients of exact zero. Right where the
            weights come from a map whose Jacobian is zero off its support (sparsemax, sparsestmax). Running
            statistics and random numbers of dead candidates stay untouched. Default: all are alive.

    Raises:
        InputError: no candidates, or TorchScript among them; parameters still to be initialised; ``weights`` or
            ``support`` of the wrong shape; no candidate alive; NaN weights (looked for on the CPU only, since a
            look at a GPU's memory would stall it); candidates that disagree on the shape of the result, return no
            tensor or change ``x`` in place.
        RuntimeError: a second-order backward (``create_graph=True``): use :class:`PlainMixedOp` for that.

    Source: the mixed operation is DARTS (arXiv 1806.09055), equation 2.

    Equivalent to ``sum(w * op(x) for w, op in zip(weights, ops))``:

    >>> import torch
    >>> from srnas_fast import MixedOp
    >>> conv = torch.nn.Conv2d(4, 4, 3, padding=1)
    >>> op = MixedOp([conv, torch.nn.Identity()])
    >>> x, weights = torch.randn(1, 4, 8, 8), torch.tensor([0.7, 0.3])
    >>> torch.allclose(op(x, weights), 0.7 * conv(x) + 0.3 * x, atol=1e-6)
    True
    """

    def __init__(self, ops: Iterable[nn.Module]):
        super().__init__()
        self.ops = nn.ModuleList(ops)
        if not self.ops:
            raise InputError("MixedOp got no candidate operations; give a list of at least one nn.Module")
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.ops.modules()):
            raise InputError("MixedOp cannot recompute TorchScript candidates; give the modules they were made from")

    def forward(self, x: Tensor, weights: Tensor, support: Tensor | Sequence[bool] | None = None) -> Tensor:
        count = len(self.ops)
        if not isinstance(weights, Tensor) or weights.shape != (count,) or not weights.is_floating_point():
            given = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
            raise InputError(
                f"MixedOp weights are {given}; its {count} candidates take one floating-point tensor of shape "
                f"({count},), such as logits.softmax(-1)[edge]"
            )
        if weights.device.type == "cpu" and weights.isnan().any():
            raise InputError(
                f"MixedOp weights hold NaN: {weights.tolist()}; the run has diverged, so lower the "
                "learning rates or look for the first NaN in the loss"
            )
        # The parameters are inputs of the function: so autograd, hooks and DDP see them as used here.
        names, parameters = [], {}
        for op in self.ops:
            named = places_of(op, "_parameters")
            names.append({name: id(p) for name, p in named.items()})
            parameters |= {id(p): p for p in named.values()}
        if any(map(is_lazy, parameters.values())):
            raise InputError("MixedOp candidates hold lazy parameters; run each candidate on an input once before")
        place = {key: i for i, key in enumerate(parameters)}
        places = [{name: place[key] for name, key in row.items()} for row in names]
        return OpaqueSum.apply(self.ops, _live(support, count), places, x, weights, *parameters.values())


def _live(support: Tensor | Sequence[bool] | None, count: int) -> list[int]:
    """The indices of the live candidates."""
    if support is None:
        return list(range(count))
    if isinstance(support, Tensor):
        support = support.tolist()
    if not isinstance(support, Sequence) or len(support) != count or any(alive not in (0, 1) for alive in support):
        raise InputError(f"MixedOp support is {support!r}; give {count} booleans, one per candidate")
    live = [k for k, alive in enumerate(support) if alive]
    if not live:
        raise InputError("MixedOp support names no live candidate; at least one of them must be True")
    return live
