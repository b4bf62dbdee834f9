"""The resizer against MATLAB's own results, PyTorch's, and the definition written out pixel by pixel."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from srnas_fast.data import read_image, resize
from srnas_fast.errors import InputError

SET5 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "Set5"


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def cubic(t):
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def by_definition(image, scale, rounded):
    """imresize as its documentation describes it: for each output pixel, all the pixels within reach."""
    for axis in (0, 1):
        length, widening = image.shape[axis], min(1, scale)
        rows = np.moveaxis(image, axis, 0).astype(np.float64)
        result = []
        for i in range(math.ceil(length * scale)):
            centre = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
            reach = math.ceil(2 / widening) + 1
            near = range(math.floor(centre) - reach, math.ceil(centre) + reach + 1)
            weights = np.array([cubic(float((centre - j) * widening)) for j in near])
            folded = [k if (k := j % (2 * length)) < length else 2 * length - 1 - k for j in near]
            result.append(np.tensordot(weights / weights.sum(), rows[folded], 1))
        image = np.moveaxis(np.array(result), 0, axis)
        image = np.floor(image + 0.5).clip(0, 255) if rounded else image
    return image


@pytest.mark.skipif(not SET5.is_dir(), reason="the benchmark images are not here")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_pixel_of_set5_is_reproduced(scale):
    for path in sorted((SET5 / "HR").iterdir()):
        hr = read_image(path)
        height, width = (length // scale * scale for length in hr.shape[:2])
        expected = read_image(SET5 / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png")
        assert np.array_equal(resize(hr[:height, :width], Fraction(1, scale)), expected), path.name


@pytest.mark.parametrize(
    "scale", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2, 3), Fraction(7, 9), 1, Fraction(3, 2), 2, 3]
)
def test_floats_equal_pytorch_after_symmetric_padding(scale):
    scale = Fraction(scale)
    pad = 6 * scale.denominator  # moves the output by whole pixels, and lies beyond the kernel
    image = np.random.default_rng(0).random((10 * scale.denominator, 7 * scale.denominator, 3))
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    size = tuple(int(length * scale) for length in padded.shape[:2])
    edge = 6 * scale.numerator
    tolerance = {np.float64: 1e-12}
    if scale.numerator == 1:  # otherwise PyTorch's own weights are off by more in float32
        tolerance[np.float32] = 2.5e-7
    for dtype, bound in tolerance.items():
        x = torch.from_numpy(padded.astype(dtype)).permute(2, 0, 1)[None]
        expected = F.interpolate(x, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
        found = resize(image.astype(dtype), scale)
        assert found.dtype == dtype
        assert np.abs(found - expected[edge:-edge, edge:-edge]).max() < bound


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    scale=st.fractions(Fraction(1, 6), 4, max_denominator=12),
    rounded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_size_and_scale_is_the_definition(height, width, channels, scale, rounded, seed):
    image = random_image(height, width, channels, seed=seed)
    expected = by_definition(image, scale, rounded)
    found = resize(image if rounded else image.astype(np.float64), scale)
    assert found.shape == (math.ceil(height * scale), math.ceil(width * scale), channels)
    if rounded:  # where a sum lies on a half, the last bit decides
        assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1
        assert np.mean(found != expected) < 0.05 or found.size < 40
    else:
        assert np.abs(found - expected).max() < 1e-9


def test_both_passes_round_halves_up():
    column = np.array([0, 0, 1, 1], np.uint8).reshape(4, 1, 1)
    assert resize(column.astype(float), Fraction(1, 4))[0, 0, 0] == 0.5
    assert resize(column, Fraction(1, 4))[0, 0, 0] == 1
    # Height first: both columns on the right become 0.5, so 1; then half of the width does, so 1.
    corner = np.zeros((4, 4, 1), np.uint8)
    corner[2:, 2:] = 1
    assert resize(corner.astype(float), Fraction(1, 4))[0, 0, 0] == 0.25
    assert resize(corner, Fraction(1, 4))[0, 0, 0] == 1


def test_overshoot_is_clipped_for_8_bits_only():
    edge = np.repeat([0, 255], 8).astype(np.uint8).reshape(1, 16, 1)
    as_floats = resize(edge.astype(np.float32), 2)
    assert as_floats.min() < -5 and as_floats.max() > 260
    assert resize(edge, 2).min() == 0 and resize(edge, 2).max() == 255


def test_a_constant_stays_itself_and_scale_1_changes_nothing():
    image = random_image(13, 7, 3)
    assert np.array_equal(resize(image, 1), image)
    for scale in (Fraction(1, 3), Fraction(5, 7), Fraction(13, 4), Fraction(1, 100)):
        assert (resize(np.full((5, 11, 1), 255, np.uint8), scale) == 255).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_crop_gives_the_pixels_of_the_whole_to_the_last_bit(scale):
    image = np.random.default_rng(0).random((30 * scale, 25 * scale, 3))
    whole = resize(image, Fraction(1, scale))
    part = resize(image[7 * scale : 21 * scale, 3 * scale : 20 * scale], Fraction(1, scale))
    assert np.array_equal(part[2:-2, 2:-2], whole[9:19, 5:18])


def test_layout_and_large_images_in_blocks():
    image = random_image(300, 1100, 3)
    expected = resize(image, Fraction(1, 2))
    assert expected.flags.c_contiguous
    assert np.array_equal(resize(np.asfortranarray(image), Fraction(1, 2)), expected)
    assert np.array_equal(resize(image[::-1, ::-1], Fraction(1, 2)), expected[::-1, ::-1])  # the kernel is symmetric
    columns = [resize(image[..., c : c + 1], Fraction(1, 2)) for c in range(3)]
    assert np.array_equal(np.concatenate(columns, axis=2), expected)
    assert image.flags.writeable and np.array_equal(image, random_image(300, 1100, 3))


@pytest.mark.parametrize("scale", [0, -2, 0.5, "2", Fraction(-1, 2)])
def test_a_scale_that_is_not_a_positive_fraction_is_refused(scale):
    with pytest.raises(InputError, match="scale is .*Fraction"):
        resize(random_image(4, 4, 1), scale)


def test_images_of_other_shapes_and_types_are_refused():
    for image in (random_image(4, 4), random_image(0, 4, 3), random_image(4, 4, 3, 1)):
        with pytest.raises(InputError, match="shape"):
            resize(image, 2)
    for dtype in (np.int64, np.uint16, bool):
        with pytest.raises(InputError, match="uint8 or floating"):
            resize(random_image(4, 4, 3).astype(dtype), 2)
