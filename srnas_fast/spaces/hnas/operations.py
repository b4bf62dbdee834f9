"""The candidate operations of HNAS: six that keep the size, and five that enlarge."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from srnas_fast.spaces.own import candidate, is_own

SCALES = (2, 3, 4)


def batch_norm(channels: int, search: bool, affine: bool = False) -> list[nn.Module]:
    """A batch norm for a search, none for a derived network.

    It keeps no running statistics: they would mix the paths and both resolutions, and fit none of them. So evaluation
    normalises as the training does, and a path is measured by what it is rewarded for.
    """
    return [nn.BatchNorm2d(channels, affine=affine, track_running_stats=False)] if search else []


class ChannelAttention(nn.Module):
    """x times a factor in (0, 1) for each channel, made of the channels' means: (N, C, H, W) in and out, C from 3 up.

    >>> import torch
    >>> ChannelAttention(6)(torch.ones(1, 6, 4, 5)).shape
    torch.Size([1, 6, 4, 5])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 3, 1)
        self.expand = nn.Conv2d(channels // 3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Rcab(nn.Module):
    """Residual channel attention block: (N, C, H, W) in and out. Source: RCAN, arXiv 1807.02758.

    >>> import torch
    >>> Rcab(6, search=True)(torch.ones(1, 6, 4, 5)).shape
    torch.Size([1, 6, 4, 5])
    """

    def __init__(self, channels: int, search: bool):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            *batch_norm(channels, search, affine=True),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            *batch_norm(channels, search, affine=True),
            ChannelAttention(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _separable(channels: int, search: bool, size: int, dilation: int = 1, stages: int = 1) -> nn.Sequential:
    """[ReLU - depthwise - pointwise - batch norm], once or more."""

    def stage() -> list[nn.Module]:
        depthwise = nn.Conv2d(
            channels, channels, size, padding=dilation * (size // 2), dilation=dilation, groups=channels, bias=False
        )
        return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), *batch_norm(channels, search)]

    return nn.Sequential(*(layer for _ in range(stages) for layer in stage()))


def _sub_pixel(channels: int, stride: int) -> nn.Sequential:
    """A convolution makes the pixels of a block as channels; x4 is x2 twice, x1 nothing."""
    steps = {1: [], 4: [2, 2]}.get(stride, [stride])
    pairs = [(nn.Conv2d(channels, step**2 * channels, 3, padding=1), nn.PixelShuffle(step)) for step in steps]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def _deconvolution(channels: int, stride: int) -> nn.ConvTranspose2d:
    size = 5 if stride == 4 else 3
    # At 3 the kernels lie side by side, centred on their pixels. The published layer pads there, too, and makes 3n - 2.
    padding = 0 if stride == 3 else 1
    return nn.ConvTranspose2d(channels, channels, size, stride, padding, output_padding=stride + 2 * padding - size)


def _interpolation(channels: int, stride: int, **how) -> nn.Module:
    return nn.Upsample(scale_factor=stride, **how) if stride > 1 else nn.Identity()


# In the controller's order. Each takes (channels, search), and keeps (N, channels, H, W).
NORMAL: dict[str, Callable[[int, bool], nn.Module]] = {
    "rcab": Rcab,
    "skip_connect": lambda channels, search: nn.Identity(),
    "sep_conv_3x3": partial(_separable, size=3, stages=2),
    "sep_conv_5x5": partial(_separable, size=5, stages=2),
    "dil_conv_3x3": partial(_separable, size=3, dilation=2),
    "dil_conv_5x5": partial(_separable, size=5, dilation=2),
}

# In the controller's order. Each takes (channels, stride) with a stride of 1 to 4, by which it enlarges.
UPSAMPLING: dict[str, Callable[[int, int], nn.Module]] = {
    "sub_pixel": _sub_pixel,
    "deconvolution": _deconvolution,
    "bilinear": partial(_interpolation, mode="bilinear", align_corners=False),
    "nearest": partial(_interpolation, mode="nearest"),
    "area": partial(_interpolation, mode="nearest"),  # the mean over the part of one pixel that a smaller one covers
}


def make_normal(name: str, channels: int, search: bool) -> nn.Module:
    """The candidate that keeps the size, of that name: one of ours, or the user's own, made of the channels only.

    For a search, the user's batch norms keep no running statistics either (see :func:`batch_norm`).

    Raises:
        InputError: there is no such candidate, or the user's class fails.

    >>> sum(p.numel() for p in make_normal("rcab", 8, search=True).parameters())
    1242
    """
    make = candidate(name, NORMAL)
    if not is_own(name):
        return make(channels, search)
    module = make(channels)
    for norm in module.modules():
        if search and isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return module
