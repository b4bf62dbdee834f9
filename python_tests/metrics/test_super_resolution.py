"""PSNR and SSIM of super-resolution: the published figures of bicubic, and what is compared."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from srnas_fast.data import read_image, resize
from srnas_fast.errors import InputError
from srnas_fast.metrics import compared_part, psnr, ssim, super_resolution_quality

SET5 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "Set5"


def image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float64)


PUBLISHED = [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)]  # of bicubic on Set5, in all papers


@pytest.mark.skipif(not SET5.is_dir(), reason="the benchmark images are not here")
@pytest.mark.parametrize(("scale", "quality", "similarity"), PUBLISHED)
def test_bicubic_on_set5_has_the_published_figures(scale, quality, similarity):
    """They come from SRCNN's code: luma in 8 bits, reduced and enlarged in floats, the result in 8 bits."""
    figures = []
    for path in sorted((SET5 / "HR").iterdir()):
        hr = read_image(path)
        height, width = (length // scale * scale for length in hr.shape[:2])
        luma = np.rint(compared_part(hr[:height, :width], 0))
        restored = np.rint(resize(resize(luma, Fraction(1, scale)), scale))
        inner = (slice(scale, -scale), slice(scale, -scale))
        figures.append((psnr(restored[inner], luma[inner]), ssim(restored[inner], luma[inner])))
    found_quality, found_similarity = np.mean(figures, axis=0)
    assert (round(found_quality, 2), round(found_similarity, 4)) == (quality, similarity)


@pytest.mark.skipif(not SET5.is_dir(), reason="the benchmark images are not here")
@pytest.mark.parametrize(("scale", "quality", "similarity"), PUBLISHED)
def test_bicubic_of_8_bit_rgb_is_close_to_the_published_figures(scale, quality, similarity):
    """What networks are compared with: low-resolution RGB files; between 0.01 and 0.02 dB above."""
    figures = []
    for path in sorted((SET5 / "HR").iterdir()):
        restored = resize(read_image(SET5 / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png"), scale)
        hr = read_image(path)[: restored.shape[0], : restored.shape[1]]
        figures.append(super_resolution_quality(restored, hr, border=scale))
    found_quality, found_similarity = np.mean(figures, axis=0)
    assert quality < found_quality < quality + 0.02
    assert similarity < found_similarity < similarity + 0.001


def test_luma_of_known_colours():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    expected = [16, 235, 81.481, 144.553, 40.966]
    assert compared_part(colours, 0)[0, :, 0] == pytest.approx(expected, abs=1e-9)
    assert compared_part(np.array([[[0], [255]]]), 0)[0, :, 0] == pytest.approx([16, 235])


def test_channels_are_rounded_and_clipped_and_luma_is_not_rounded():
    pixel = np.array([[[-9.0, 100.4, 299.0]]])
    assert compared_part(pixel, 0, "rgb").tolist() == [[[0, 100, 255]]]
    assert compared_part(pixel, 0)[0, 0, 0] == pytest.approx(16 + (128.553 * 100 + 24.966 * 255) / 255, abs=1e-9)


def test_only_what_is_inside_the_border_counts():
    hr = image(20, 30, 3)
    restored = hr.copy()
    restored[:3], restored[-3:], restored[:, :3], restored[:, -3:] = 0, 0, 0, 0
    assert super_resolution_quality(restored, hr, 3)[0] == math.inf
    assert super_resolution_quality(restored, hr, 2)[0] < 40
    assert compared_part(hr, 0, "rgb").shape == (20, 30, 3) and compared_part(hr, 3).shape == (14, 24, 1)


def test_figures_are_psnr_and_ssim_of_the_compared_part():
    hr, restored = image(17, 23, 3), image(17, 23, 3, seed=1)
    inner = (slice(2, -2), slice(2, -2))
    expected = psnr(restored[inner], hr[inner]), ssim(restored[inner], hr[inner])
    assert super_resolution_quality(restored, hr, 2, "rgb") == pytest.approx(expected)
    # All channels off by 10 move luma by 10 * 219 / 255.
    gray = np.full((20, 20, 3), 100.0)
    assert super_resolution_quality(gray + 10, gray, 2)[0] == pytest.approx(20 * math.log10(25.5 * 255 / 219))
    assert super_resolution_quality(gray + 10, gray, 2, "rgb")[0] == pytest.approx(20 * math.log10(25.5))


def test_8_bits_and_floats_agree():
    hr, restored = image(20, 20, 3).astype(np.uint8), image(20, 20, 3, seed=1).astype(np.uint8)
    expected = super_resolution_quality(restored, hr, 2)
    assert super_resolution_quality(restored.astype(np.float32) + 0.3, hr.astype(float), 2) == expected


def test_bad_input():
    good = image(20, 20, 3)
    with pytest.raises(InputError, match=r"\(20, 20, 3\) but the true one \(20, 19, 3\)"):
        super_resolution_quality(good, good[:, 1:], 2)
    with pytest.raises(InputError, match="space is 'ycbcr'; give y or rgb"):
        super_resolution_quality(good, good, 2, "ycbcr")
    with pytest.raises(InputError, match="border of 10 pixels of an image of 20x20"):
        super_resolution_quality(good, good, 10)
    with pytest.raises(InputError, match="border of -1"):
        super_resolution_quality(good, good, -1)
    with pytest.raises(InputError, match="window needs 11 pixels"):
        super_resolution_quality(good, good, 5)
    for shape in ((20, 20), (20, 20, 2)):
        with pytest.raises(InputError, match="shape"):
            super_resolution_quality(image(*shape), image(*shape), 2)
    nan = good.copy()
    nan[9, 9, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        super_resolution_quality(nan, good, 2)
