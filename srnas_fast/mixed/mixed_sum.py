"""The autograd function under ``MixedOp``: runs a plan forward, and backward from the input alone."""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.mixed.activation import activate, activation_gradient, result_suffices
from srnas_fast.mixed.call import Call, Return
from srnas_fast.mixed.gpu import stored
from srnas_fast.mixed.normed import accumulate
from srnas_fast.mixed.opaque import Opaque, autocast_of, channels_last
from srnas_fast.mixed.partial import first_channels
from srnas_fast.mixed.plan import Plan
from srnas_fast.mixed.prepared import Share
from srnas_fast.primitives import shuffle_concat, shuffle_concat_backward, weighted_sum_backward
from srnas_fast.primitives.direct import autocast_is_on
from srnas_fast.primitives.images import wide
from srnas_fast.primitives.narrow_convolution import serves


class ProgramSum(torch.autograd.Function):
    """``sum_k weights[k] * ops[k](x)`` over the live candidates, all of which a program serves: one call each way."""

    @staticmethod
    def forward(
        ctx,
        share: Share,
        live: frozenset[int],
        kind: torch.dtype,
        x: Tensor,
        weights: Tensor,
        scale: Tensor | None,
        *parameters: Tensor,
    ):
        ctx.share, ctx.live, ctx.given = share, live, (x.shape, x.dtype, weights.shape)
        ctx.save_for_backward(x, weights, scale, *parameters)
        y, ctx.kept = share.forward(x.to(stored(x)), weights, scale, parameters, live)
        return y.to(kind)

    @staticmethod
    def backward(ctx, dy: Tensor):
        _refuse_second_order()
        x, weights, scale, *parameters = ctx.saved_tensors
        if (x.shape, x.dtype, weights.shape) != ctx.given:
            raise RuntimeError(
                "x or the weights of a MixedOp have another shape or type than in the forward pass; something set "
                "their .data before the backward pass"
            )
        share, live, wanted = ctx.share, ctx.live, ctx.needs_input_grad[3:]
        dtype = stored(x)
        found = share.backward(dy.to(dtype), x.to(dtype), weights, scale, parameters, ctx.kept, live, wanted)
        if found[0] is not None:
            found[0] = found[0].to(x.dtype)
        return None, None, None, *found


class MixedSum(torch.autograd.Function):
    """The same where other candidates are among them: what a program serves is computed by it, the rest in branches
    beside it, opaque candidates last. Saves ``x``, ``weights`` and no activation.

    With ``partial`` above 1 the candidates see the first ``1 / partial`` of the channels of x, and the others pass by,
    times ``scale``: the mixed sum is written between them.

    ``parameters`` stand at the plan's slots; those of opaque candidates follow. They are inputs of the function, so
    that autograd, hooks and DDP see them as used here.
    """

    @staticmethod
    def forward(
        ctx,
        plan: Plan,
        opaque: Opaque,
        live: frozenset[int],
        partial: int,
        share: Share | None,
        whole: Tensor,
        weights: Tensor,
        scale: Tensor | None,
        *parameters: Tensor,
    ):
        ctx.plan, ctx.opaque, ctx.live, ctx.partial, ctx.share = plan, opaque, live, partial, share
        ctx.save_for_backward(whole, weights, scale, *parameters)
        x = first_channels(whole, partial)
        _check_shapes(plan, live, x)
        dtype, autocast = wide(x), autocast_of(x)
        served = frozenset() if share is None else live & share.candidates
        ctx.layout = _inner_layout(plan, live - served, x)
        call = ctx.call = Call(live - served, weights.to(dtype), parameters, dtype, _conv_dtype(x))
        y = None
        with _without_autocast(x):
            if served:
                y, ctx.kept = share.forward(x.to(dtype), weights, None, parameters[: len(plan.places)], served)
            y = _branches_forward(plan, call, x, y, ctx.layout)
        y, found = opaque.forward(y, x, weights, autocast)
        call.parameters = ()  # they are saved where autograd watches them
        kind = reduce(torch.promote_types, [*kinds_of(plan, live, x), *found])
        if partial == 1:
            return _outer(y, kind, whole)
        if y.shape[1] != x.shape[1]:
            raise InputError(
                f"MixedOp candidates return {y.shape[1]} channels for the {x.shape[1]} that they see of "
                f"{whole.shape[1]} with partial={partial}; they must return as many as they see"
            )
        with _without_autocast(x):
            return shuffle_concat(y.to(torch.promote_types(kind, x.dtype)), whole, partial, scale)

    @staticmethod
    def backward(ctx, dout: Tensor):
        _refuse_second_order()
        whole, weights, scale, *parameters = ctx.saved_tensors
        x_wanted, weights_wanted, scale_wanted, *wanted = ctx.needs_input_grad[5:]
        plan, share, call, x = ctx.plan, ctx.share, ctx.call, first_channels(whole, ctx.partial)
        dy, dwhole, dscale = dout, None, None
        if ctx.partial > 1:
            dy, dwhole, dscale = shuffle_concat_backward(dout, whole, ctx.partial, scale, x_wanted, scale_wanted)
        returned = Return(
            call.live, call.weights, parameters, call.dtype, call.conv_dtype, call.kept, wanted, x_wanted,
            torch.zeros_like(call.weights) if weights_wanted else None, [None] * len(parameters),
        )  # fmt: skip
        dx = None
        with _without_autocast(x):
            if not call.live.issubset(plan.opaque):
                dx = _fused_backward(plan, returned, x, _inner(dy.to(call.dtype), ctx.layout), ctx.layout)
            if served := ctx.live - call.live:
                part, dweights, _, *found = share.backward(
                    dy.to(call.dtype), x.to(call.dtype), weights, None, parameters, ctx.kept, served,
                    [x_wanted, weights_wanted, False, *wanted],
                )  # fmt: skip
                dx = part if dx is None else dx.add_(part)
                returned.found = [a if b is None else b for a, b in zip(returned.found, found, strict=True)]
                if weights_wanted:
                    returned.dweights += dweights
        dx = ctx.opaque.backward(returned, dx, dy, x, weights)
        for k in set(range(len(plan.recognised))) - ctx.live:
            # Zeros, not None: with weight zero these parameters are in use, so that decay and momentum act.
            for slot in [*plan.slots.get(k, ()), *ctx.opaque.places.get(k, {}).values()]:
                if wanted[slot] and returned.found[slot] is None:
                    returned.found[slot] = torch.zeros_like(parameters[slot])
        dweights = None if returned.dweights is None else returned.dweights.to(weights.dtype)
        if ctx.partial == 1:
            dwhole = None if dx is None else _outer(dx, x.dtype, x)
        elif x_wanted and dx is not None:
            first_channels(dwhole, ctx.partial).copy_(dx)
        rest = (dwhole if x_wanted else None, dweights, dscale if scale_wanted else None)
        return None, None, None, None, None, *rest, *returned.found


def _refuse_second_order() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "MixedOp has first-order gradients only: its backward pass recomputes the candidates and keeps no "
            "graph, so create_graph=True cannot work; use srnas_fast.mixed.PlainMixedOp for second order"
        )


def _conv_dtype(x: Tensor) -> torch.dtype:
    """What plain convolutions would compute in: autocast's type, where it is on."""
    lowered = autocast_is_on(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype


def kinds_of(plan: Plan, live: frozenset[int], x: Tensor) -> list[torch.dtype]:
    """The types that plain autograd would add up, of all but opaque candidates; pools, identity and zero keep that of
    x."""
    fused = [plan.recognised[k] for k in live.difference(plan.opaque)]
    conv_dtype = _conv_dtype(x)
    return [conv_dtype if r.stages and r.kind != "pool" else x.dtype for r in fused]


def _branches_forward(
    plan: Plan, call: Call, x: Tensor, y: Tensor | None, layout: torch.memory_format | None
) -> Tensor | None:
    """y + the weighted sum of the live candidates that are not opaque."""
    live = call.live
    for group in plan.groups:
        if live.isdisjoint(group.candidates):
            continue
        a = _inner(activate(group.activation, x.to(call.dtype), call.read(group.slot)), layout)
        for branch in group.branches:
            y = branch.forward(call, a, y)
        del a
    for k in live.intersection(plan.identity):
        y = accumulate(y, call.weights[k : k + 1], x.to(call.dtype))
    fused = live.difference(plan.opaque)
    if y is None and fused:  # all of them are zero
        stride = plan.recognised[min(fused)].stride
        y = torch.zeros_like(x[:, :, ::stride, ::stride], dtype=call.dtype)
    return y


def _fused_backward(
    plan: Plan, call: Return, x: Tensor, dy: Tensor, layout: torch.memory_format | None
) -> Tensor | None:
    """The gradient of x from all candidates but the opaque ones; the others go into ``call``."""
    dx = None
    for group in plan.groups:
        if call.live.isdisjoint(group.candidates):
            continue
        slope, slope_wanted = call.read(group.slot), call.wants(group.slot)
        a_wanted = call.x_wanted or slope_wanted
        a = _inner(activate(group.activation, x.to(call.dtype), slope), layout)
        # Without an activation the gradient of what the branches read is that of x.
        da = dx if group.activation is None else None
        for branch in group.branches:
            da = branch.backward(call, a, dy, da, a_wanted)
        if group.activation is None:
            dx = da
        elif da is not None:
            needed = None if result_suffices(group.activation) else _inner(x.to(call.dtype), layout)
            part, dslope = activation_gradient(group.activation, needed, a, slope, da, slope_wanted)
            del da, needed
            call.give(group.slot, dslope)
            if call.x_wanted:
                dx = part if dx is None else dx.add_(part)
            del part
        del a
    for k in call.live.intersection(plan.identity):
        weight = call.weights[k : k + 1]
        if call.dweights is not None:
            call.give_weight(k, weighted_sum_backward(x.to(call.dtype), weight, [dy], None, True, [False])[0][0])
        if call.x_wanted:
            dx = accumulate(dx, weight, dy)
    if dx is None and call.x_wanted:
        dx = torch.zeros_like(x, dtype=call.dtype)
    return dx


def _without_autocast(x: Tensor) -> AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else nullcontext()


def _check_shapes(plan: Plan, live: frozenset[int], x: Tensor) -> None:
    shapes = {k: plan.shape(k, x) for k in sorted(live.difference(plan.opaque))}
    if len(set(shapes.values())) > 1:
        first, *_ = shapes.values()
        other = next(k for k, shape in shapes.items() if shape != first)
        raise InputError(
            f"MixedOp candidate {min(shapes)} returns shape {first} and candidate {other} shape {shapes[other]}; "
            "all must agree on it"
        )


def _inner_layout(plan: Plan, live: frozenset[int], x: Tensor) -> torch.memory_format | None:
    """The layout to compute in where it is not that of x.

    On a CPU torch's own convolutions of few channels are two to three times faster in channels_last, those of many a
    tenth, which the copies would cost again; compiled ones take any layout.
    """
    if x.device.type == "cpu" and x.dim() == 4:
        kernels = [m.stage.conv.weight for m in plan.dense(live)]
        if any(max(kernel.shape[:2]) <= 32 and not serves(x, kernel) for kernel in kernels):
            return torch.channels_last
    return None


def _inner(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    return x if layout is None else x.contiguous(memory_format=layout)


def _outer(y: Tensor, dtype: torch.dtype, like: Tensor) -> Tensor:
    """y in the type and the layout that the caller expects."""
    y = y.to(dtype)
    if y.dim() != 4:
        return y
    return y.contiguous(memory_format=torch.channels_last if channels_last(like) else torch.contiguous_format)
