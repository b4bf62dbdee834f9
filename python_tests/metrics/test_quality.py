"""PSNR and SSIM: numbers from the definitions, and the borders of what is accepted."""

import math

import numpy as np
import pytest

from srnas_fast.errors import InputError
from srnas_fast.metrics import psnr, ssim


def image(height, width, channels, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (height, width, channels))


@pytest.mark.parametrize(("difference", "expected"), [(255, 0.0), (25.5, 20.0), (2.55, 40.0), (1, 48.1308036087)])
def test_psnr_of_a_constant_difference(difference, expected):
    clean = np.zeros((5, 7, 3))
    assert psnr(clean + difference, clean) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_one_wrong_pixel():
    clean = np.zeros((2, 5, 1), np.uint8)
    restored = clean.copy()
    restored[1, 4, 0] = 100  # MSE 1000; uint8 must not wrap around
    assert psnr(restored, clean) == psnr(clean, restored) == pytest.approx(10 * math.log10(255**2 / 1000))


def test_restored_is_clipped_and_not_rounded():
    clean = np.array([[[0.0], [255.0]]])
    assert psnr(clean + np.array([[[-40.0], [40.0]]]), clean) == math.inf
    assert psnr(clean + np.array([[[0.4], [-0.4]]]), clean) == pytest.approx(20 * math.log10(255 / 0.4))


def test_identical_images():
    clean = image(11, 12, 3)
    assert psnr(clean, clean) == math.inf
    assert ssim(clean, clean) == pytest.approx(1)


def by_definition(x, y):
    """SSIM window by window, straight from Wang et al. (2004)."""
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for channel in range(x.shape[2]):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = x[i : i + 11, j : j + 11, channel], y[i : i + 11, j : j + 11, channel]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(11, 11, 1), (13, 19, 3), (24, 11, 1)])
def test_ssim_is_the_definition(shape):
    clean, noise = image(*shape), image(*shape, seed=1) - 127
    restored = (clean + 0.3 * noise).clip(0, 255)
    assert ssim(restored, clean) == pytest.approx(by_definition(restored, clean), abs=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_images(metric):
    good = image(16, 16, 1)
    nan = good.copy()
    nan[3, 3] = np.nan
    for restored, clean in [
        (good, image(16, 17, 1)),
        (good, image(16, 16, 3)),
        (good[:, :, 0], good[:, :, 0]),
        (image(16, 16, 2), image(16, 16, 2)),
        (good[:0], good[:0]),
        (nan, good),
        (good, nan),
    ]:
        with pytest.raises(InputError, match="image"):
            metric(restored, clean)


def test_infinite_values_are_clipped():
    clean = np.zeros((11, 11, 1))
    restored = clean.copy()
    restored[0, 0] = np.inf  # an exploded network: 255 at that pixel
    assert psnr(restored, clean) == pytest.approx(10 * math.log10(121))


def test_ssim_needs_its_window():
    small = image(10, 40, 1)
    with pytest.raises(InputError, match="10x40.*11"):
        ssim(small, small)
    assert psnr(small, small) == math.inf
