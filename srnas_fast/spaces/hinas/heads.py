"""What becomes of a network's last features: the noise that is taken away, or the pixels of an enlarged image."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError

SCALES = (2, 3, 4)
SMALLEST = 8  # pixels: of a smaller image, enlarged twice, a window of SSIM would not fit inside the border


@dataclass(frozen=True)
class Denoise:
    """Gray images without the noise that was predicted.

    Args:
        sigmoid: whether the result goes through one.

    ``colours``: channels of the images. ``predictions``: channels of the prediction.

    >>> import torch
    >>> Denoise(sigmoid=False)(torch.full((1, 1, 2, 2), 0.75), torch.full((1, 1, 2, 2), 0.25)).max().item()
    0.5
    """

    sigmoid: bool
    scale: ClassVar[int] = 1
    colours: ClassVar[int] = 1
    predictions: ClassVar[int] = 1

    def __call__(self, x: Tensor, prediction: Tensor) -> Tensor:
        y = x - prediction
        return y.sigmoid() if self.sigmoid else y


@dataclass(frozen=True)
class Enlarge:
    """RGB images, interpolated, and what was predicted for each of their pixels.

    Args:
        scale: how many times larger: 2, 3 or 4.
        mode: of the interpolation: bilinear or bicubic.
        sigmoid: whether the result goes through one.

    ``colours``: channels of the images. ``predictions``: channels of the prediction, of which a pixel shuffle (ESPCN,
    arXiv 1609.05158) makes the larger image.

    >>> import torch
    >>> head = Enlarge(3, "bicubic", sigmoid=False)
    >>> head(torch.rand(1, 3, 4, 5), torch.zeros(1, head.predictions, 4, 5)).shape
    torch.Size([1, 3, 12, 15])
    """

    scale: int
    mode: str
    sigmoid: bool
    colours: ClassVar[int] = 3

    @property
    def predictions(self) -> int:
        return self.colours * self.scale**2

    def __call__(self, x: Tensor, prediction: Tensor) -> Tensor:
        larger = F.interpolate(x, scale_factor=self.scale, mode=self.mode, align_corners=False)
        y = larger + F.pixel_shuffle(prediction, self.scale)
        return y.sigmoid() if self.sigmoid else y


def require_scale(group: str, scale: int) -> None:
    """Raise InputError for a scale of a configuration that no network has."""
    if scale not in SCALES:
        raise InputError(f"{group}scale is {scale!r}; known: {', '.join(map(str, SCALES))}")
