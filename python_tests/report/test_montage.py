"""Comparison pictures: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image

from srnas_fast.errors import InputError
from srnas_fast.report import draw_comparison


def drawn(file, rows):
    draw_comparison(file, rows)
    with Image.open(file) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def holds(sheet, block):
    """Whether ``block`` (h, w, 3) stands somewhere in ``sheet``, pixel for pixel."""
    height, width = block.shape[:2]
    corners = np.argwhere((sheet == block[0, 0]).all(2))
    return any(np.array_equal(sheet[y : y + height, x : x + width], block) for y, x in corners)


def test_pixels_are_shown_one_to_one(tmp_path):
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (161, 203, 1), np.uint8)
    colour = generator.uniform(0, 255, (170, 160, 3)).astype(np.float32)
    sheet = drawn(tmp_path / "a.png", [("gray", {"clean": gray}), ("colour", {"clean": (colour, "30.00 dB")})])
    assert holds(sheet, np.repeat(gray, 3, 2))
    assert holds(sheet, np.rint(colour).astype(np.uint8))


def test_values_are_clipped(tmp_path):
    image = np.full((160, 160, 1), -30.0)
    image[:, 80:] = 290
    sheet = drawn(tmp_path / "a.png", [("x", {"noisy": image})])
    assert holds(sheet, np.repeat(np.where(image < 0, 0, 255).astype(np.uint8), 3, 2))


def test_small_images_grow_by_a_whole_factor_and_large_ones_show_their_middle(tmp_path):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (30, 60, 3), np.uint8)  # 3 x 60 = 180 >= 160
    large = generator.integers(0, 256, (600, 1000, 3), np.uint8)
    sheet = drawn(tmp_path / "a.png", [("small", {"a": small}), ("large", {"a": large})])
    assert holds(sheet, small.repeat(3, 0).repeat(3, 1))
    assert holds(sheet, large[44:556, 244:756])


def test_rows_may_lack_a_column_and_captions_make_room(tmp_path):
    image = np.full((160, 160, 1), 100, np.uint8)
    bare = drawn(tmp_path / "a.png", [("one", {"clean": image, "ours": image}), ("two", {"ours": image})])
    captioned = drawn(
        tmp_path / "b.png", [("one", {"clean": image, "ours": (image, "1 dB")}), ("two", {"ours": image})]
    )
    assert captioned.shape[0] > bare.shape[0] and captioned.shape[1] == bare.shape[1]
    assert (bare == 100).all(2).sum() == 3 * 160 * 160
    assert ((bare < 60).all(2)).sum() > 100  # titles


def test_one_pixel(tmp_path):
    sheet = drawn(tmp_path / "a.png", [("", {"": np.full((1, 1, 1), 7.0)})])
    assert (sheet == 7).all(2).sum() == 160 * 160


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no images"),
        ([("boat", {})], "no images"),
        ([("boat", {"ours": np.zeros((5, 5))})], r"boat, ours.*\(5, 5\)"),
        ([("boat", {"ours": np.zeros((5, 5, 2))})], "boat, ours"),
        ([("boat", {"ours": np.full((5, 5, 1), np.nan)})], "boat, ours.*NaN"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        draw_comparison(tmp_path / "a.png", rows)
    assert not list(tmp_path.iterdir())
