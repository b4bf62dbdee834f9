"""The nine candidate operations of DLSR: no batch norm, no bias, any number of channels."""

from collections.abc import Callable
from functools import partial

from torch import nn


def _dense(channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, size, padding=size // 2, bias=False))


def _separable(channels: int, size: int, dilation: int = 1, stages: int = 1) -> nn.Sequential:
    """[ReLU - depthwise - pointwise], once or more."""

    def stage() -> list[nn.Module]:
        depthwise = nn.Conv2d(
            channels, channels, size, padding=dilation * (size // 2), dilation=dilation, groups=channels, bias=False
        )
        return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False)]

    return nn.Sequential(*(layer for _ in range(stages) for layer in stage()))


# In registry order: the columns of alpha. The layers' numbers are those of the published checkpoints.
CANDIDATES: dict[str, Callable[[int], nn.Sequential]] = {
    "conv_1x1": partial(_dense, size=1),
    "conv_3x3": partial(_dense, size=3),
    "conv_5x5": partial(_dense, size=5),
    "conv_7x7": partial(_dense, size=7),
    "sep_conv_3x3": partial(_separable, size=3, stages=2),
    "sep_conv_5x5": partial(_separable, size=5, stages=2),
    "sep_conv_7x7": partial(_separable, size=7, stages=2),
    "dil_conv_3x3": partial(_separable, size=3, dilation=2),
    "dil_conv_5x5": partial(_separable, size=5, dilation=2),
}
