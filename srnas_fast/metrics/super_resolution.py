"""PSNR and SSIM as the super-resolution papers give them: of 8-bit images, on luma or RGB, inside a border."""

import numpy as np

from srnas_fast.errors import InputError
from srnas_fast.metrics.quality import PEAK, psnr, ssim

_LUMA = np.array([65.481, 128.553, 24.966]) / PEAK  # ITU-R BT.601, as MATLAB's rgb2ycbcr: Y from 16 to 235


def compared_part(image: np.ndarray, border: int, space: str = "y") -> np.ndarray:
    """Return what of an image is compared, float64: rounded to 8 bits, its luma or itself, without the border.

    Luma is 16 + (65.481 R + 128.553 G + 24.966 B) / 255 of the rounded channels, and is not rounded itself.

    Args:
        image: (H, W, 3) or gray (H, W, 1) on the [0, 255] scale.
        border: pixels to leave out on each side.
        space: "y" for luma, "rgb" for the image's own channels.

    Raises:
        InputError: an image of another shape, an unknown space, or a border that leaves nothing.

    >>> compared_part(np.full((3, 3, 3), 254.6), border=1)
    array([[[235.]]])
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"an image of shape {image.shape}; give (H, W, C) with C = 1 or 3")
    if space not in ("y", "rgb"):
        raise InputError(f"space is {space!r}; give y or rgb")
    height, width = image.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise InputError(f"a border of {border} pixels of an image of {height}x{width}; give one that leaves something")
    image = image[border : height - border, border : width - border]
    image = np.rint(image.astype(np.float64)).clip(0, PEAK)
    if space == "rgb":
        return image
    return 16 + (image @ _LUMA[:, None] if image.shape[2] == 3 else image * _LUMA.sum())


def super_resolution_quality(
    restored: np.ndarray, hr: np.ndarray, border: int, space: str = "y"
) -> tuple[float, float]:
    """Return PSNR in dB and SSIM by the convention of the super-resolution papers.

    Args:
        restored: (H, W, 3) or (H, W, 1) on the [0, 255] scale, uint8 or float.
        hr: the true image, the same shape and scale.
        border: pixels to leave out on each side; most papers leave out as many as the scale, some 4 also at x2.
        space: "y" for luma, "rgb" for all channels.

    Raises:
        InputError: shapes differ, less than SSIM's 11 pixels a side are left, or as for :func:`compared_part`.

    >>> hr = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    >>> quality, similarity = super_resolution_quality(hr + 0.4, hr, border=2)
    >>> quality, round(similarity, 4)
    (inf, 1.0)
    """
    restored, hr = np.asarray(restored), np.asarray(hr)
    if restored.shape != hr.shape:
        raise InputError(f"the restored image is {restored.shape} but the true one {hr.shape}; give equal shapes")
    pair = compared_part(restored, border, space), compared_part(hr, border, space)
    return psnr(*pair), ssim(*pair)
