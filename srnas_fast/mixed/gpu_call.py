"""One call of a program on a GPU: scratch, arguments, launches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srnas_fast.backends.choice import on_its_device
from srnas_fast.backends.compiled import stream
from srnas_fast.mixed.gpu_program import GpuProgram, Launch, Sizes, addresses_of
from srnas_fast.mixed.program import Program
from srnas_fast.primitives.images import check_one_device, dense_format, wide


class Code(NamedTuple):
    """A program's kernels where they run.

    Attributes:
        program: what they were compiled for.
        functions: handles, in the order of ``gpu_program.KERNELS``.
        launch: the address of the driver's cuLaunchKernel.
        launch_all: the compiled function that calls it.
    """

    program: GpuProgram
    functions: list[int]
    launch: int
    launch_all: Any


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
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))
    launches, sizes = program.forward(x.shape[0], *shape[2:], live)
    kept = torch.empty(program.places(live)[1][0], dtype=wide(x), device=x.device)
    weights, scale = _numbers(x, weights), _numbers(x, scale)
    _launch(
        code, launches, sizes, x, shape, live, [x, y, None, None], [weights, scale], kept, [],
        parameters, [], statistics,
    )  # fmt: skip
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
    values, factor = _numbers(x, weights), _numbers(x, scale)
    gradients = [0 if tensor is None else tensor.data_ptr() for tensor in found]
    _launch(
        code, launches, sizes, x, shape, live, [x, None, dy, dx], [values, factor], kept, [dweights, dscale],
        parameters, gradients, [],
    )  # fmt: skip
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


def _launch(
    code: Code,
    launches: Sequence[Launch],
    sizes: Sizes,
    x: Tensor,
    shape: Sequence[int],
    live: int,
    views: list[Tensor | None],
    given: list[Tensor | None],
    kept: Tensor,
    found: list[Tensor | None],
    parameters: list[int],
    gradients: list[int],
    statistics: list[int],
) -> None:
    program = code.program
    scratch = torch.empty(max(sizes.all, 1), dtype=wide(x), device=x.device)
    first, bytes_each = scratch.data_ptr(), scratch.element_size()
    at, places = first + sizes.images * bytes_each, []
    for size in (sizes.sums, sizes.coefficients, sizes.products):
        places.append(at)
        at += size * bytes_each
    # Of each stage what it keeps, and its images, of so many channels before it.
    own, stages = program.places(live)[0], max(len(program.stages), 1)
    channel = x.shape[0] * shape[2] * shape[3] * bytes_each
    kept_at = [kept.data_ptr() + place * bytes_each for place in own[:stages]]
    images_at = [first + place * channel for place in own[stages:]]
    slots, norms = max(program.slots, 1), max(3 * program.norms, 1)
    words = [
        0, x.shape[0], x.shape[2], x.shape[3], shape[2], shape[3], live, sizes.shares,
        *addresses_of(views),
        *(0 if t is None else t.data_ptr() for t in given), *places,
        *(0 if t is None else t.data_ptr() for t in found), *[0] * (2 - len(found)),
        *_filled(parameters, slots), *_filled(gradients, slots), *_filled(statistics, norms), *kept_at, *images_at,
    ]  # fmt: skip
    threads = 32 * program.warps
    rows = [(code.functions[kernel], phase, blocks, threads) for kernel, phase, blocks in launches]
    launch_all = on_its_device(x.device, code.launch_all) if x.is_cuda else code.launch_all
    error = launch_all(code.launch, stream(x.device), words, rows)
    if error:
        raise RuntimeError(f"the CUDA driver refuses a kernel of a mixed operation: error {error}")


def _filled(addresses: list[int], count: int) -> list[int]:
    return [*addresses[:count], *[0] * (count - len(addresses))]
