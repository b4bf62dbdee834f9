"""``MixedOp``: the module that stands in for ``sum(w * op(x) for w, op in zip(weights, ops))``."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import index

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from srnas_fast.errors import InputError
from srnas_fast.mixed import traced
from srnas_fast.mixed.mixed_sum import MixedSum, ProgramSum, kinds_of
from srnas_fast.mixed.opaque import Opaque, places_of
from srnas_fast.mixed.plain import PlainMixedOp
from srnas_fast.mixed.plan import Plan, describe
from srnas_fast.mixed.prepared import Prepared
from srnas_fast.primitives.direct import autocast_is_on, has_values


class MixedOp(PlainMixedOp):
    """``y = sum_k weights[k] * ops[k](x)``, keeping of the image only ``x`` for the backward pass.

    Candidates that are built like those of the search spaces (an activation, convolutions or depthwise separable
    convolutions, batch norms; see :meth:`describe`) are fused: they need nothing but ``x`` to go back. On a CPU with
    the compiled backend all of them together are a program, one call into C++ in each direction; on a GPU they are one
    of a few kernels, which are compiled at first use. Elsewhere, and for what a program does not serve (on a CPU dense
    convolutions of more than 64 channels, half precision; on a GPU float64), they run in branches.
    All other candidates are opaque: they run one at a time in both directions, again in the backward pass instead of
    having kept what they computed. Gradients for ``x``, ``weights`` and all parameters are those of plain autograd, and
    one that nobody asked for is not computed. Batch statistics move once, numbers drawn from torch's default
    generators repeat, autocast and the modes of the forward pass are entered again. Hooks on opaque candidates run
    again in the backward pass. The candidate :class:`srnas_fast.mixed.Zero` adds nothing, also where x is NaN or
    infinite.

    What is known of the candidates is confirmed at each call. By identity, every object being the one it was: their
    classes, submodules, parameters, buffers, hooks (those for all modules, too), settings, and the modes of their norms
    (``training``, ``eps``, ``momentum``, ``track_running_stats``). By value: address, shape and contiguity of every
    parameter and statistic, so that ``.data`` may be set. By value, too: type, device and channels of ``x``. Whatever
    has changed is looked at anew: so hooks, parametrizations and replaced submodules make a candidate opaque at once.

    Under autocast fused candidates compute in float32, which is never less exact than autocast's type, and the result
    has the type of the plain sum; dense convolutions of more than 64 channels and opaque candidates run in autocast's
    type. To ``torch.compile`` a mixed operation is one operator where a program serves all candidates
    (``fullgraph=True`` works, a ``support`` must be no tensor), else one graph break.

    What the recomputation cannot know of, it cannot repeat: an opaque candidate must learn nothing but its own
    registered parameters and draw from no other generator (Python's, numpy's).

    Args:
        ops: the candidate operations, at least one: any modules that map a tensor to a tensor and whose
            results have one common shape. They stay ordinary submodules (``state_dict`` keys ``ops.<k>.*``).
        merge: whether dense convolutions of one activation run as one convolution with the weighted sum of their
            kernels where nothing stands between. The same numbers to rounding, the same memory; faster.
        partial: K of partial channels: the candidates see the first C/K channels of x and return as many, the other
            channels pass by (where the candidates halve height and width: as the maxima of their 2 x 2 windows), and
            the result is shuffled: its channel ``j * K`` is channel j of the weighted sum, its channel ``j * K + i``
            channel ``i * C / K + j`` of x. No part of x is copied for it, nothing concatenated.

    ``forward(x, weights, support=None, edge_weight=None)``:
        x: any tensor the candidates take, usually (N, C, H, W), and with partial channels nothing else.
            ``channels_last`` in gives it out.
        weights: (K,) floating point, one weight per candidate, not necessarily normalised.
        support: which candidates are alive, K booleans (a tensor or a sequence). The others are not run:
            they add nothing to ``y``, and their weights and parameters get gradients of exact zero. Right where the
            weights come from a map whose Jacobian is zero off its support (sparsemax, sparsestmax). Running
            statistics and random numbers of dead candidates stay untouched. Default: all are alive.
        edge_weight: (), what the whole result is multiplied with, such as an entry of
            :func:`srnas_fast.mixed.edge_normalise`; it costs no pass over the result. Default: 1.

    Raises:
        InputError: no candidates, or TorchScript among them; parameters still to be initialised; ``weights``,
            ``support`` or ``edge_weight`` of the wrong shape; no candidate alive; NaN weights (looked for on the CPU
            only, since a look at a GPU's memory would stall it); candidates that disagree on the shape of the result,
            return no tensor or change ``x`` in place; a number of channels that ``partial`` does not divide, candidates
            that return another number of channels than they see or halve an odd height or width.
        RuntimeError: a second-order backward (``create_graph=True``): use :class:`PlainMixedOp` for that.

    Source: the mixed operation is DARTS (arXiv 1806.09055), equation 2; partial channels and edge weights are PC-DARTS
    (arXiv 1907.05737).

    Equivalent to ``sum(w * op(x) for w, op in zip(weights, ops))``:

    >>> import torch
    >>> from srnas_fast import MixedOp
    >>> conv = torch.nn.Conv2d(4, 4, 3, padding=1)
    >>> op = MixedOp([conv, torch.nn.Identity()])
    >>> x, weights = torch.randn(1, 4, 8, 8), torch.tensor([0.7, 0.3])
    >>> torch.allclose(op(x, weights), 0.7 * conv(x) + 0.3 * x, atol=1e-6)
    True
    """

    _prepared: Prepared | None = None

    def __init__(self, ops: Iterable[nn.Module], merge: bool = True, partial: int = 1):
        super().__init__(ops, partial)
        self.merge = merge
        if not self.ops:
            raise InputError("MixedOp got no candidate operations; give a list of at least one nn.Module")
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.ops.modules()):
            raise InputError("MixedOp cannot recompute TorchScript candidates; give the modules they were made from")

    def forward(
        self,
        x: Tensor,
        weights: Tensor,
        support: Tensor | Sequence[bool] | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        if torch.compiler.is_compiling():
            return self._traced(x, weights, support, edge_weight)
        return self.run(x, weights, support, edge_weight)

    def run(self, x: Tensor, weights: Tensor, support, edge_weight: Tensor | None) -> Tensor:
        """The forward pass as it is computed; to compilers ``forward`` shows less of it."""
        prepared = self._prepare()
        if not isinstance(weights, Tensor) or weights.shape != (prepared.count,) or not weights.is_floating_point():
            given = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
            raise InputError(
                f"MixedOp weights are {given}; its {prepared.count} candidates take one floating-point tensor of shape "
                f"({prepared.count},), such as logits.softmax(-1)[edge]"
            )
        if "_is_replica" in self.__dict__:  # of nn.DataParallel: what it holds are no parameters
            return super().forward(x, weights, support, edge_weight)
        scale = None if self.partial == 1 else edge_weight  # of what passes by; the candidates' share is in weights
        if edge_weight is not None:
            _check_edge_weight(edge_weight)
            if _visible(edge_weight) and edge_weight.isnan():
                raise InputError(
                    "MixedOp edge_weight is NaN; the run has diverged, so look for the first NaN in the loss"
                )
            weights = weights * edge_weight
        made, live = prepared.plan, prepared.live(support)
        takes, share = prepared.takes(x, self.partial), None
        if takes:
            share, alone = prepared.share(x, live, self.partial)
            if alone:
                kind = reduce(torch.promote_types, kinds_of(made, live, x)) if autocast_is_on(x) else x.dtype
                return ProgramSum.apply(share, live, kind, x, weights, scale, *prepared.parameters)
        if _visible(weights) and weights.isnan().any():
            raise InputError(
                f"MixedOp weights hold NaN: {weights.tolist()}; the run has diverged, so lower the "
                "learning rates or look for the first NaN in the loss"
            )
        parameters = list(prepared.parameters) if takes else []
        if not takes:
            made = Plan(made.recognised, opaque=sorted(prepared.all))
        places = {}
        for k in made.opaque:
            named = places_of(self.ops[k], "_parameters")
            places[k] = {name: len(parameters) + i for i, name in enumerate(named)}
            parameters += named.values()
        if any(map(is_lazy, parameters)):
            raise InputError("MixedOp candidates hold lazy parameters; run each candidate on an input once before")
        opaque = Opaque(self.ops, [k for k in made.opaque if k in live], places)
        return MixedSum.apply(made, opaque, live, self.partial, share, x, weights, scale, *parameters)

    def _traced(self, x: Tensor, weights: Tensor, support, edge_weight: Tensor | None) -> Tensor:
        """The forward pass under ``torch.compile``."""
        found = None
        if edge_weight is not None:
            _check_edge_weight(edge_weight)
        if x.dim() == 4 and x.numel() and not isinstance(support, Tensor):
            lowered = torch.get_autocast_dtype(x.device.type) if autocast_is_on(x) else None
            alive = None if support is None else tuple(map(bool, support))
            channels = index(x.shape[1])  # one number also where a compiler would leave it open
            found = self._look_up(channels, x.dtype, x.device.type, lowered, alive)
        if found is None:
            traced.prepare_to_break()
            return traced.uncompiled(self, x, weights, support, edge_weight)
        scale = None if self.partial == 1 else edge_weight
        return traced.run(self.ops, found, x, weights if edge_weight is None else weights * edge_weight, scale)

    @traced.constant
    def _look_up(self, channels: int, dtype, device: str, lowered, alive) -> traced.Traced | None:
        """What the compiler bakes into its graph, for images of so many channels, a type and a device."""
        x = torch.empty((2, channels, 4, 4), dtype=dtype, device=device)
        with torch.autocast(device, lowered, enabled=lowered is not None):
            return traced.look_up(self.ops, self._prepare(), x, alive, self.partial)

    def describe(self) -> str:
        """The plan, one line per candidate: its branch, what it keeps for the backward pass, and why.

        >>> from torch import nn
        >>> print(MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Identity()]).describe())
           candidate  branch                reads  keeps beside x  because it is
        0  Conv2d     dense, merged with 1  x      nothing         dense 3x3 with bias
        1  Conv2d     dense, merged with 0  x      nothing         dense 1x1 with bias
        2  Identity   identity              x      nothing         identity
        """
        table = describe(self._prepare().plan, self.ops)
        if self.partial == 1:
            return table
        return f"{table}\npartial channels: x is the first 1/{self.partial} of the channels, the others pass by"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_prepared": None}  # a copy is prepared anew

    def _prepare(self) -> Prepared:
        """What is known of the candidates, found anew where hooks, replaced submodules or settings changed them."""
        held, ops = self._prepared, self._modules["ops"]
        if held is None or not held.holds(ops, self.merge):
            self._prepared = held = Prepared(ops, self.merge)
        return held


def _visible(weights: Tensor) -> bool:
    """Whether a look at the weights costs nothing: they are not on a GPU, which it would stall, and no mere shapes."""
    return weights.device.type == "cpu" and has_values(weights)


def _check_edge_weight(edge_weight: Tensor) -> None:
    if not isinstance(edge_weight, Tensor) or edge_weight.dim() or not edge_weight.is_floating_point():
        tensor = isinstance(edge_weight, Tensor)
        given = f"{edge_weight.dtype} {tuple(edge_weight.shape)}" if tensor else repr(edge_weight)
        raise InputError(
            f"MixedOp edge_weight is {given}; give a floating-point tensor of shape (), such as edge_weights[edge]"
        )
