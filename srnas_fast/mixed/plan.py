"""The planner: which branch takes which candidate of a mixed operation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from srnas_fast.mixed.activation import shared_by
from srnas_fast.mixed.call import Member, Slots
from srnas_fast.mixed.dense import Dense
from srnas_fast.mixed.norm import uses_batch
from srnas_fast.mixed.patterns import Recognised, recognise
from srnas_fast.mixed.pooled import Pool
from srnas_fast.mixed.separable import Separable, TwoStage
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives.direct import autocast_is_on


@dataclass
class Group:
    """The branches that read one activated input."""

    activation: nn.Module | None
    slot: int | None  # of the activation's parameter
    branches: list[Dense | Separable | TwoStage | Pool] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)  # channels that they take


@dataclass
class Plan:
    """Where each candidate went, and where the parameters of the fused ones stand.

    Attributes:
        places: (module, parameter name) for each slot.
        slots: for each fused candidate its slots. members: its stages.
        groups: convolutions by activation. ``identity``, ``zero``, ``opaque``: candidates by number.
    """

    recognised: list[Recognised]
    merge: bool = True
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    slots: dict[int, list[int]] = field(default_factory=dict)
    members: dict[int, list[Member]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    identity: list[int] = field(default_factory=list)
    zero: list[int] = field(default_factory=list)
    opaque: list[int] = field(default_factory=list)

    def holds(self, ops: Sequence[nn.Module], merge: bool) -> bool:
        """Whether these are the candidates and all are still what they were recognised as."""
        return (
            len(ops) == len(self.recognised)
            and merge == self.merge
            and all(r.op is op and r.unchanged() for r, op in zip(self.recognised, ops, strict=True))
        )

    def takes(self, x: Tensor) -> bool:
        """Whether the fused branches take an input: an image batch of the parameters' type, device and channels."""
        if type(x) not in (Tensor, nn.Parameter) or x.dim() != 4 or not x.numel() or not x.is_floating_point():
            return False
        lowered = x.dtype != torch.float64 and autocast_is_on(x)
        return all(
            parameter.device == x.device
            and (parameter.dtype == x.dtype or (lowered and parameter.dtype != torch.float64))
            for parameter in (module._parameters[name] for module, name in self.places)
        ) and all(group.inputs <= {x.shape[1]} for group in self.groups)

    def shape(self, k: int, x: Tensor) -> tuple[int, ...]:
        """The shape of what a candidate makes of x, one that is not opaque."""
        candidate = self.recognised[k]
        conv = candidate.stages[-1].conv if candidate.stages else None
        channels = x.shape[1] if conv is None else conv.out_channels
        return (x.shape[0], channels, *(-(-size // candidate.stride) for size in x.shape[2:]))

    def dense(self, live: frozenset[int]) -> list[Member]:
        """The live candidates that are dense convolutions."""
        branches = [branch for group in self.groups for branch in group.branches if isinstance(branch, Dense)]
        return [m for branch in branches for m in branch.members if m.candidate in live]


def plan(ops: Sequence[nn.Module], merge: bool) -> Plan:
    """Recognise the candidates and group them into branches.

    Candidates with equal activations share it; those whose batch norm is also another's are run one by one, in order,
    since their running statistics depend on it.
    """
    recognised = [recognise(op) for op in ops]
    made = Plan(recognised, merge)
    norms = [id(s.norm) for r in recognised for s in r.stages if s.norm is not None]
    groups: dict[tuple, Group] = {}
    dense: dict[tuple, list[Member]] = {}
    separable: dict[tuple, list[Member]] = {}
    for k, candidate in enumerate(recognised):
        shared = any(s.norm is not None and norms.count(id(s.norm)) > 1 for s in candidate.stages)
        if candidate.kind == "opaque" or shared:
            made.opaque.append(k)
            continue
        if candidate.kind in ("identity", "zero"):
            getattr(made, candidate.kind).append(k)
            continue
        key = shared_by(candidate.stages[0].activation)
        # What a PReLU that they share learns is learned once, at one slot.
        slope = groups[key].slot if key in groups else None
        members = [
            Member(k, _fixed(stage), _slots(stage, made, k, None if i else slope))
            for i, stage in enumerate(candidate.stages)
        ]
        made.members[k] = members
        first = members[0]
        group = groups.setdefault(key, Group(first.stage.activation, first.slots.activation))
        group.candidates.append(k)
        group.inputs |= _channels(first.stage)
        if candidate.kind == "dense":
            dense.setdefault(key, []).append(first)
        elif candidate.kind == "separable":
            separable.setdefault((key, first.stage.stride), []).append(first)
        elif candidate.kind == "pool":
            group.branches.append(Pool(first))
        else:
            group.branches.append(TwoStage(*members))
    for (key, _), members in separable.items():
        groups[key].branches.insert(0, Separable(members))
    for key, members in dense.items():
        groups[key].branches.insert(0, Dense(members, merge))
    # An activated input first: its gradient turns into that of x in place.
    made.groups = sorted(groups.values(), key=lambda group: group.activation is None)
    return made


def _fixed(stage: Stage) -> Stage:
    """The stage with a slope of its own, so that a backward pass knows that of its forward pass."""
    if type(stage.activation) is not nn.LeakyReLU:
        return stage
    return replace(stage, activation=nn.LeakyReLU(stage.activation.negative_slope))


def _channels(stage: Stage) -> set[int]:
    """The channels that a stage takes; none where it takes any number."""
    if stage.pool is None:
        return {stage.spatial.in_channels}
    slopes = getattr(stage.activation, "num_parameters", 1)
    return ({slopes} if slopes > 1 else set()) | (set() if stage.norm is None else {stage.norm.num_features})


def _slots(stage: Stage, made: Plan, k: int, slope: int | None) -> Slots:
    """New slots for the parameters of a stage, but for that of its activation where that has one already."""

    def slot(module: nn.Module | None, name: str) -> int | None:
        if module is None or module._parameters.get(name) is None:
            return None
        made.places.append((module, name))
        made.slots.setdefault(k, []).append(len(made.places) - 1)
        return len(made.places) - 1

    if slope is not None:
        made.slots.setdefault(k, []).append(slope)
    return Slots(
        slot(stage.depthwise, "weight"),
        slot(stage.conv, "weight"),
        slot(stage.conv, "bias"),
        slot(stage.norm, "weight"),
        slot(stage.norm, "bias"),
        slot(stage.activation, "weight") if slope is None else slope,
    )


def describe(made: Plan, ops: Sequence[nn.Module]) -> str:
    """The plan as a table: candidate, branch, what it reads and keeps, and its structure or why it is opaque."""
    rows: dict[int, tuple[str, str, str]] = {k: ("zero", "nothing", "nothing") for k in made.zero}
    rows |= {k: ("identity", "x", "nothing") for k in made.identity}
    why = {k: recognised.reason for k, recognised in enumerate(made.recognised)}
    for k in made.opaque:
        rows[k] = ("opaque", "x", "its buffers" if any(True for _ in ops[k].buffers()) else "nothing")
        if made.recognised[k].kind != "opaque":
            why[k] = "its batch norm belongs to another candidate too"
    for group in made.groups:
        for branch in group.branches:
            for k, name, stages in branch.rows():
                reads = "x" if group.activation is None else f"{stages[0].activation_name} of x"
                norms = [stage.norm for stage in stages if uses_batch(stage.norm)]
                rows[k] = (name, reads, "batch statistics" if norms else "nothing")
    table = [("", "candidate", "branch", "reads", "keeps beside x", "because it is")]
    table += [(str(k), type(op).__name__, *rows[k], why[k]) for k, op in enumerate(ops)]
    return aligned(table)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells as text, the columns below each other.

    >>> print(aligned([("a", "", "b"), ("long", "x", "c")]))
    a        b
    long  x  c
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
