"""The nine candidate operations of DLSR: no batch norm, no bias, any number of channels; and the user's own."""

from collections.abc import Callable
from functools import partial

from torch import nn

from srnas_fast.spaces.own import candidate, short_name


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


def made(name: str, channels: int) -> nn.Module:
    """A candidate operation by its name: one of the nine, or a class of the user's own from a loaded file.

    >>> [type(layer).__name__ for layer in made("dil_conv_3x3", 4)]
    ['ReLU', 'Conv2d', 'Conv2d']
    """
    return candidate(short_name(name), CANDIDATES)(channels)
