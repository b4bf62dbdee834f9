"""One call of a program on a GPU: scratch, arguments, launches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srnas_fast.backends.gpu import stream
from srnas_fast.mixed.gpu_outside import Outside
from srnas_fast.mixed.gpu_program import GpuProgram, Launch, Sizes, addresses_of
from srnas_fast.mixed.program import Program
from srnas_fast.primitives.images import address, check_one_device, dense_format, wide


class Code(NamedTuple):
    """A program's kernels where they run.

    Attributes:
        program: what they were compiled for.
        functions: handles, in the order of ``gpu_program.KERNELS``.
        launch: the address of the driver's cuLaunchKernel.
        launch_all: the compiled function that calls it.
        context: what makes the GPU's context that of a thread; see ``Driver.context``.
    """

    program: GpuProgram
    functions: list[int]
    launch: int
    launch_all: Any
    context: tuple[int, int, int] = (0, 0, 0)


def forward(
    code: Code,
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: list[int],
    statistics: list[int],
    live: int,
) -> tuple[Tensor, Tensor]:
    """y and what its backward pass needs; moves running statistics. Parameters and statistics by their addresses."""
    program = code.program
    shape = program.made.result_shape(x)
    launches, sizes = program.forward(x.shape[0], *shape[2:], live)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))
    kept = torch.empty(program.places(live)[1][0], dtype=wide(x), device=x.device)
    call = _Call(code, x, shape, live, sizes, kept)
    call.views = [x, y, None, None]
    call.numbers = [_numbers(x, weights), _numbers(x, scale)]
    call.parameters, call.statistics = parameters, statistics
    if program.outside:
        call.outside = Outside(program, live, x)
        call.launch([*program.before_merging, *call.outside.launches])
        call.outside.convolve()
    call.launch(launches)
    return y, kept


def backward(
    code: Code,
    dy: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: list[int],
    kept: Tensor,
    live: int,
    wanted: tuple[bool, bool, bool],
    found: list[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weights and scale, where wanted; those of parameters go into ``found``, at their slots."""
    program = code.program
    shape = program.made.result_shape(x)
    slots = frozenset(slot for slot, tensor in enumerate(found) if tensor is not None)
    launches, sizes = program.backward(x.shape[0], tuple(shape[2:]), tuple(x.shape[2:]), live, wanted, slots)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x)) if wanted[0] else None
    dweights = torch.empty(weights.shape, dtype=wide(x), device=x.device) if wanted[1] else None
    dscale = torch.empty((), dtype=wide(x), device=x.device) if wanted[2] else None
    call = _Call(code, x, shape, live, sizes, kept)
    call.views = [x, None, dy, dx]
    call.numbers, call.found = [_numbers(x, weights), _numbers(x, scale)], [dweights, dscale]
    call.parameters, call.gradients = parameters, list(map(address, found))
    if program.outside:
        call.outside = Outside(program, live, x)
        call.launch(call.outside.launches)
        call.outside.convolve_back(dy, wanted[0], wanted[1] or program.outside_wanted(slots))
    call.launch(launches)
    return dx, dweights, dscale


def empty_kept(made: Program, x: Tensor, live: int) -> Tensor:
    """What a forward pass leaves, for compilers."""
    return torch.empty(GpuProgram(made, x.dtype, x.dtype).places(live)[1][0], dtype=wide(x), device=x.device)


def _numbers(x: Tensor, values: Tensor | None) -> Tensor | None:
    """Weights, or a scale, as kernels read them."""
    if values is None:
        return None
    check_one_device(x, values)
    return values.resolve_neg().to(wide(x)).contiguous()


class _Call:
    """The arguments of a call's kernels; scratch lives as long as it does.

    Attributes:
        views: x, y, dy, dx. numbers: weights and scale. found: where their gradients go.
        parameters, gradients, statistics: by their addresses.
        outside: the convolutions that torch runs.
    """

    def __init__(self, code: Code, x: Tensor, shape: Sequence[int], live: int, sizes: Sizes, kept: Tensor):
        self.code, self.x, self.shape, self.live, self.sizes, self.kept = code, x, shape, live, sizes, kept
        self.scratch = torch.empty(max(sizes.all, 1), dtype=wide(x), device=x.device)
        self.views: list[Tensor | None] = []
        self.numbers: list[Tensor | None] = []
        self.found: list[Tensor | None] = [None, None]
        self.parameters: list[int] = []
        self.gradients: list[int] = []
        self.statistics: list[int] = []
        self.outside: Outside | None = None

    def launch(self, launches: Sequence[Launch]) -> None:
        """Launch kernels in their order on torch's current stream."""
        code, x, threads = self.code, self.x, self.code.program.threads
        rows = [(code.functions[kernel], phase, blocks, threads(kernel)) for kernel, phase, blocks in launches]
        error = code.launch_all(code.launch, code.context, stream(x.device), self._words(), rows)
        if error:
            raise RuntimeError(f"the CUDA driver refuses a kernel of a mixed operation: error {error}")

    def _words(self) -> list[int]:
        """In the order of ``Arguments`` in csrc/gpu/call.h."""
        x, shape, sizes, program = self.x, self.shape, self.sizes, self.code.program
        each, at = self.scratch.element_size(), self.scratch.data_ptr()
        sums = at + sizes.images * each
        coefficients = sums + sizes.sums * each
        products = coefficients + sizes.coefficients * each
        # Of each stage what it keeps, and its images, of so many channels before it.
        places, stages, kept = program.places(self.live)[0], max(len(program.stages), 1), self.kept.data_ptr()
        channel = shape[0] * shape[2] * shape[3] * each
        slots, norms, groups = max(program.slots, 1), max(3 * program.norms, 1), max(program.groups, 1)
        return [
            0, x.shape[0], x.shape[2], x.shape[3], shape[2], shape[3], self.live, sizes.shares,
            *addresses_of(self.views), *map(address, self.numbers),
            sums, coefficients, products, *map(address, self.found),
            *_filled(self.parameters, slots), *_filled(self.gradients, slots), *_filled(self.statistics, norms),
            *(kept + place * each for place in places[:stages]), *(at + place * channel for place in places[stages:]),
            *(self.outside.words() if self.outside else [0] * (5 * groups + 5)),
        ]  # fmt: skip


def _filled(addresses: list[int], count: int) -> list[int]:
    return [*addresses[:count], *[0] * (count - len(addresses))]
