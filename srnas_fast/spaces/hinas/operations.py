"""The seven candidate operations of HiNAS and the layers that its networks are built from."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from srnas_fast.mixed.layers import Sine, Zero

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "sine": Sine,
}


def conv_bn(
    inputs: int, outputs: int, size: int, dilation: int = 1, groups: int = 1, affine: bool = True
) -> nn.Sequential:
    """Convolution without bias that keeps height and width, then batch norm."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, affine=affine),
    )


def conv_bn_act(
    inputs: int, outputs: int, size: int, activation: str, dilation: int = 1, groups: int = 1, affine: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and activation.

    The activation works in place where it can, since no batch norm reads its own result in the backward pass: a third
    less to hold.
    """
    act = ACTIVATIONS[activation]()
    if hasattr(act, "inplace"):
        act.inplace = True
    return nn.Sequential(*conv_bn(inputs, outputs, size, dilation, groups, affine), act)


def _dense(channels: int, activation: str, affine: bool, size: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(ACTIVATIONS[activation](), *conv_bn(channels, channels, size, dilation, affine=affine))


def _separable(channels: int, activation: str, affine: bool, size: int) -> nn.Sequential:
    def half(act: bool) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
        return [ACTIVATIONS[activation]()] * act + [depthwise, *conv_bn(channels, channels, 1, affine=affine)]

    # The periodic variant takes the sine once, at the entry.
    return nn.Sequential(*half(True), *half(activation != "sine"))


# In registry order: the columns of alpha. Each takes (channels, activation, affine).
CANDIDATES: dict[str, Callable[[int, str, bool], nn.Module]] = {
    "con_c_3x3": partial(_dense, size=3),
    "sep_c_3x3": partial(_separable, size=3),
    "sep_c_5x5": partial(_separable, size=5),
    "dil_c_3x3": partial(_dense, size=3, dilation=2),
    "dil_c_5x5": partial(_dense, size=5, dilation=2),
    "skip_connect": lambda channels, activation, affine: nn.Identity(),
    "none": lambda channels, activation, affine: Zero(),
}


class SpatialPyramid(nn.Module):
    """Atrous spatial pyramid: a 1x1 branch beside one dilated separable branch per rate, joined by a 1x1.

    Args:
        inputs, branch, outputs: channels of the input, of each branch and of the result.
        rates: dilations of the 3x3 depthwise convolutions.
        affine: whether the batch norms of the 1x1 convolutions scale and shift; those of the dilated branches
            always do, as published.
    """

    def __init__(self, inputs: int, branch: int, outputs: int, rates: list[int], activation: str, affine: bool):
        super().__init__()
        self.point = conv_bn_act(inputs, branch, 1, activation, affine=affine)
        self.dilated = nn.ModuleList(separable(inputs, branch, activation, rate) for rate in rates)
        self.join = conv_bn_act(branch * (1 + len(rates)), outputs, 1, activation, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.point(x), *(branch(x) for branch in self.dilated)], dim=1))


def separable(inputs: int, outputs: int, activation: str, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3 - BN - activation - 1x1 - BN - activation, affine: the decoder's separable convolution."""
    return nn.Sequential(
        *conv_bn_act(inputs, inputs, 3, activation, dilation, groups=inputs),
        *conv_bn_act(inputs, outputs, 1, activation),
    )
