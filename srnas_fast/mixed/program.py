"""Programs: a plan's candidates as numbers, compiled once, run by one call into C++ in each direction.

A program is its description, a text. All mixed operations that are alike have the same one, and a graph that was
compiled by one process can be run by another. What is computed stands in ``csrc/program``, how on a CPU in
``csrc/cpu``; the branches beside this file compute the same in Python.
"""

from ast import literal_eval
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.backends import cpu_kernels
from srnas_fast.backends.compiled import PARTS
from srnas_fast.errors import InputError
from srnas_fast.mixed.call import Member
from srnas_fast.mixed.layers import Sine
from srnas_fast.mixed.norm import uses_batch
from srnas_fast.mixed.plan import Plan
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives.narrow_convolution import MOST_CHANNELS
from srnas_fast.primitives.pool import COMPILED

FORMAT = 2  # raise it with every change of what descriptions mean, or of what operators take and return
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
        self.on_gpu: dict[tuple[torch.dtype, torch.dtype], Any] = {}  # by the types of images and parameters
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


_programs: dict[str, Program] = {}


def program_of(text: str) -> Program:
    """The program of a description; one for all that give the same."""
    found = _programs.get(text)
    if found is None:
        if len(_programs) >= MOST_PROGRAMS:  # of a setting that is another at every step
            _programs.clear()
        found = _programs[text] = Program(text)
    return found


def served(made: Plan, channels: int, takes: Callable[[Stage, int], bool]) -> frozenset[int]:
    """The candidates that a program computes, of images of so many channels.

    Not opaque ones, and not those with a stage that the device's code does not take.
    """
    if len(made.recognised) > MOST_CANDIDATES:
        return frozenset()
    fused = [k for k in range(len(made.recognised)) if k not in made.opaque]
    found = [k for k in fused if all(_settled(m.stage) and takes(m.stage, channels) for m in made.members.get(k, ()))]
    shapes = {result_of(made, k, channels) for k in found}
    return frozenset(found if len(shapes) == 1 else ())


def takes_on_cpu(stage: Stage, channels: int) -> bool:
    """Not pools of unusual sizes, and not dense convolutions of many channels, which oneDNN does better."""
    if stage.kind == "pool":
        return stage.size in COMPILED
    return stage.kind == "separable" or max(stage.conv.out_channels, stage.conv.in_channels) <= MOST_CHANNELS


def _settled(stage: Stage) -> bool:
    """Whether all that is not a tensor is a number that stays."""
    norm, slope = stage.norm, getattr(stage.activation, "negative_slope", 0)
    if not _plain(slope) or (norm is not None and not (_plain(norm.eps) and _plain(norm.momentum))):
        return False
    return norm is None or norm.momentum is None or norm.momentum >= 0


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
