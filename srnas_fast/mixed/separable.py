"""Separable branches: depthwise - pointwise [- batch norm], once or twice, from their input and dy alone."""

import torch
from torch import Tensor

from srnas_fast.mixed.activation import activate, activation_gradient, result_suffices
from srnas_fast.mixed.call import Call, Member, Return
from srnas_fast.mixed.norm import Affine, fold, unfold, uses_batch
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives import (
    separable_gradient,
    separable_gradient_,
    separable_moments,
    separable_sum,
    separable_sum_,
)


class Separable:
    """Candidates act - depthwise - pointwise [- batch norm] of one activated input, in one sum."""

    def __init__(self, members: list[Member]):
        self.members = members

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor | None:
        members = [m for m in self.members if m.candidate in call.live]
        if not members:
            return y
        y, maps = _forward(call, members, call.weights, a, y)
        call.kept[self] = members, maps
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        if self not in call.kept:
            return da
        members, maps = call.kept[self]
        da, dweights = _backward(call, members, maps, call.weights, a, dy, da, a_wanted, call.dweights is not None)
        for member, dw in zip(members, dweights, strict=True):
            call.give_weight(member.candidate, dw)
        return da

    def rows(self) -> list[tuple[int, str, list[Stage]]]:
        """For each candidate the name of its branch and its stages."""
        name = "separable" if len(self.members) == 1 else "separable, in one sum"
        return [(m.candidate, name + " with batch norm" * (m.stage.norm is not None), [m.stage]) for m in self.members]


class TwoStage:
    """One candidate of two separable stages; what the first makes is made again in the backward pass."""

    def __init__(self, first: Member, second: Member):
        self.first, self.second = first, second
        self.candidate = first.candidate

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor | None:
        if self.candidate not in call.live:
            return y
        u, inner = _forward(call, [self.first], None, a, None)
        y, outer = _forward(call, [self.second], call.weights, self._between(call, u), y)
        call.kept[self] = inner, outer
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        if self not in call.kept:
            return da
        if not (a_wanted or call.dweights is not None or call.wants(*self.first.slots[:-1], *self.second.slots)):
            return da
        inner, outer = call.kept[self]
        slots, act = self.first.slots, self.second.slots.activation
        first_wanted = a_wanted or call.wants(*slots[:-1])
        u_wanted = first_wanted or call.wants(act)
        u = _sum([self.first], [inner[0].matrix(call.read_map(slots).weight)], inner, inner[0].shift, call, a)
        v = self._between(call, u)
        u = None if result_suffices(self.second.stage.activation) else u  # overwritten
        dv, (dw,) = _backward(
            call, [self.second], outer, call.weights, v, dy, None, u_wanted, call.dweights is not None
        )
        call.give_weight(self.candidate, dw)
        if not u_wanted:
            return da
        du, dslope = activation_gradient(
            self.second.stage.activation, u, v, call.read(act), dv, slope_wanted=call.wants(act)
        )
        del u, v, dv
        call.give(act, dslope)
        if first_wanted:
            da, _ = _backward(call, [self.first], inner, None, a, du, da, a_wanted, False)
        return da

    def rows(self) -> list[tuple[int, str, list[Stage]]]:
        """For the candidate the name of its branch and its stages."""
        return [(self.candidate, "two-stage separable", [self.first.stage, self.second.stage])]

    def _between(self, call: Call, u: Tensor) -> Tensor:
        return activate(self.second.stage.activation, u, call.read(self.second.slots.activation), overwrite=True)


def _forward(
    call: Call, members: list[Member], weights: Tensor | None, a: Tensor, y: Tensor | None
) -> tuple[Tensor, list[Affine]]:
    """y + the weighted sum of the stages, and their affine maps; without weights every stage counts once."""
    stride = members[0].stage.stride
    pixels = a.shape[0] * -(-a.shape[2] // stride) * -(-a.shape[3] // stride)
    depthwise, dilations = _kernels(call, members)
    read = [call.read_map(member.slots) for member in members]
    batch = [i for i, member in enumerate(members) if uses_batch(member.stage.norm)]
    moments = {}
    if batch:
        found = separable_moments(a, [depthwise[i] for i in batch], [dilations[i] for i in batch], stride)
        moments = dict(zip(batch, zip(*found, strict=True), strict=True))
    maps = [
        fold(r, member.stage.norm, moments.get(i), pixels)
        for i, (r, member) in enumerate(zip(read, members, strict=True))
    ]
    matrices, shift = [], None
    for member, r, affine in zip(members, read, maps, strict=True):
        w = None if weights is None else weights[member.candidate]
        matrix = affine.matrix(r.weight)
        matrices.append(matrix if w is None else w * matrix)
        if affine.shift is not None:
            part = affine.shift if w is None else w * affine.shift
            shift = part if shift is None else shift + part
    return _sum(members, matrices, maps, shift, call, a, y), maps


def _sum(
    members: list[Member],
    matrices: list[Tensor],
    maps: list[Affine],
    shift: Tensor | None,
    call: Call,
    a: Tensor,
    y: Tensor | None = None,
) -> Tensor:
    depthwise, dilations = _kernels(call, members)
    rest = (shift, _centres(maps), dilations, members[0].stage.stride)
    if y is None:
        return separable_sum(a, depthwise, matrices, *rest)
    separable_sum_(y, a, depthwise, matrices, *rest)
    return y


def _kernels(call: Call, members: list[Member]) -> tuple[list[Tensor], list[int]]:
    """The depthwise kernels and their dilations."""
    return [call.read(m.slots.depthwise) for m in members], [m.stage.dilation for m in members]


def _centres(maps: list[Affine]) -> Tensor | None:
    if all(affine.centre is None for affine in maps):
        return None
    zeros = next(torch.zeros_like(affine.centre) for affine in maps if affine.centre is not None)
    return torch.stack([zeros if affine.centre is None else affine.centre for affine in maps])


def _backward(
    call: Return,
    members: list[Member],
    maps: list[Affine],
    weights: Tensor | None,
    a: Tensor,
    dy: Tensor,
    da: Tensor | None,
    a_wanted: bool,
    weights_wanted: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Gives the parameters' gradients; returns da with the stages' share in it, and the gradients of the weights.

    One pass over the pixels; two where a norm uses its batch, whose sums are in the gradient of every pixel.
    """
    count = len(members)
    depthwise, dilations = _kernels(call, members)
    read = [call.read_map(member.slots) for member in members]
    one = torch.ones((), dtype=call.dtype, device=a.device)
    scales = [one if weights is None else weights[m.candidate] for m in members]
    dweights = [torch.zeros_like(one)] * count
    depthwise_wanted = call.wants(*(m.slots.depthwise for m in members))
    images_wanted = a_wanted or depthwise_wanted
    sums_wanted = weights_wanted or any(call.wants(*m.slots.map) for m in members)
    if not (images_wanted or sums_wanted):
        return da, dweights

    centres = _centres(maps)
    left = [(w * affine.matrix(r.weight)).t() for w, r, affine in zip(scales, read, maps, strict=True)]

    def run(images: bool, sums: bool, right: list[Tensor] | None = None, offsets: Tensor | None = None) -> list[Tensor]:
        """[da, the sum of dy, the gradient of each depthwise kernel, the products of each stage]"""
        rest = (dy, depthwise, left, right, offsets, centres, dilations, members[0].stage.stride)
        wants = (images and depthwise_wanted, sums)
        if images and a_wanted and da is not None:
            return [da, *separable_gradient_(da, a, *rest, *wants)]
        return separable_gradient(a, *rest, images and a_wanted, *wants)

    two_passes = any(affine.projected is not None for affine in maps)
    found = run(images=not two_passes, sums=sums_wanted or two_passes)
    if sums_wanted or two_passes:
        corrections = []
        for i, (member, affine, r, w) in enumerate(zip(members, maps, read, scales, strict=True)):
            products, total = found[2 + count + i], found[1]
            gradients, correction = unfold(affine, w, r, products, total)
            dweights[i] = gradients.weight
            call.give_map(member.slots, gradients)
            corrections.append(correction or (one.new_zeros(a.shape[1], a.shape[1]), one.new_zeros(a.shape[1])))
        if two_passes and images_wanted:
            right, offsets = zip(*corrections, strict=True)
            found = run(images=True, sums=False, right=list(right), offsets=torch.stack(offsets))
    if depthwise_wanted:
        for member, part in zip(members, found[2 : 2 + count], strict=True):
            call.give(member.slots.depthwise, part)
    return found[0] if a_wanted else da, dweights
