"""The pooling branch: a window's maximum or average [- batch norm], from its input and dy alone."""

from torch import Tensor, nn

from srnas_fast.mixed.call import Call, Member, Return
from srnas_fast.mixed.normed import add_normed, normed_gradient, plus
from srnas_fast.mixed.stage import Stage
from srnas_fast.primitives import pool, pool_backward


class Pool:
    """A candidate [act -] pooling [- batch norm]."""

    def __init__(self, member: Member):
        self.member = member

    def forward(self, call: Call, a: Tensor, y: Tensor | None) -> Tensor | None:
        if self.member.candidate not in call.live:
            return y
        y, call.kept[self] = add_normed(call, self.member, self._pool(a), y)
        return y

    def backward(self, call: Return, a: Tensor, dy: Tensor, da: Tensor | None, a_wanted: bool) -> Tensor | None:
        if self not in call.kept:
            return da
        dz = normed_gradient(call, self.member, call.kept[self], lambda: self._pool(a), dy, a_wanted)
        if dz is None:
            return da
        part = pool_backward(dz, a, *_settings(self.member.stage))
        return plus(da, part)

    def rows(self) -> list[tuple[int, str, list[Stage]]]:
        """For the candidate the name of its branch and its stages."""
        stage = self.member.stage
        return [(self.member.candidate, "pool" + " with batch norm" * (stage.norm is not None), [stage])]

    def _pool(self, a: Tensor) -> Tensor:
        return pool(a, *_settings(self.member.stage))


def _settings(stage: Stage) -> tuple[str, int, int, bool]:
    """What the primitive needs of a pooling: kind, size, stride, whether an average counts the padding."""
    average = isinstance(stage.pool, nn.AvgPool2d)
    counts = average and bool(stage.pool.count_include_pad)
    return "average" if average else "max", stage.size, stage.stride, counts
