"""Running a program: one call into C++ in each direction, and the same as operators for who watches or compiles."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends.openmp import threads
from srnas_fast.errors import InputError
from srnas_fast.mixed import gpu, gpu_call
from srnas_fast.mixed.norm import refuse_one_pixel
from srnas_fast.mixed.program import Program, program_of
from srnas_fast.primitives.direct import watched
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import address, addresses, check_one_device, dense_format


def _numbers(x: Tensor, values: Tensor | None) -> Tensor | None:
    """Weights, or a scale, as programs read them."""
    if values is None:
        return None
    check_one_device(x, values)
    values = values.resolve_neg()
    return values if values.dtype is x.dtype and values.is_contiguous() else values.to(x.dtype).contiguous()


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    if like.shape == shape and like.is_contiguous():
        return torch.empty_like(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=dense_format(like))


def _check(x: Tensor, weights: Tensor, made: Program, live: int) -> None:
    """Refuses what the compiled code must not meet; also of graphs, which are made for other images than they meet."""
    if weights.shape != (len(made.candidates),):
        raise InputError(
            f"MixedOp weights have shape {tuple(weights.shape)}; give ({len(made.candidates)},), one per candidate"
        )
    if x.dim() != 4 or x.shape[1] != made.channels * made.partial or not x.numel():
        channels = made.channels * made.partial
        raise InputError(f"x is {tuple(x.shape)}; this MixedOp was compiled for images (N, {channels}, H, W)")
    n, _, height, width = made.result_shape(x)
    if made.partial > 1 and made.stride > 1 and (x.shape[2] % 2 or x.shape[3] % 2):
        raise InputError(f"x is {tuple(x.shape)}; partial channels that are halved take an even height and width")
    if n * height * width == 1 and made.normed(live):
        refuse_one_pixel("a batch norm")  # a graph does not know which


def _sizes(x: Tensor) -> tuple[int, int, int]:
    n, _, height, width = x.shape
    return n, height, width


def _forward(
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: list[int],
    statistics: list[int],
    made: Program,
    live: int,
    kind: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y and what its backward pass needs; moves running statistics. Parameters, of one type, and statistics by their
    addresses."""
    _check(x, weights, made, live)
    x = x.resolve_neg()
    if gpu.on_gpu(x):
        return gpu_call.forward(gpu.code_of(made, x, kind), x, weights, scale, parameters, statistics, live)
    weights, scale = _numbers(x, weights), _numbers(x, scale)
    y, kept = _empty(x, made.result_shape(x)), torch.empty(made.kept(live), dtype=x.dtype, device=x.device)
    computed = made.calls[x.dtype].program_forward(
        made.compiled,
        threads(),
        _sizes(x),
        x.data_ptr(),
        x.stride(),
        weights.data_ptr(),
        address(scale),
        live,
        parameters,
        statistics,
        kept.data_ptr(),
        y.data_ptr(),
        y.stride(),
    )
    if not computed:
        raise InputError(
            f"MixedOp weights hold NaN: {weights.tolist()}; the run has diverged, so lower the "
            "learning rates or look for the first NaN in the loss"
        )
    return y, kept


def _backward(
    dy: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Tensor,
    made: Program,
    live: int,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, weights, scale and parameters, None where not wanted."""
    x_wanted, weights_wanted, scale_wanted, *each_wanted = wanted
    _check(x, weights, made, live)
    x, dy = x.resolve_neg(), dy.resolve_neg()
    if dy.shape != made.result_shape(x) or dy.dtype != x.dtype or dy.device != x.device:
        raise RuntimeError(f"the gradient of a MixedOp is {tuple(dy.shape)} of {dy.dtype}, its result was another")
    own, dead = made.slots(live)
    found = [
        torch.empty_like(parameter) if want and slot in own else None
        for slot, (parameter, want) in enumerate(zip(parameters, each_wanted, strict=True))
    ]
    if gpu.on_gpu(x):
        dy = dy if gpu.indexes(dy) else dy.contiguous()
        code = gpu.code_of(made, x, _kind_of(x, parameters))
        at, wants = addresses(parameters), (x_wanted, weights_wanted, scale_wanted)
        dx, dweights, dscale = gpu_call.backward(code, dy, x, weights, scale, at, kept, live, wants, found)
    else:
        dx, dweights, dscale = _backward_on_cpu(
            dy, x, weights, scale, parameters, kept, made, live, (x_wanted, weights_wanted, scale_wanted), found
        )
    for slot in dead:
        # Zeros, not None: with weight zero these parameters are in use, so that decay and momentum act.
        if each_wanted[slot]:
            found[slot] = torch.zeros_like(parameters[slot])
    if dweights is not None and weights.dtype is not dweights.dtype:
        dweights = dweights.to(weights.dtype)
    if dscale is not None and scale.dtype is not dscale.dtype:
        dscale = dscale.to(scale.dtype)
    return [dx, dweights, dscale, *found]


def _kind_of(x: Tensor, parameters: Sequence[Tensor], statistics: Sequence[Tensor] = ()) -> torch.dtype:
    """The type of a program's parameters, which are of one, and of its running statistics, where it has any of them."""
    known = parameters or statistics
    return known[0].dtype if known else x.dtype


def _backward_on_cpu(
    dy: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Tensor,
    made: Program,
    live: int,
    wanted: tuple[bool, bool, bool],
    found: list[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weights and scale, where wanted; those of parameters go into ``found``, at their slots."""
    values, factor = _numbers(x, weights), _numbers(x, scale)
    dx = _empty(x, x.shape) if wanted[0] else None
    dweights = torch.empty(weights.shape, dtype=x.dtype, device=x.device) if wanted[1] else None
    dscale = torch.empty((), dtype=x.dtype, device=x.device) if wanted[2] else None
    made.calls[x.dtype].program_backward(
        made.compiled,
        threads(),
        _sizes(x),
        x.data_ptr(),
        x.stride(),
        values.data_ptr(),
        address(factor),
        live,
        addresses(parameters),
        kept.data_ptr(),
        dy.data_ptr(),
        dy.stride(),
        address(dx),
        x.stride() if dx is None else dx.stride(),
        address(dweights),
        address(dscale),
        list(map(address, found)),
    )
    return dx, dweights, dscale


_ops = torch.ops.srnas_fast
# Defined by schemas and not as custom ops, which look at all tensors of a call once more: here there are dozens.
_library = torch.library.Library("srnas_fast", "FRAGMENT")
_GIVEN = "Tensor x, Tensor weights, Tensor? scale, Tensor[] parameters"
for _name in ("mixed_sum", "mixed_sum_forward"):
    _library.define(f"{_name}({_GIVEN}, Tensor(a!)[] statistics, str program, int live) -> (Tensor, Tensor)")
_library.define(
    f"mixed_sum_backward(Tensor dy, {_GIVEN}, Tensor kept, str program, int live, bool[] wanted) -> Tensor[]"
)


def _mixed_sum_forward(x, weights, scale, parameters, statistics, program, live):
    parameters = [parameter.contiguous() for parameter in parameters]
    kind = _kind_of(x, parameters, statistics)
    return _forward(x, weights, scale, addresses(parameters), addresses(statistics), program_of(program), live, kind)


def _mixed_sum_backward(dy, x, weights, scale, parameters, kept, program, live, wanted):
    """The gradients that are wanted, and no others: compilers look at each result of an operator."""
    parameters = [parameter.contiguous() for parameter in parameters]
    found = _backward(dy, x, weights, scale, parameters, kept, program_of(program), live, wanted)
    return [gradient for gradient, want in zip(found, wanted, strict=True) if want]


for _name, _function in [("mixed_sum_forward", _mixed_sum_forward), ("mixed_sum_backward", _mixed_sum_backward)]:
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _function, _device)
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("srnas_fast::mixed_sum_forward", lib=_library)
def _(x, weights, scale, parameters, statistics, program, live):
    made = program_of(program)
    y = torch.empty(made.result_shape(x), dtype=x.dtype, device=x.device, memory_format=dense_format(x))
    return y, gpu_call.empty_kept(made, x, live) if gpu.on_gpu(x) else x.new_empty(made.kept(live))


@torch.library.register_fake("srnas_fast::mixed_sum_backward", lib=_library)
def _(dy, x, weights, scale, parameters, kept, program, live, wanted):
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))
    rest = [weights, x.new_empty(()) if scale is None else scale, *parameters]
    rest = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in rest]
    return [gradient for gradient, want in zip([dx, *rest], wanted, strict=True) if want]


def forward(
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: Sequence[Tensor],
    statistics: Sequence[Tensor],
    at: tuple[list[int], list[int]],
    made: Program,
    live: int,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the live candidates and what its backward pass needs; moves running statistics.

    Args:
        x: all of its channels; on a CPU float32 or float64. weights: of all candidates.
        scale: of what passes by, or None.
        parameters: at the plan's slots, of x's type, contiguous. statistics: mean, variance and count of each norm.
        at: the addresses of both.
        live: a bit for each candidate.
    """
    if watched(x):
        return _ops.mixed_sum_forward(x, weights, scale, parameters, statistics, made.text, live)
    results = _forward(x, weights, scale, *at, made, live, _kind_of(x, parameters, statistics))
    moved = [statistics[i] for i in made.moving(live)]
    if moved and not moved[0].is_inference():
        torch.autograd.graph.increment_version(moved)
    return results


def backward(dy, x, weights, scale, parameters, kept, made: Program, live: int, wanted) -> list[Tensor | None]:
    """The gradients of x, weights, scale and parameters, None where not wanted."""
    if not watched(x):
        return _backward(dy, x, weights, scale, parameters, kept, made, live, wanted)
    return _by_operator(dy, x, weights, scale, parameters, kept, made, live, wanted)


def _by_operator(
    dy, x, weights, scale, parameters, kept, made: Program, live: int, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Each gradient at the place of its input; an operator is asked for none of candidates that no program serves."""
    own, dead = made.slots(live)
    wanted = [*wanted[:3], *(want and (slot in own or slot in dead) for slot, want in enumerate(wanted[3:]))]
    found = iter(_ops.mixed_sum_backward(dy, x, weights, scale, parameters, kept, made.text, live, wanted))
    return [next(found) if want else None for want in wanted]


class _Differentiable(torch.autograd.Function):
    """``mixed_sum``: the operator with gradients, which a compiler takes apart into those of the two passes."""

    @staticmethod
    def forward(ctx, program, live, statistics, x, weights, scale, *parameters):
        y, kept = _ops.mixed_sum_forward(x, weights, scale, parameters, statistics, program, live)
        ctx.program, ctx.live = program, live
        ctx.save_for_backward(x, weights, scale, kept, *parameters)
        ctx.mark_non_differentiable(kept)
        return y, kept

    @staticmethod
    def backward(ctx, dy, _):
        x, weights, scale, kept, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        made = program_of(ctx.program)
        found = _by_operator(dy, x, weights, scale, parameters, kept, made, ctx.live, wanted)
        return None, None, None, *found


def _mixed_sum(x, weights, scale, parameters, statistics, program, live):
    return _Differentiable.apply(program, live, statistics, x, weights, scale, *parameters)


_library.impl("mixed_sum", _mixed_sum, "CompositeImplicitAutograd")


@register_flop_formula(torch.ops.srnas_fast.mixed_sum_forward)
def _(x, weights, scale, parameters, statistics, program, live, *args, **kwargs) -> int:
    return 2 * program_of(program).macs(x, live)


@register_flop_formula(torch.ops.srnas_fast.mixed_sum_backward)
def _(dy, x, weights, scale, parameters, kept, program, live, wanted, *args, **kwargs) -> int:
    """The outputs made again, and the gradients of inputs and kernels where any is wanted."""
    return 2 * program_of(program).macs(x, live) * (1 + bool(wanted[0]) + any(wanted[3:]))
