"""Entropy by hand, and the picture of the weights."""

import math

import numpy as np
import pytest
from PIL import Image

from srnas_fast.errors import InputError
from srnas_fast.report import draw_weights, normalised_entropy


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1 / 7] * 7, 1.0),
        ([0, 1, 0], 0.0),
        ([0.5, 0.5, 0, 0], 0.5),  # log 2 / log 4
        ([0.25, 0.75], -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))),
        ([1.0], 0.0),
    ],
)
def test_normalised_entropy(weights, expected):
    with np.errstate(all="raise"):
        assert normalised_entropy(np.array(weights)) == pytest.approx(expected, abs=1e-12)


def test_entropy_keeps_the_leading_shape_and_the_bounds():
    weights = np.random.default_rng(0).dirichlet(np.full(5, 0.05), (3, 4)).astype(np.float32)
    entropy = normalised_entropy(weights)
    assert entropy.shape == (3, 4)
    assert (entropy >= 0).all() and (entropy <= 1).all()


def pixels_of(file):
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_picture(tmp_path):
    steps, generator = [0, 10, 20, 40], np.random.default_rng(0)
    beta = generator.dirichlet(np.ones(3), (4, 6))
    beta[:, 0] = [0, 0.5, 0.5]  # an illegal entry
    groups = {
        "layer 1": (["conv", "skip"], generator.dirichlet(np.ones(2), (4, 14))),
        "widths": (["narrower", "same", "wider"], beta),
    }
    draw_weights(steps, groups, tmp_path / "weights.png")
    pixels = pixels_of(tmp_path / "weights.png")
    assert 1000 < pixels.shape[1] < 2500 and 300 < pixels.shape[0] < 1500
    for colour in ("0072b2", "d55e00", "009e73"):
        assert (pixels == list(bytes.fromhex(colour))).all(2).sum() > 100


@pytest.mark.parametrize("rows", [1, 5])
def test_a_single_step_shows_points(tmp_path, rows):
    draw_weights([7], {"layer 1": (["conv", "skip"], np.tile([0.3, 0.7], (1, rows, 1)))}, tmp_path / "weights.png")
    colour = (pixels_of(tmp_path / "weights.png") == list(bytes.fromhex("0072b2"))).all(2)
    left = colour[: colour.shape[0] * 8 // 10, : colour.shape[1] // 2]  # the first panel without the legend
    assert left.sum() > 10


@pytest.mark.parametrize(
    ("steps", "groups"),
    [
        ([], {"a": (["x"], np.ones((0, 1, 1)))}),
        ([0], {}),
        ([0, 1], {"a": (["x"], np.ones((1, 1, 1)))}),
        ([0], {"a": (["x"], np.ones((1, 1, 2)))}),
        ([0], {"a": (["x"], np.ones((1, 1)))}),
    ],
)
def test_bad_shapes(tmp_path, steps, groups):
    with pytest.raises(InputError, match="give"):
        draw_weights(steps, groups, tmp_path / "weights.png")
    assert not list(tmp_path.iterdir())
