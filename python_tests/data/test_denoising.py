import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.data import DenoisingData, NamedImage, PatchStream, centre_crop, loader, noisy_image
from srnas_fast.errors import InputError


def random_images(*sizes, channels=1):
    rng = np.random.default_rng(0)
    return [
        NamedImage(f"{i}.png", rng.integers(0, 256, (*size, channels)).astype(np.uint8)) for i, size in enumerate(sizes)
    ]


def stream(data=None, images=None, seed=0, name="weights"):
    images = images or random_images((40, 57), (33, 32))
    return PatchStream(images, data or DenoisingData(patch=16), seed, name)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shapes_and_types():
    for channels in (1, 3):
        noisy, clean = stream(images=random_images((40, 57), channels=channels))[5]
        for patch in (noisy, clean):
            assert patch.shape == (channels, 16, 16) and patch.dtype == torch.float32
            assert patch.is_contiguous()
        assert clean.min() >= 0 and clean.max() <= 1


def test_a_patch_depends_on_seed_stream_and_number_alone():
    patches = stream()
    expected = patches[10**9]
    _ = [patches[n] for n in range(20)]
    torch.manual_seed(3)
    np.random.seed(3)
    assert same(patches[10**9], expected)
    assert same(stream()[np.int64(10**9)], expected)
    for other in (stream(seed=1)[10**9], stream(name="architecture")[10**9], patches[10**9 + 1]):
        assert not torch.equal(other[0], expected[0])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_resume_and_batch_size_change_nothing():
    patches = stream()
    whole = list(loader(patches, 0, 6, batch=4))
    assert len(whole) == 6 and whole[0][0].shape == (4, 1, 16, 16)
    for step, batch in enumerate(whole):
        for i in range(4):
            assert same(patches[step * 4 + i], (batch[0][i], batch[1][i]))
    forked = list(loader(patches, 0, 6, batch=4, workers=2))
    resumed = list(loader(patches, 4, 6, batch=4, workers=1))
    assert all(same(a, b) for a, b in zip(whole, forked, strict=True))
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    regrouped = list(loader(patches, 0, 12, batch=2))
    assert torch.equal(torch.cat([b[0] for b in regrouped]), torch.cat([b[0] for b in whole]))
    assert list(loader(patches, 6, 6, batch=4)) == []


def test_loader_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _ = list(loader(stream(), 0, 2, batch=2))
    assert torch.equal(torch.get_rng_state(), before)


class Interrupting(PatchStream):
    """Sends its own process an interrupt, as a terminal's Ctrl-C does to every process of the group."""

    def __getitem__(self, n):
        os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(n)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_ignore_interrupts():
    patches = Interrupting(random_images((40, 57)), DenoisingData(patch=16), 0, "weights")
    assert len(list(loader(patches, 0, 3, batch=2, workers=1))) == 3


def test_without_rescale_and_noise_a_patch_is_one_of_the_eight_symmetries_of_a_crop():
    image = NamedImage("unique", np.arange(7 * 9, dtype=np.uint8).reshape(7, 9, 1))
    patches = stream(DenoisingData(patch=3, rescale=False, sigma=[0]), [image])
    symmetries, corners = set(), set()
    for n in range(600):
        noisy, clean = patches[n]
        assert torch.equal(noisy, clean)
        values = np.rint(clean[0].numpy() * 255).astype(int)
        assert np.abs(values - clean[0].numpy() * 255).max() < 1e-4
        top, left = divmod(values.min(), 9)
        crop = image.pixels[top : top + 3, left : left + 3, 0]
        options = {
            (turn, mirror): np.rot90(crop, turn)[:, :: -1 if mirror else 1]
            for turn in range(4)
            for mirror in (False, True)
        }
        matches = [key for key, option in options.items() if np.array_equal(option, values)]
        assert len(matches) == 1
        symmetries.add(matches[0])
        corners.add((top, left))
    assert len(symmetries) == 8
    assert corners == {(top, left) for top in range(5) for left in range(7)}  # borders included


def test_every_image_is_used():
    images = [NamedImage(str(value), np.full((20, 20, 1), value, np.uint8)) for value in (0, 51, 102)]
    patches = stream(DenoisingData(patch=16, sigma=[0]), images)
    means = [round(float(patches[n][1].mean()), 3) for n in range(300)]
    counts = [means.count(value) for value in (0.0, 0.2, 0.4)]
    assert sum(counts) == 300 and min(counts) > 60


def test_noise_has_the_given_deviation_and_is_not_clipped():
    image = NamedImage("black", np.zeros((80, 80, 1), np.uint8))
    patches = stream(DenoisingData(patch=64, sigma=[30, 70]), [image])
    deviations = []
    for n in range(40):
        noisy, clean = patches[n]
        noise = (noisy - clean).numpy() * 255
        deviations.append(noise.std())
        sigma = min((30, 70), key=lambda value: abs(value - noise.std()))
        assert abs(noise.std() - sigma) < sigma * 5 / math.sqrt(2 * 4096)
        assert abs(noise.mean()) < sigma * 5 / 64
        assert noisy.min() < -2 * sigma / 255  # black less noise stays below 0
        within = np.mean(np.abs(noise) < sigma)
        assert abs(within - 0.6827) < 0.04  # a Gaussian's share within one deviation
    assert {round(value, -1) for value in np.array(deviations, float)} == {30, 70}


def test_rescale_keeps_shape_and_brightness():
    image = NamedImage("flat", np.full((70, 90, 1), 200, np.uint8))
    patches = stream(DenoisingData(patch=32, sigma=[0]), [image])
    for n in range(50):
        clean = patches[n][1]
        assert clean.shape == (1, 32, 32)
        assert (clean - 200 / 255).abs().max() < 1e-5


def test_rescale_changes_half_of_the_patches_by_the_papers_factors():
    rows, columns = np.mgrid[:200, :200]
    image = NamedImage("ramp", (rows / 2 + columns / 2).astype(np.float32)[..., None])
    patches = stream(DenoisingData(patch=32, sigma=[0]), [image])
    factors = []
    for n in range(400):
        inner = patches[n][1][0, 4:-4, 4:-4].numpy() * 255
        factors.append(0.5 / np.abs(np.diff(inner, axis=1)).mean())  # a slope of 0.5 a pixel before rescaling
    factors = np.array(factors)
    rescaled = factors[np.abs(factors - 1) > 1e-3]
    assert 160 < len(rescaled) < 240
    assert 0.799 < rescaled.min() < 0.83 and 1.17 < rescaled.max() < 1.201


def test_rescaled_patch_equals_a_crop_of_the_whole_image_resized():
    from srnas_fast.data.denoising import _rescaled_crop

    class Fixed:
        """Draws scale, top and left from a list."""

        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, low, high):
            assert low <= self.values[0] <= high
            return self.values.pop(0)

    pixels = random_images((61, 83))[0].pixels
    whole = Image.fromarray(pixels[..., 0].astype(np.float32))
    for scale in (0.8, 0.93, 1.2):
        for top, left in ((0.0, 0.0), (12.25, 30.5), (61 - 16 / scale, 83 - 16 / scale)):
            box = (left, top, min(83, left + 16 / scale), min(61, top + 16 / scale))
            expected = np.asarray(whole.resize((16, 16), Image.Resampling.BICUBIC, box)).clip(0, 255)
            found = _rescaled_crop(pixels, 16, Fixed(scale, top, left))[..., 0]
            assert np.abs(found - expected).max() < 1e-2, (scale, top, left)


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (17, 16)])
def test_image_as_small_as_the_patch(size):
    patches = stream(DenoisingData(patch=16), random_images(size))
    for n in range(100):
        assert patches[n][1].shape == (1, 16, 16)


def test_one_pixel_patches_and_float_images():
    image = NamedImage("a", np.full((1, 1, 1), 127.5, np.float32))
    assert stream(DenoisingData(patch=1, sigma=[0]), [image])[0][1].item() == pytest.approx(0.5)


def test_stream_refuses_images_without_a_patch():
    with pytest.raises(InputError, match=r"1\.png \(40x15\) is smaller than the 16-pixel patch"):
        stream(images=random_images((16, 16), (15, 40)))
    with pytest.raises(InputError, match="no images"):
        PatchStream([], DenoisingData(), 0, "weights")


@pytest.mark.parametrize(
    "field, value",
    [
        ("patch", 0),
        ("batch", 0),
        ("workers", -1),
        ("validation_crop", -1),
        ("sigma", []),
        ("sigma", [30, -1]),
        ("sigma", [math.nan]),
        ("sigma", [math.inf]),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=f"data.{field} "):
        DenoisingData(**{field: value})


def test_defaults_are_the_papers():
    data = DenoisingData()
    assert (data.patch, data.batch, data.sigma, data.rescale) == (64, 6, [30, 50, 70], True)


def test_noisy_image_is_a_pure_function_of_seed_name_and_sigma():
    flat = np.full((101, 97, 1), 128, np.uint8)
    noisy = noisy_image(flat, 50, 0, "a")
    assert noisy.dtype == np.float32 and noisy.shape == flat.shape
    assert np.array_equal(noisy, noisy_image(flat, 50.0, 0, "a"))
    for other in (
        noisy_image(flat, 30, 0, "a"),
        noisy_image(flat, 50, 1, "a"),
        noisy_image(flat, 50, 0, "b"),
    ):
        assert np.abs(np.corrcoef((other - flat).ravel(), (noisy - flat).ravel())[0, 1]) < 0.05
    noise = noisy - flat
    assert abs(noise.mean()) < 5 * 50 / 99 and abs(noise.std() - 50) < 5 * 50 / math.sqrt(2 * 99**2)
    assert noisy.min() < 0 and noisy.max() > 255
    assert np.array_equal(noisy_image(flat, 0, 0, "a"), flat)


def test_centre_crop():
    pixels = np.arange(5 * 8).reshape(5, 8, 1)
    assert np.array_equal(centre_crop(pixels, 0), pixels)
    assert np.array_equal(centre_crop(pixels, 4), pixels[0:4, 2:6])
    assert np.array_equal(centre_crop(pixels, 6), pixels[:, 1:7])
    assert np.array_equal(centre_crop(pixels, 99), pixels)
