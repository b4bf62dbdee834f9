"""What a mixed operation has found out about its candidates, and how it confirms at each call that it still holds."""

from collections.abc import Sequence
from functools import lru_cache
from functools import partial as partial_of
from math import prod

import torch
from torch import Tensor, nn

from srnas_fast.backends import cpu_kernels
from srnas_fast.backends.compiled import PARTS
from srnas_fast.errors import InputError
from srnas_fast.mixed import gpu, gpu_program, operators
from srnas_fast.mixed import program as programs
from srnas_fast.mixed.norm import refuse_one_pixel, uses_batch
from srnas_fast.mixed.partial import first_channels
from srnas_fast.mixed.plan import Plan, plan
from srnas_fast.mixed.program import Program
from srnas_fast.mixed.unchanged import shapes_of, watch
from srnas_fast.primitives.direct import autocast_is_on
from srnas_fast.primitives.images import addresses, wide


class Share:
    """What of a mixed operation a program computes.

    Args:
        made: the program.
        candidates: those that it serves.
        prepared: where they come from.
        statistics: mean, variance and count of each of its norms, in its order.
    """

    def __init__(self, made: Program, candidates: frozenset[int], prepared: "Prepared", statistics: list[Tensor]):
        plan = prepared.plan
        self.made, self.candidates = made, candidates
        self.dense, self.statistics = prepared.dense, statistics
        self.facts = [(parameter.shape, parameter.dtype) for parameter in prepared.parameters]
        self.at = addresses(prepared.parameters), addresses(statistics)
        self.norms = [m.stage.norm for k in candidates for m in plan.members.get(k, ()) if uses_batch(m.stage.norm)]

    def forward(
        self, x: Tensor, weights: Tensor, scale: Tensor | None, parameters: Sequence[Tensor], live: frozenset[int]
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the live candidates, and what the backward pass needs beside x."""
        bits = bits_of(live)
        if self.norms and x.shape[0] * x.shape[2] * x.shape[3] <= self.made.stride**2:
            self._refuse_one_pixel(x, bits)
        at = self.at
        if not self.dense:
            parameters = [_readable(parameter) for parameter in parameters]
            at = addresses(parameters), at[1]
        return operators.forward(x, weights, scale, parameters, self.statistics, at, self.made, bits)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weights: Tensor,
        scale: Tensor | None,
        parameters: Sequence[Tensor],
        kept: Tensor,
        live: frozenset[int],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of x, weights, scale and parameters, None where not wanted or of no candidate of the program's.

        ``parameters`` may go on beyond those of the program.
        """
        more = len(wanted) - 3 - len(self.at[0])
        if more:
            parameters, wanted = parameters[:-more], wanted[:-more]
        if [(parameter.shape, parameter.dtype) for parameter in parameters] != self.facts:
            raise RuntimeError(
                "the parameters of a MixedOp have other shapes or types than in the forward pass; something set their "
                ".data before the backward pass"
            )
        parameters = [_readable(parameter) for parameter in parameters]
        found = operators.backward(dy, x, weights, scale, parameters, kept, self.made, bits_of(live), wanted)
        return [*found, *[None] * more] if more else found

    def _refuse_one_pixel(self, x: Tensor, bits: int) -> None:
        n, _, height, width = self.made.result_shape(x)
        if n * height * width == 1 and self.made.normed(bits):
            refuse_one_pixel(self.norms[0])


def _readable(tensor: Tensor) -> Tensor:
    """The tensor as programs read it."""
    return tensor if _is_readable(tensor) else tensor.resolve_neg().contiguous()


def _is_readable(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_neg()


@lru_cache(4096)
def bits_of(live: frozenset[int]) -> int:
    """A bit for each of the candidates."""
    return sum(1 << k for k in live)


class Prepared:
    """A plan of candidates, their tensors, and the programs that serve it.

    Args:
        ops, merge: of the mixed operation.
    """

    def __init__(self, ops: nn.ModuleList, merge: bool):
        self.plan: Plan = plan(ops, merge)
        self._arm(ops)

    def holds(self, ops: nn.ModuleList, merge: bool) -> bool:
        """Whether all of it is as it was; what may change from call to call is looked at anew.

        Confirmed by a watch over classes, submodules, hooks, settings, parameters and buffers as objects and the modes
        of norms (see ``unchanged.watch``), and by address, shape, type and contiguity of every parameter and statistic.
        Where one of them has moved, the plan's photographs decide whether the candidates are still the same.
        """
        if merge != self.plan.merge:
            return False
        if self._watch is not None and self._watch.holds() and shapes_of(self._watched) == self._shapes:
            return True
        if not self.plan.holds(ops, merge):
            return False
        self._arm(ops)
        return True

    def _arm(self, ops: nn.ModuleList) -> None:
        made = self.plan
        self.count = len(made.recognised)
        self.all = frozenset(range(self.count))
        self.parameters = [module._parameters[name] for module, name in made.places]
        norms = [m.stage.norm for members in made.members.values() for m in members if m.stage.norm is not None]
        running = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
        counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        self.tensors = [*self.parameters, *running]
        self._watched = [*self.tensors, *counts]
        self._shapes = shapes_of(self._watched)
        self.dense = all(map(_is_readable, self.parameters))
        # A type of all of them, or None where there are several; a plan without parameters has none.
        kinds = {(tensor.dtype, tensor.device) for tensor in self.tensors}
        self._kind = kinds.pop() if len(kinds) == 1 else None
        self._any = not self.tensors
        self._shares: dict[tuple, Share | None] = {}
        self._channels: dict[tuple[int, int], bool] = {}  # whether images of so many, and partial, are taken
        self._watch = watch((module for r in made.recognised for module in r._modules), [ops._modules])

    def live(self, support: Tensor | Sequence[bool] | None) -> frozenset[int]:
        """The numbers of the live candidates; raises InputError where a support names no such."""
        if support is None:
            return self.all
        if hasattr(support, "tolist"):  # of tensors and arrays
            support = support.tolist()
        wrong = not isinstance(support, Sequence) or len(support) != self.count
        if wrong or any(alive not in (0, 1) for alive in support):
            raise InputError(f"MixedOp support is {support!r}; give {self.count} booleans, one per candidate")
        live = frozenset(k for k, alive in enumerate(support) if alive)
        if not live:
            raise InputError("MixedOp support names no live candidate; at least one of them must be True")
        return live

    def takes(self, x: Tensor, partial: int) -> bool:
        """Whether fused candidates take an input, of which they see the first channels; see ``Plan.takes``."""
        if type(x) is Tensor and x.dim() == 4 and self._kind == (x.dtype, x.device) and x.numel():
            channels = x.shape[1]
            known = self._channels.get((channels, partial))
            if known is None:
                known = self._channels[channels, partial] = self.plan.takes(first_channels(x.detach(), partial))
            return known
        return self.plan.takes(first_channels(x.detach(), partial))

    def share(self, x: Tensor, live: frozenset[int], partial: int) -> tuple[Share | None, bool]:
        """What a program computes for images like x, all of its channels, and whether it does all that there is to do.

        With partial channels it takes x whole where it does, else what the candidates see of it.
        """
        if not (programs.enabled and self._serves(x)):
            return None, False
        share = self._share(x, partial)
        if share is None:
            return None, False
        if gpu.on_gpu(x) and prod(share.made.result_shape(x)[1:]) >= gpu.FARTHEST:
            return None, False
        # Parameters of opaque candidates get gradients also where these are dead.
        alone = not self.plan.opaque and live <= share.candidates
        if alone and (partial == 1 or share.made.stride == 1 or not (x.shape[2] % 2 or x.shape[3] % 2)):
            return share, True
        # Beside branches it reads what these compute with.
        size = (1, x.shape[1] // partial, 1, 1)
        return self._share(x.detach().new_empty(size, dtype=wide(x)), 1), False

    def _serves(self, x: Tensor) -> bool:
        """Whether this device has programs for images and parameters of these types."""
        if gpu.on_gpu(x):
            kind = self._kind or (x.dtype, x.device)
            known = kind[0] in gpu.TYPES and kind[1] == x.device
            return (self._any or self._kind is not None) and known and gpu.takes(x)
        dtype = wide(x)
        known = x.is_cpu and dtype in PARTS and (self._any or self._kind == (dtype, x.device))
        return known and cpu_kernels() is not None

    def _share(self, x: Tensor, partial: int) -> Share | None:
        key = x.shape[1], partial, (x.dtype, autocast_is_on(x)) if gpu.on_gpu(x) else None
        if key not in self._shares:
            self._shares[key] = self._make(x, partial)
        return self._shares[key]

    def _make(self, x: Tensor, partial: int) -> Share | None:
        described = self._describe(x, partial)
        if described is None:
            return None
        made, candidates, statistics = described
        if gpu.on_gpu(x) and gpu.code_of(made, x, self.kind_of(x)) is None:
            return None
        return Share(made, candidates, self, statistics)

    def kind_of(self, x: Tensor) -> torch.dtype:
        """The type of the parameters; that of x where there are none."""
        return self._kind[0] if self._kind else x.dtype

    def program_for(self, x: Tensor, partial: int) -> Program | None:
        """The program that serves images like x, not compiled yet."""
        described = self._describe(x, partial) if programs.enabled and self._serves(x) else None
        return described and described[0]

    def _describe(self, x: Tensor, partial: int) -> tuple[Program, frozenset[int], list[Tensor]] | None:
        """A program, the candidates that it serves, and the statistics of its norms."""
        channels = x.shape[1] // partial
        takes = programs.takes_on_cpu
        if gpu.on_gpu(x):  # in branches torch's own convolutions run in autocast's type
            takes = partial_of(gpu_program.takes, outside=not autocast_is_on(x))
        candidates = programs.served(self.plan, channels, takes)
        if not candidates:
            return None
        outputs, stride = programs.result_of(self.plan, min(candidates), channels)
        if partial > 1 and (outputs != channels or stride > 2):
            return None  # refused where it is computed
        text, norms = programs.describe(self.plan, candidates, channels, partial)
        statistics = []
        for norm in norms:
            count = norm.num_batches_tracked
            statistics += [norm.running_mean, norm.running_var, norm.running_mean if count is None else count]
            if count is not None and (count.dtype != torch.int64 or count.device != x.device):
                return None
        if not all(map(_is_readable, statistics)):
            return None  # they are written where they are
        return programs.program_of(text), candidates, statistics
