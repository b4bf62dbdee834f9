"""PSNR and SSIM of restored images, by the convention of the denoising papers.

The restored image is clipped to [0, 255] and kept in floating point: no rounding to 8 bits, no cropped
border. (Super-resolution papers round, crop and take the Y channel first; do that before calling these.)
"""

import math

import numpy as np
from skimage.metrics import structural_similarity

from srnas_fast.errors import InputError

PEAK = 255.0
WINDOW = 11  # side of the Gaussian window of SSIM, pixels


def _checked(restored: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both images in float64, the restored one clipped."""
    restored, clean = np.asarray(restored), np.asarray(clean)
    if restored.shape != clean.shape:
        raise InputError(f"the restored image is {restored.shape} but the clean one {clean.shape}; give equal shapes")
    if restored.ndim != 3 or restored.shape[2] not in (1, 3) or not restored.size:
        raise InputError(f"an image of shape {restored.shape}; give (H, W, C) with C = 1 or 3 and H, W from 1 up")
    restored, clean = restored.astype(np.float64), clean.astype(np.float64)
    for name, image in (("restored", restored), ("clean", clean)):
        if np.isnan(image).any():
            raise InputError(f"the {name} image holds NaN; give numbers on the [0, 255] scale")
    return restored.clip(0, PEAK), clean


def psnr(restored: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for identical images.

    Args:
        restored: (H, W, C) on the [0, 255] scale, uint8 or float; clipped to that range, not rounded.
        clean: the true image, the same shape and scale.

    Raises:
        InputError: shapes differ, are not (H, W, C) with C = 1 or 3, or a value is NaN.

    >>> clean = np.full((4, 4, 1), 100.0)
    >>> round(psnr(clean + 25.5, clean), 4), psnr(clean, clean)
    (20.0, inf)
    """
    restored, clean = _checked(restored, clean)
    error = np.mean((restored - clean) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(PEAK**2 / error))


def ssim(restored: np.ndarray, clean: np.ndarray) -> float:
    """Mean structural similarity, at most 1: 11 x 11 Gaussian window of sigma 1.5, whole windows only.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), eq. 13.

    Args:
        restored: (H, W, C) on the [0, 255] scale, H and W from 11 pixels up; clipped to that range, not
            rounded.
        clean: the true image, the same shape and scale.

    Raises:
        InputError: as for ``psnr``, or a side is shorter than the window.

    >>> clean = np.arange(256.0).reshape(16, 16, 1)
    >>> ssim(clean, clean), ssim(255 - clean, clean) < 0
    (1.0, True)
    """
    restored, clean = _checked(restored, clean)
    if min(clean.shape[:2]) < WINDOW:
        raise InputError(f"SSIM of a {clean.shape[0]}x{clean.shape[1]} image; its window needs {WINDOW} pixels a side")
    value = structural_similarity(
        restored,
        clean,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=PEAK,
        channel_axis=2,
    )
    return float(value)
