"""Dense convolutions of many channels beside a program's kernels: torch's own, of kernels that are merged here."""

import torch
from torch import Tensor
from torch.nn import functional

from srnas_fast.mixed.gpu_program import MERGE, GpuProgram, Launch, addresses_of, ceil_div
from srnas_fast.mixed.partial import first_channels
from srnas_fast.primitives.images import address, wide


class Outside:
    """The convolutions of one call.

    Args:
        program: with stages that run outside.
        live: a bit for each candidate.
        x: all of its channels.
    """

    def __init__(self, program: GpuProgram, live: int, x: Tensor):
        self.program, self.x = program, first_channels(x, program.made.partial)
        self.merges = program.merges(live)
        sizes = [(program.made.outputs, program.made.channels, m.size, m.size) for m in self.merges]
        self.kernels = [torch.empty(size, dtype=x.dtype, device=x.device) for size in sizes]
        self.gradients: list[Tensor | None] = [None] * len(self.merges)
        self.images: list[Tensor | None] = [None] * max(program.groups, 1)
        self.dy_sum: Tensor | None = None
        self._inputs: dict[int, Tensor] = {}

    @property
    def launches(self) -> list[Launch]:
        """What merges the kernels."""
        threads = 32 * self.program.warps
        place_of = {place: number for number, place in enumerate(self.program.outside)}
        return [
            Launch(MERGE, place_of[merge.members[0]], ceil_div(kernel.numel(), threads))
            for merge, kernel in zip(self.merges, self.kernels, strict=True)
        ]

    def words(self) -> list[int]:
        """The end of the kernels' arguments."""
        outside = self.program.outside
        of = {place: number for number, merge in enumerate(self.merges) for place in merge.members}
        merged, returned, sizes, steps = ([0] * len(outside) for _ in range(4))
        for number, place in enumerate(outside):
            if place in of:  # it is alive
                merge, gradient = self.merges[of[place]], self.gradients[of[place]]
                merged[number] = self.kernels[of[place]].data_ptr()
                returned[number] = address(gradient)
                sizes[number], steps[number] = merge.size, merge.steps[merge.members.index(place)]
        return [*addresses_of(self.images), *merged, *returned, *sizes, *steps, address(self.dy_sum)]

    def convolve(self) -> None:
        """What they make of x, all together."""
        for merge, kernel in zip(self.merges, self.kernels, strict=True):
            padding = merge.dilation * (merge.size // 2)
            z = functional.conv2d(self._input(merge.group), kernel, None, 1, padding, merge.dilation)
            self.images[0] = z if self.images[0] is None else self.images[0].add_(z)

    def convolve_back(self, dy: Tensor, x_wanted: bool, kernels_wanted: bool) -> None:
        """The gradients of what they read, for each group, and of the merged kernels; ``dy`` of all channels."""
        dy = dy[:, :: self.program.made.partial]
        if kernels_wanted and self.program.shifts:
            self.dy_sum = dy.sum((0, 2, 3), dtype=wide(dy))
        for number, (merge, kernel) in enumerate(zip(self.merges, self.kernels, strict=True)):
            padding, wanted = [merge.dilation * (merge.size // 2)] * 2, [x_wanted, kernels_wanted, False]
            if not any(wanted):
                continue
            da, self.gradients[number], _ = torch.ops.aten.convolution_backward(
                dy, self._input(merge.group), kernel, [kernel.shape[0]], [1, 1], padding, [merge.dilation] * 2,
                False, [0, 0], 1, wanted,
            )  # fmt: skip
            if kernels_wanted and not self.gradients[number].is_contiguous():
                self.gradients[number] = self.gradients[number].contiguous()
            if x_wanted:
                before = self.images[merge.group]
                self.images[merge.group] = da if before is None else before.add_(da)

    def _input(self, group: int) -> Tensor:
        """x through a group's activation."""
        if group not in self._inputs:
            stage = next(p.stage for p in self.program.stages if p.group == group)
            self._inputs[group] = _ACTIVATE[stage.activation](self.x, stage.slope)
        return self._inputs[group]


_ACTIVATE = {
    0: lambda x, slope: x,
    1: lambda x, slope: x.relu(),
    2: lambda x, slope: functional.leaky_relu(x, slope),
    4: lambda x, slope: x.sin(),
}
