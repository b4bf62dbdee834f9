"""What the supernet and the derived networks share: the two ends, the ups, and how a cell is added to its input."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.trilevel.genotype import VARIANTS

SCALES = (2, 3, 4)
COLOURS = 3
SMALLEST = 8  # pixels to learn from: of a smaller image, enlarged twice, no window of SSIM would fit inside the border
OUTPUTS = ("tanh", "plain", "added")
RESIDUAL = 0.2  # of what a cell makes is added to its input
FACTORS = {2: [2], 3: [3], 4: [2, 2]}  # by how much each up of variant A enlarges


def factors(variant: str, scale: int, ups: int) -> list[int]:
    """By how much each of so many ups enlarges.

    Raises:
        InputError: variant A needs one up at x2 and x3, and two at x4.

    >>> factors("A", 4, 2), factors("B", 4, 2)
    ([2, 2], [1, 1])
    """
    if variant == "B":
        return [1] * ups
    if ups != len(FACTORS[scale]):
        raise InputError(f"{ups} ups at x{scale}, but in variant A they enlarge: it needs {len(FACTORS[scale])} there")
    return FACTORS[scale]


def up(width: int, variant: str, factor: int) -> nn.Module:
    """A step from one level to the next: (N, C, H, W) in, (N, C, factor * H, factor * W) out; in variant B a
    convolution, and nothing else."""
    conv = nn.Conv2d(width, width, 3, padding=1)
    if variant == "B":
        return conv
    return nn.Sequential(nn.Upsample(scale_factor=factor, mode="nearest"), conv, nn.LeakyReLU(0.2))


class Frame(nn.Module):
    """The first convolution, and the last with what becomes of it.

    Args:
        width: channels between them.
        variant: A: the features have the size of the result. B: a pixel shuffle enlarges.
        scale: how many times larger the result is.
        output: tanh: (tanh + 1) / 2. plain: as it is. added: to the image, enlarged bicubically; it starts as that.

    ``first(x)``, ``result(features, x)``: images (N, 3, H, W) on the [0, 1] scale in, features out; and back.
    """

    def __init__(self, width: int, variant: str, scale: int, output: str):
        super().__init__()
        self.scale, self.output = scale, output
        self.shuffle = scale if variant == "B" else 1
        self.head = nn.Conv2d(COLOURS, width, 3, padding=1)
        self.tail = nn.Conv2d(width, COLOURS * self.shuffle**2, 3, padding=1)
        if output == "added":
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)

    def first(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != COLOURS or not x.numel():
            raise InputError(
                f"TrilevelNAS got images of shape {tuple(x.shape)}; give (N, {COLOURS}, H, W), RGB on the [0, 1] scale"
            )
        return self.head(x)

    def result(self, features: Tensor, x: Tensor) -> Tensor:
        y = self.tail(features)
        if self.shuffle > 1:
            y = F.pixel_shuffle(y, self.shuffle)
        if self.output == "tanh":
            return (y.tanh() + 1) / 2
        if self.output == "added":
            return y + F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return y


def added(x: Tensor, y: Tensor) -> Tensor:
    """A cell's result y, added to its input x."""
    return torch.add(x, y, alpha=RESIDUAL)


def multi_adds_of(width: int, variant: str, scale: int, ups: int) -> tuple[int, int, list[int], list[int]]:
    """Multi-Adds for a low-resolution pixel: of the first and of the last convolution, of an up into each level from
    the first on, and how many pixels each level has for one, from level 0 on.

    >>> multi_adds_of(64, "A", 4, 2)
    (1728, 27648, [147456, 589824], [1, 4, 16])
    """
    sides = [1]
    for factor in factors(variant, scale, ups):
        sides.append(sides[-1] * factor)
    pixels = [side**2 for side in sides]
    end = 9 * width * COLOURS
    return end, end * scale**2, [9 * width**2 * count for count in pixels[1:]], pixels


def require_frame(group: str, settings: Any) -> None:
    """Refuse a scale, variant or output that is unknown; raises InputError."""
    for name, known in (("scale", SCALES), ("variant", VARIANTS), ("output", OUTPUTS)):
        if hasattr(settings, name) and getattr(settings, name) not in known:
            raise InputError(f"{group}{name} is {getattr(settings, name)!r}; known: {', '.join(map(str, known))}")


def needed_before(interval: tuple[int, int], module: nn.Module) -> tuple[int, int]:
    """Which pixels, along one side, an up or a chain of convolutions needs for an interval of its result's pixels.

    >>> needed_before((0, 3), up(8, "A", 2)), needed_before((0, 3), up(8, "B", 1))
    ((-1, 2), (-1, 4))
    """
    low, high = interval
    for layer in reversed(list(module.modules())):
        if isinstance(layer, nn.Conv2d):
            far = layer.dilation[0] * (layer.kernel_size[0] // 2)
            low, high = low - far, high + far
        elif isinstance(layer, nn.Upsample):
            factor = math.ceil(layer.scale_factor)
            low, high = low // factor, high // factor
    return low, high
