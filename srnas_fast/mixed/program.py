"""Programs: a plan's candidates as numbers, compiled once, run by one call into C++ in each direction.

A program is its description, a text. All mixed operations that are alike have the same one, and a graph that was
compiled by one process can be run by another. What is computed stands in ``csrc/program``, how on a CPU in
``csrc/cpu``; the branches beside this file compute the same in Python.
"""

from ast import literal_eval
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.backends import cpu_kernels
from srnas_fast.backends.compiled import PARTS
from srnas_fast.backends.openmp import threads
from srnas_fast.errors import InputError
from srnas_fast.mixed.call import Member
from srnas_fast.mixed.layers import Sine
from srnas_fast.mixed.norm import refuse_one_pixel, uses_batch
from srnas_fast.mixed.plan import Plan
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives.direct import watched
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import address, addresses, check_one_device, dense_format
from srnas_fast.primitives.narrow_convolution import MOST_CHANNELS
from srnas_fast.primitives.pool import COMPILED

FORMAT = 1  # of descriptions: raise it with every change of what they mean
MOST_PROGRAMS = 1024  # that are remembered by their texts
MOST_CANDIDATES = 62  # that fit into the bits of a support
_ACTIVATIONS = {type(None): 0, nn.ReLU: 1, nn.LeakyReLU: 2, nn.PReLU: 3, Sine: 4}
_DENSE, _SEPARABLE, _MAX, _AVERAGE = range(4)
_BATCH, _FROZEN = 1, 2  # what a norm uses

enabled = True  # False: everything runs in the branches, which tests hold the programs to


class Program:
    """A description and what follows from it.

    Args:
        text: the literal of (FORMAT, channels, outputs, stride, partial, merge, candidates); see
            ``csrc/program/program.h``.

    Raises:
        InputError: it is of another version's format, as it may stand in a graph that was compiled and cached.
    """

    def __init__(self, text: str):
        self.text = text
        version, *self.description = literal_eval(text)
        if version != FORMAT:
            raise InputError(
                f"a compiled graph asks for a program of format {version}, this version of srnas_fast has {FORMAT}; "
                "clear the compiler's cache (TORCHINDUCTOR_CACHE_DIR) and compile again"
            )
        self.channels, self.outputs, self.stride, self.partial, self.merge, self.candidates = self.description
        # Of each support that comes up; a bound, since a random one may be another at every call.
        self.kept = lru_cache(1024)(self._kept)
        self.slots = lru_cache(1024)(self._slots)
        self.moving = lru_cache(1024)(self._moving)
        self.normed = lru_cache(1024)(self._normed)

    @cached_property
    def compiled(self):
        """What the C++ code makes of it."""
        return cpu_kernels().Program(*self.description)

    @cached_property
    def calls(self) -> dict[torch.dtype, Any]:
        """The compiled code that runs it, for each type of images."""
        return {dtype: getattr(cpu_kernels(), part) for dtype, part in PARTS.items()}

    def result_shape(self, x: Tensor) -> tuple[int, ...]:
        """Of y, for x with all of its channels."""
        n, _, height, width = x.shape
        size = (height - 1) // self.stride + 1, (width - 1) // self.stride + 1
        return n, self.outputs * self.partial, *size

    def _kept(self, live: int) -> int:
        """How many numbers the forward pass leaves for the backward pass."""
        count = 0
        for kind, _, _, _, inputs, outputs, _, _, _, _, norm, *_ in self._stages(live):
            count += 3 * outputs if norm else 0
            count += inputs + outputs * inputs if norm == _BATCH and kind == _SEPARABLE else 0
        return count

    def _moving(self, live: int) -> list[int]:
        """Which running statistics follow the batch."""
        places = [stage[15] for stage in self._stages(live) if stage[13] and stage[10] == _BATCH]
        return [3 * place + i for place in places for i in range(3)]

    def _slots(self, live: int) -> tuple[frozenset[int], frozenset[int]]:
        """Where the parameters of the live candidates stand, and those of the dead ones."""
        own = {slot for stage in self._stages(live) for slot in stage[16] if slot >= 0}
        dead = {slot for stage in self._stages(~live) for slot in stage[16] if slot >= 0}
        return frozenset(own), frozenset(dead - own)

    def _normed(self, live: int) -> bool:
        """Whether a live candidate takes the statistics of its batch."""
        return any(stage[10] == _BATCH for stage in self._stages(live))

    def _stages(self, live: int = -1) -> list[tuple]:
        return [stage for k, (_, _, stages) in enumerate(self.candidates) if live >> k & 1 for stage in stages]

    def macs(self, x: Sequence[int], live: int) -> int:
        """Multiply-adds of the live candidates' convolutions, as plain torch would run them."""
        pixels, total = x[0] * -(-x[2] // self.stride) * -(-x[3] // self.stride), 0
        for kind, _, _, _, inputs, outputs, size, *_ in self._stages(live):
            total += inputs * outputs * size**2 * (kind == _DENSE) + inputs * (size**2 + outputs) * (kind == _SEPARABLE)
        return pixels * total


_ops = torch.ops.srnas_fast
_programs: dict[str, Program] = {}


def program_of(text: str) -> Program:
    """The program of a description; one for all that give the same."""
    found = _programs.get(text)
    if found is None:
        if len(_programs) >= MOST_PROGRAMS:  # of a setting that is another at every step
            _programs.clear()
        found = _programs[text] = Program(text)
    return found


def served(made: Plan, channels: int) -> frozenset[int]:
    """The candidates that a program computes, of images of so many channels.

    Not opaque ones, pools of unusual sizes, and dense convolutions of many channels, which oneDNN does better.
    """
    if len(made.recognised) > MOST_CANDIDATES:
        return frozenset()
    fused = [k for k in range(len(made.recognised)) if k not in made.opaque]
    found = [k for k in fused if all(_serves(m.stage) for m in made.members.get(k, ()))]
    shapes = {result_of(made, k, channels) for k in found}
    return frozenset(found if len(shapes) == 1 else ())


def _serves(stage: Stage) -> bool:
    norm, slope = stage.norm, getattr(stage.activation, "negative_slope", 0)
    if not _plain(slope) or (norm is not None and not (_plain(norm.eps) and _plain(norm.momentum))):
        return False
    if norm is not None and norm.momentum is not None and norm.momentum < 0:
        return False
    if stage.kind == "pool":
        return stage.size in COMPILED
    return stage.kind == "separable" or max(stage.conv.out_channels, stage.conv.in_channels) <= MOST_CHANNELS


def _plain(value: Any) -> bool:
    """Whether a description can hold a setting: a number, and no tensor, which would change in place."""
    return value is None or (type(value) in (int, float) and isfinite(value))


def result_of(made: Plan, k: int, channels: int) -> tuple[int, int]:
    """Channels and stride of what a candidate makes of so many channels."""
    candidate = made.recognised[k]
    conv = candidate.stages[-1].conv if candidate.stages else None
    return channels if conv is None else conv.out_channels, candidate.stride


def describe(made: Plan, candidates: Collection[int], channels: int, partial: int) -> tuple[str, list[nn.Module]]:
    """The description of a program for these candidates, in the modes that their norms are in now, and the norms whose
    running statistics it takes, in order."""
    outputs, stride = result_of(made, min(candidates), channels)
    norms: list[nn.Module] = []
    group_of = {k: number for number, group in enumerate(made.groups) for k in group.candidates}
    rows = []
    for k in range(len(made.recognised)):
        if k not in candidates or k in made.zero:
            rows.append((0, -1, []))
        elif k in made.identity:
            rows.append((1, -1, []))
        else:
            stages = [_stage(member, channels, norms) for member in made.members[k]]
            rows.append((2, group_of[k], stages))
    return repr((FORMAT, channels, outputs, stride, partial, made.merge, rows)), norms


def _stage(member: Member, channels: int, norms: list[nn.Module]) -> tuple:
    stage, slots = member.stage, member.slots
    if stage.pool is None:
        kind = _DENSE if stage.depthwise is None else _SEPARABLE
        inputs, outputs = stage.spatial.in_channels, stage.conv.out_channels
    else:
        kind = _AVERAGE if isinstance(stage.pool, nn.AvgPool2d) else _MAX
        inputs = outputs = channels
    norm, mode, place = stage.norm, 0, -1
    if norm is not None:
        mode = _BATCH if uses_batch(norm) else _FROZEN
        if norm.running_mean is not None:
            place = len(norms)
            norms.append(norm)
    activation = stage.activation
    counted = norm is not None and norm.num_batches_tracked is not None
    momentum = None if norm is None else norm.momentum
    if momentum is None:
        momentum = -1.0 if counted else 0.0
    return (
        kind,
        _ACTIVATIONS[type(activation)],
        float(getattr(activation, "negative_slope", 0)),
        getattr(activation, "num_parameters", 0),
        inputs,
        outputs,
        stage.size,
        stage.dilation,
        stage.stride,
        kind == _AVERAGE and bool(stage.pool.count_include_pad),
        mode,
        0.0 if norm is None else float(norm.eps),
        float(momentum),
        norm is not None and norm.training and norm.track_running_stats and place >= 0,
        counted,
        place,
        [-1 if slot is None else slot for slot in slots],
    )


# ---------------------------------------------------------------------------------------------------------- two calls


def _numbers(x: Tensor, values: Tensor | None) -> Tensor | None:
    """Weights, or a scale, as programs read them."""
    if values is None:
        return None
    check_one_device(x, values)
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
) -> tuple[Tensor, Tensor]:
    """y and what its backward pass needs; moves running statistics. Parameters and statistics by their addresses."""
    _check(x, weights, made, live)
    x, weights, scale = x.resolve_neg(), _numbers(x, weights), _numbers(x, scale)
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


def _run_backward(
    dy: Tensor,
    x: Tensor,
    weights: Tensor,
    scale: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Tensor,
    made: Program,
    live: int,
    dx: Tensor | None,
    at: list[int],
) -> None:
    """Computes the gradient of x, and at addresses those of weights, scale and parameters: 0 where not wanted."""
    _check(x, weights, made, live)
    values, factor = _numbers(x, weights), _numbers(x, scale)
    x, dy = x.resolve_neg(), dy.resolve_neg()
    if dy.shape != made.result_shape(x) or dy.dtype != x.dtype or not dy.is_cpu:
        raise RuntimeError(f"the gradient of a MixedOp is {tuple(dy.shape)} of {dy.dtype}, its result was another")
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
        at[0],
        at[1],
        at[2:],
    )


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
    dx = _empty(x, x.shape) if x_wanted else None
    dweights = torch.empty(weights.shape, dtype=x.dtype, device=x.device) if weights_wanted else None
    dscale = torch.empty((), dtype=x.dtype, device=x.device) if scale_wanted else None
    own, dead = made.slots(live)
    found = [
        torch.empty_like(parameter) if want and slot in own else None
        for slot, (parameter, want) in enumerate(zip(parameters, each_wanted, strict=True))
    ]
    at = [address(dweights), address(dscale), *map(address, found)]
    _run_backward(dy, x, weights, scale, parameters, kept, made, live, dx, at)
    for slot in dead:
        # Zeros, not None: with weight zero these parameters are in use, so that decay and momentum act.
        if each_wanted[slot]:
            found[slot] = torch.zeros_like(parameters[slot])
    if dweights is not None and weights.dtype is not x.dtype:
        dweights = dweights.to(weights.dtype)
    if dscale is not None and scale.dtype is not x.dtype:
        dscale = dscale.to(scale.dtype)
    return [dx, dweights, dscale, *found]


# ------------------------------------------------------------------- the same as operators, for who watches or compiles


# Defined by schemas and not as custom ops, which look at all tensors of a call once more: here there are dozens.
_library = torch.library.Library("srnas_fast", "FRAGMENT")
_GIVEN = "Tensor x, Tensor weights, Tensor? scale, Tensor[] parameters"
for _name in ("mixed_sum", "mixed_sum_forward"):
    _library.define(f"{_name}({_GIVEN}, Tensor(a!)[] statistics, str program, int live) -> (Tensor, Tensor)")
_library.define(
    f"mixed_sum_backward(Tensor dy, {_GIVEN}, Tensor kept, str program, int live, bool[] wanted) -> (Tensor, Tensor)"
)


def _mixed_sum_forward(x, weights, scale, parameters, statistics, program, live):
    parameters = [parameter.contiguous() for parameter in parameters]
    return _forward(x, weights, scale, addresses(parameters), addresses(statistics), program_of(program), live)


def _mixed_sum_backward(dy, x, weights, scale, parameters, kept, program, live, wanted):
    """The gradient of x and, one after the other in one tensor, all others that are wanted: compilers look at each
    result of an operator, and cutting one in pieces costs them nothing."""
    made = program_of(program)
    parameters = [parameter.contiguous() for parameter in parameters]
    own, dead = made.slots(live)
    at, end = [], 0
    for count, want in zip(_counts(made, parameters), wanted[1:], strict=True):
        at.append(end if want else -1)
        end += count if want else 0
    dx = _empty(x, x.shape) if wanted[0] else x.new_empty(0)
    # Zeros, not nothing, are the gradients of dead candidates: they are in use, so that decay and momentum act.
    rest = x.new_zeros(end) if any(wanted[3 + slot] for slot in dead) else x.new_empty(end)
    first, size = rest.data_ptr(), rest.element_size()
    # The compiled code writes no gradient of dead candidates.
    places = [0 if place < 0 else first + size * place for place in at]
    for slot in dead:
        places[2 + slot] = 0
    _run_backward(dy, x, weights, scale, parameters, kept, made, live, dx if wanted[0] else None, places)
    return dx, rest


def _counts(made: Program, parameters: Sequence[Tensor]) -> list[int]:
    """How many numbers weights, scale and parameters have."""
    return [len(made.candidates), 1, *(parameter.numel() for parameter in parameters)]


def _cut(dx: Tensor, rest: Tensor, made: Program, weights, scale, parameters, wanted) -> list[Tensor | None]:
    """The gradients at the places of their inputs."""
    found, end = [dx if wanted[0] else None], 0
    inputs = [weights, scale, *parameters]
    for tensor, count, want in zip(inputs, _counts(made, parameters), wanted[1:], strict=True):
        found.append(rest[end : end + count].view(tensor.shape).to(tensor.dtype) if want else None)
        end += count if want else 0
    return found


for _name, _function in [("mixed_sum_forward", _mixed_sum_forward), ("mixed_sum_backward", _mixed_sum_backward)]:
    _library.impl(_name, _function, "CPU")
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("srnas_fast::mixed_sum_forward", lib=_library)
def _(x, weights, scale, parameters, statistics, program, live):
    made = program_of(program)
    y = torch.empty(made.result_shape(x), dtype=x.dtype, device=x.device, memory_format=dense_format(x))
    return y, x.new_empty(made.kept(live))


@torch.library.register_fake("srnas_fast::mixed_sum_backward", lib=_library)
def _(dy, x, weights, scale, parameters, kept, program, live, wanted):
    shape = x.shape if wanted[0] else (0,)
    dx = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x) if wanted[0] else None)
    counts = zip(_counts(program_of(program), parameters), wanted[1:], strict=True)
    return dx, x.new_empty(sum(count for count, want in counts if want))


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
        x: all of its channels, float32 or float64. weights: of all candidates. scale: of what passes by, or None.
        parameters: at the plan's slots, of x's type, contiguous. statistics: mean, variance and count of each norm.
        at: the addresses of both.
        live: a bit for each candidate.
    """
    if watched(x):
        return _ops.mixed_sum_forward(x, weights, scale, parameters, statistics, made.text, live)
    results = _forward(x, weights, scale, *at, made, live)
    moved = [statistics[i] for i in made.moving(live)]
    if moved and not moved[0].is_inference():
        torch.autograd.graph.increment_version(moved)
    return results


def backward(dy, x, weights, scale, parameters, kept, made: Program, live: int, wanted) -> list[Tensor | None]:
    """The gradients of x, weights, scale and parameters, None where not wanted."""
    if not watched(x):
        return _backward(dy, x, weights, scale, parameters, kept, made, live, wanted)
    own, dead = made.slots(live)  # an operator returns tensors only, so it is not asked for those of other candidates
    wanted = [*wanted[:3], *(want and (slot in own or slot in dead) for slot, want in enumerate(wanted[3:]))]
    found = _ops.mixed_sum_backward(dy, x, weights, scale, parameters, kept, made.text, live, wanted)
    return _cut(*found, made, weights, scale, parameters, wanted)


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
        found = _ops.mixed_sum_backward(dy, x, weights, scale, parameters, kept, ctx.program, ctx.live, wanted)
        return None, None, None, *_cut(*found, program_of(ctx.program), weights, scale, parameters, wanted)


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
