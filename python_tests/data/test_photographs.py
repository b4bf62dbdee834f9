import numpy as np
import pytest
from skimage import data

from srnas_fast.data import photographs
from srnas_fast.data.photographs import SPLITS
from srnas_fast.errors import InputError


def test_test_photographs_are_held_out():
    scenes = {
        split: {name.split(".")[0].removesuffix("_left").removesuffix("_right") for name in names}
        for split, names in SPLITS.items()
    }
    assert scenes["search"] <= scenes["train"]
    assert not scenes["test"] & (scenes["train"] | scenes["search"])


@pytest.mark.parametrize("split", SPLITS)
def test_every_photograph_can_be_read(split):
    images = photographs(split)
    assert len(images) == len(SPLITS[split]) == len({image.name for image in images})
    for image in images:
        assert image.pixels.dtype == np.uint8
        assert image.pixels.ndim == 3 and image.pixels.shape[2] == 1
        assert min(image.pixels.shape[:2]) >= 172
        assert image.pixels.std() > 10


def test_pixels_are_those_of_scikit_image():
    gray = {image.name: image.pixels for image in photographs("test")}
    colour = {image.name: image.pixels for image in photographs("test", gray=False)}
    assert np.array_equal(gray["camera"][..., 0], data.camera())
    assert np.array_equal(colour["camera"], gray["camera"])
    assert np.array_equal(colour["astronaut"], data.astronaut())


def test_unknown_split_names_the_known_ones():
    with pytest.raises(InputError, match="'val'.*search, train, test"):
        photographs("val")
