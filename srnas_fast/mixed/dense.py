"""Dense branches: convolutions of one activated input, merged into one kernel where no batch norm stands between."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from srnas_fast.mixed.call import Call, Member, Return
from srnas_fast.mixed.norm import fold, unfold, uses_batch
from srnas_fast.mixed.normed import NormedConvolution, accumulate, convolution_backward, convolve, plus
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives import merge_kernels
from srnas_fast.primitives.merge_kernels import taps_of

Staged = TypeVar("Staged")  # what has a stage


class Dense:
    """Candidates act - convolution [- batch norm] of one activated input.

    Without a norm, or with one that is frozen, a candidate is linear: those whose kernels fit into one another run as
    one convolution with the weighted sum of the kernels, and neither they nor their weights need anything but the
    gradient of that kernel. A norm that uses its batch needs the convolution's output: made, used and freed, one
    candidate at a time, in both directions.

    Args:
        merge: False: every candidate runs by itself.
    """

    def __init__(self, members: list[Member], merge: bool):
        self.members, self.merge = members, merge

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor | None:
        members = [m for m in self.members if m.candidate in call.live]
        if not members:
            return y
        a = a.to(call.conv_dtype)
        linear = [m for m in members if not uses_batch(m.stage.norm)]
        groups = merge_groups(linear) if self.merge else [(m.stage.dilation, [m]) for m in linear]
        merged = [_Linear(call, dilation, group) for dilation, group in groups]
        for part in merged:
            z = part.convolve(call, a)
            # Alone and unshifted, the convolution's output is the sum already.
            y = z if y is None and part.shift is None else accumulate(y, z.new_ones(1), z, part.shift)
        normed = [NormedConvolution(m) for m in members if uses_batch(m.stage.norm)]
        for part in normed:
            y = part.forward(call, a, y)
        call.kept[self] = [*merged, *normed]
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        a = a.to(call.conv_dtype)
        for part in call.kept.get(self, ()):
            da = part.backward(call, a, dy, da, a_wanted)
        return da

    def rows(self) -> list[tuple[int, str, list[Stage]]]:
        """For each candidate the name of its branch, in the modes that the norms are in, and its stages."""
        names = {m.candidate: "dense" + " with batch norm" * (m.stage.norm is not None) for m in self.members}
        linear = [m for m in self.members if not uses_batch(m.stage.norm)]
        for _, members in merge_groups(linear) if self.merge else []:
            for m in members if len(members) > 1 else []:
                others = sorted(other.candidate for other in members if other is not m)
                names[m.candidate] = f"dense, merged with {', '.join(map(str, others))}"
        return [(m.candidate, names[m.candidate], [m.stage]) for m in self.members]


def merge_groups(members: Sequence[Staged]) -> list[tuple[int, list[Staged]]]:
    """Which convolutions run as one, with the dilation of the one: those of one dilation, and with the undilated ones
    all that reach no further; a merged kernel never costs more than its parts."""
    groups: dict[int, list[Staged]] = {}
    widest = max((m.stage.size for m in members if m.stage.dilation == 1), default=0)
    points = [m for m in members if m.stage.size == 1]  # the middle of any other kernel
    for m in members:
        if m.stage.size > 1:
            inside = m.stage.dilation * (m.stage.size - 1) < widest
            groups.setdefault(1 if inside else m.stage.dilation, []).append(m)
    if points:
        groups.setdefault(min(groups, default=1), []).extend(points)
    return list(groups.items())


class _Linear:
    """Candidates without a norm, or with a frozen one, as one convolution; holds no activation."""

    def __init__(self, call: Call, dilation: int, members: list[Member]):
        self.dilation, self.members = dilation, members
        self.maps, self.shift = [], None
        for m in members:
            affine = fold(call.read_map(m.slots), m.stage.norm)
            if affine.shift is not None:
                part = call.weights[m.candidate] * affine.shift
                self.shift = part if self.shift is None else self.shift + part
            self.maps.append(affine)

    def convolve(self, call: Call, a: Tensor) -> Tensor:
        return convolve(a, self._kernel(call), None, self.dilation, call.dtype)

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        kernel_wanted = call.dweights is not None or any(call.wants(*m.slots.map) for m in self.members)
        if not (kernel_wanted or a_wanted):
            return da
        part, dkernel = convolution_backward(dy, a, self._kernel(call), self.dilation, a_wanted, kernel_wanted)
        if kernel_wanted:
            dkernel = dkernel.to(call.dtype)
            total = dy.sum((0, 2, 3)) if any(f.shift is not None for f in self.maps) else dy.new_zeros(dy.shape[1])
            for m, affine in zip(self.members, self.maps, strict=True):
                products = taps_of(dkernel, m.stage.size, self._step(m)).flatten(1)
                found, _ = unfold(affine, call.weights[m.candidate], call.read_map(m.slots), products, total)
                call.give_weight(m.candidate, found.weight)
                call.give_map(m.slots, found)
        return plus(da, part)

    def _step(self, m: Member) -> int:
        """The dilation of a candidate inside the merged kernel."""
        return m.stage.dilation // self.dilation if m.stage.size > 1 else 1

    def _kernel(self, call: Call) -> Tensor:
        kernels = []
        for m, affine in zip(self.members, self.maps, strict=True):
            kernel = call.read(m.slots.conv)
            kernels.append(kernel if affine.scale is None else affine.scale.view(-1, 1, 1, 1) * kernel)
        weights = torch.stack([call.weights[m.candidate] for m in self.members])
        if len(kernels) == 1:
            return weights * kernels[0]
        return merge_kernels(weights, kernels, [self._step(m) for m in self.members])
