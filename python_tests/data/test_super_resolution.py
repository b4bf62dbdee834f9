"""Pairs of images in memory, on disk and in the cache, and the patches made of them."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from srnas_fast.data import (
    ImagePair,
    PairPath,
    PairStream,
    SuperResolutionData,
    benchmark_sets,
    load_pairs,
    loader,
    pairs_for,
    read_image,
    resize,
    split_for_search,
    write_image,
)
from srnas_fast.data import super_resolution as module
from srnas_fast.errors import InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def pixels(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def written(folder, *sizes, channels=3):
    paths = []
    for i, (height, width) in enumerate(sizes):
        write_image(folder / f"{i}.png", pixels(height, width, channels, seed=i))
        paths.append(PairPath(f"{i}.png", folder / f"{i}.png", None))
    return paths


def pair(height=24, width=20, scale=2, name="a", seed=0, lr=None):
    return ImagePair(name, scale, (height // scale, width // scale), pixels(height, width, seed=seed), lr)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_made_crop_is_a_crop_of_the_whole(scale):
    image = pair(17 * scale + 1, 13 * scale + scale - 1, scale)
    lr, hr = image.whole()
    assert same((lr, hr), (resize(hr, Fraction(1, scale)), image.hr[: 17 * scale, : 13 * scale]))
    for top, left, height, width in ((0, 0, 5, 5), (12, 8, 5, 5), (6, 4, 5, 3), (1, 2, 1, 1), (0, 0, 17, 13)):
        fine = hr[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
        coarse = lr[top : top + height, left : left + width]
        assert same(image.crop(top, left, height, width), (coarse, fine)), (top, left)


def test_a_low_resolution_image_that_is_there_is_used():
    lr = pixels(12, 10, seed=5)
    image = pair(lr=lr)
    assert same(image.whole(), (lr, image.hr))
    assert same(image.crop(3, 4, 2, 5), (lr[3:5, 4:9], image.hr[6:10, 8:18]))


def test_centre():
    image = pair(25, 20, 2)
    lr, hr = image.whole()
    assert same(image.centre(0), (lr, hr))
    assert same(image.centre(9), (lr[4:8, 3:7], hr[8:16, 6:14]))
    assert same(image.centre(22), (lr[0:11], hr[0:22]))
    assert same(image.centre(500), (lr, hr))


def test_memory_limit_changes_nothing_but_where_the_pixels_are(tmp_path):
    paths = written(tmp_path, (20, 30), (33, 23), (20, 30), (40, 40))
    kept = load_pairs(paths, 2)
    one = 20 * 30 * 3
    for memory, in_memory in ((0, []), (one, [0]), (2 * one, [0, 2]), (10**6, [0, 1, 2, 3])):
        found = load_pairs(paths, 2, memory=memory)
        assert [i for i, image in enumerate(found.images) if image.memory] == in_memory
        assert sum(image.memory for image in found.images) <= memory
        assert all(same(a.whole(), b.whole()) for a, b in zip(found.images, kept.images, strict=True))
        assert all(same(a.crop(1, 2, 5, 4), b.crop(1, 2, 5, 4)) for a, b in zip(found.images, kept.images, strict=True))
        assert [image.size for image in found.images] == [(10, 15), (16, 11), (10, 15), (20, 20)]
        assert found.digest == kept.digest


def test_kept_images_are_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path.name) or read_image(path))
    images = load_pairs(written(tmp_path, (20, 30), (20, 30)), 2, memory=2000).images
    assert sorted(read) == ["0.png", "1.png"]
    images[0].crop(0, 0, 4, 4)
    images[1].crop(0, 0, 4, 4)
    assert sorted(read) == ["0.png", "1.png", "1.png"]


def test_unusable_images_are_named_and_skipped(tmp_path):
    good, broken, small, short = written(tmp_path, (20, 30), (200, 300), (15, 40), (20, 20))
    content = broken.hr.read_bytes()
    broken.hr.write_bytes(content[: len(content) // 2])
    write_image(tmp_path / "lr/3.png", pixels(9, 10))
    missing = PairPath("none.png", tmp_path / "none.png", None)
    found = load_pairs([good, broken, small, short._replace(lr=tmp_path / "lr/3.png"), missing], 2, minimum=16)
    assert [image.name for image in found.images] == ["0.png"]
    assert len(found.skipped) == 4
    assert found.skipped[0].startswith(f"{broken.hr}: ") and "truncated" in found.skipped[0]
    assert found.skipped[1] == f"{small.hr}: 40x15 pixels, smaller than 16x16"
    assert found.skipped[2] == f"{tmp_path}/lr/3.png: 10x9 pixels, but 3.png of 20x20 gives 10x10"
    assert found.skipped[3].startswith(f"{missing.hr}: No such file")
    with pytest.raises(InputError, match=r"none of 2 images can be used for x2; first: .*1\.png"):
        load_pairs([broken, small], 2, minimum=16)
    with pytest.raises(InputError, match=r"0\.png: 30x20 pixels, smaller than 32x32"):
        load_pairs([good], 32)


def test_gray_and_16_bit_become_8_bit_rgb(tmp_path):
    from PIL import Image

    deep = np.random.default_rng(0).integers(0, 65536, (12, 10)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (gray,) = written(tmp_path, (12, 10), channels=1)
    images = load_pairs([gray, PairPath("deep.png", tmp_path / "deep.png", None)], 2).images
    for image, expected in zip(images, (pixels(12, 10, 1), np.rint(deep[..., None] / 257)), strict=True):
        lr, hr = image.whole()
        assert lr.shape == (6, 5, 3) and hr.dtype == lr.dtype == np.uint8
        assert np.array_equal(hr, np.broadcast_to(expected, (12, 10, 3)))


def test_low_resolution_images_may_be_rounded_up(tmp_path):
    (path,) = written(tmp_path, (21, 22))
    lr = pixels(7, 8, seed=3)
    write_image(tmp_path / "lr.png", lr)
    for memory in (0, 10**6):
        found = load_pairs([path._replace(lr=tmp_path / "lr.png")], 3, memory)
        assert same(found.images[0].whole(), (lr[:, :7], pixels(21, 22)[:, :21]))


def test_cache_is_written_once_and_mended(tmp_path, monkeypatch):
    paths = written(tmp_path / "hr", (20, 31), (40, 20))
    cache = tmp_path / "deep/cache"
    expected = load_pairs(paths, 2)
    made = []
    monkeypatch.setattr(module, "resize", lambda *given: made.append(1) or resize(*given))
    for memory in (10**6, 0):
        found = load_pairs(paths, 2, memory, cache)
        assert len(made) == 2 and found.digest == expected.digest
        for image, without in zip(found.images, expected.images, strict=True):
            assert same(image.crop(1, 2, 6, 5), without.crop(1, 2, 6, 5))
        del made[2:]
    files = sorted(cache.rglob("*.*"))
    assert [file.parent.name for file in files] == ["X2", "X2"] and files[0].name.startswith("0x2-")
    assert np.array_equal(read_image(files[0]), resize(pixels(20, 31)[:, :30], Fraction(1, 2)))
    files[0].write_bytes(b"killed half way")
    write_image(paths[1].hr, pixels(40, 20, seed=9))  # another image under the same name
    found = load_pairs(paths, 2, 0, cache)
    assert same(found.images[0].whole(), expected.images[0].whole())
    assert np.array_equal(found.images[1].whole()[0], resize(pixels(40, 20, seed=9), Fraction(1, 2)))
    assert len(sorted(cache.rglob("*.*"))) == 3


def test_digest_sees_names_pixels_and_scale(tmp_path):
    paths = written(tmp_path, (20, 30), (40, 20))
    write_image(tmp_path / "lr.png", pixels(10, 15))
    digests = {
        load_pairs(some, scale).digest
        for some, scale in (
            (paths, 2),
            (paths, 3),
            (paths[:1], 2),
            (paths[::-1], 2),
            ([paths[0]._replace(name="b.png"), paths[1]], 2),
            ([paths[0]._replace(lr=tmp_path / "lr.png"), paths[1]], 2),
        )
    }
    assert len(digests) == 6 and all(text.startswith(("1 pairs, x", "2 pairs, x")) for text in digests)
    write_image(paths[0].hr, pixels(20, 30, seed=8))
    assert load_pairs(paths, 2).digest not in digests


def test_pairs_for_roots_and_photographs(tmp_path):
    written(tmp_path / "one", (64, 70), (30, 64), (80, 90))
    written(tmp_path / "two", (90, 64))
    found = pairs_for(SuperResolutionData(root=[str(tmp_path / "one"), str(tmp_path / "two")]), 2, "search")
    assert [image.name for image in found.images] == ["one/0.png", "one/2.png", "two/0.png"]
    assert len(found.skipped) == 1 and "64x30 pixels, smaller than 64x64" in found.skipped[0]
    assert [len(part) for part in split_for_search(found.images, seed=0)] == [1, 1, 1]
    for split, count in (("search", 8), ("train", 11), ("test", 4)):
        images = pairs_for(SuperResolutionData(), 3, split).images
        assert len(images) == count
        lr, hr = images[0].centre(99)
        assert lr.shape == (33, 33, 3) and hr.shape == (99, 99, 3)


def test_patches_are_the_eight_symmetries_of_crops_of_both():
    image = ImagePair(
        "unique",
        2,
        (5, 6),
        np.arange(10 * 12, dtype=np.uint8).reshape(10, 12, 1).repeat(3, 2),
        np.arange(200, 230, dtype=np.uint8).reshape(5, 6, 1).repeat(3, 2),
    )
    patches = PairStream([image], SuperResolutionData(patch=4), 0, "weights")
    symmetries, corners = set(), set()
    for n in range(600):
        both = patches[n]
        assert [patch.shape for patch in both] == [(3, 2, 2), (3, 4, 4)]
        assert all(patch.dtype == torch.float32 and patch.is_contiguous() for patch in both)
        values = [np.rint(patch[1].numpy() * 255).astype(int) for patch in both]
        top, left = divmod(values[0].min() - 200, 6)
        crops = [crop[..., 1] for crop in image.crop(top, left, 2, 2)]
        options = {
            (turn, mirror): [np.rot90(crop, turn)[:, :: -1 if mirror else 1] for crop in crops]
            for turn in range(4)
            for mirror in (False, True)
        }
        matches = [key for key, option in options.items() if same(option, values)]
        assert len(matches) == 1
        symmetries.add(matches[0])
        corners.add((top, left))
    assert len(symmetries) == 8
    assert corners == {(top, left) for top in range(4) for left in range(5)}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_streams_resume_bit_for_bit_whatever_the_workers_and_the_memory(tmp_path):
    paths = written(tmp_path, (40, 57), (33, 36))
    data = SuperResolutionData(patch=12)
    kept, cached = load_pairs(paths, 3), load_pairs(paths, 3, 0, tmp_path / "cache")
    patches = PairStream(kept.images, data, 0, "weights")
    whole = list(loader(patches, 0, 6, batch=4))
    assert [tuple(part.shape) for part in whole[0]] == [(4, 3, 4, 4), (4, 3, 12, 12)]
    assert same(patches[9], (whole[2][0][1], whole[2][1][1]))
    forked = list(loader(patches, 0, 6, batch=4, workers=2))
    resumed = list(loader(PairStream(cached.images, data, 0, "weights"), 4, 6, batch=4, workers=1))
    assert all(same(a, b) for a, b in zip(whole, forked, strict=True))
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(patches[np.int64(10**9)], patches[10**9])
    for other in (PairStream(kept.images, data, 1, "weights"), PairStream(kept.images, data, 0, "architecture")):
        assert not same(other[3], patches[3])


def test_every_image_is_used():
    images = [ImagePair(str(v), 2, (9, 9), np.full((18, 18, 3), v, np.uint8)) for v in (0, 51, 102)]
    patches = PairStream(images, SuperResolutionData(patch=16), 0, "weights")
    means = [round(float(patches[n][0].mean()), 3) for n in range(300)]
    assert min(means.count(value) for value in (0.0, 0.2, 0.4)) > 60


def test_a_patch_may_be_the_whole_image_or_one_pixel():
    patches = PairStream([pair(8, 8, 4)], SuperResolutionData(patch=8), 0, "weights")
    lr, hr = pair(8, 8, 4).whole()
    assert float(patches[7][1].sum()) == pytest.approx(hr.sum() / 255) and patches[7][0].shape == (3, 2, 2)
    assert PairStream([pair(4, 4, 4)], SuperResolutionData(patch=4), 0, "weights")[0][0].shape == (3, 1, 1)


def test_stream_refuses_what_it_cannot_use():
    data = SuperResolutionData(patch=16)
    with pytest.raises(InputError, match="no images to take patches from .weights"):
        PairStream([], data, 0, "weights")
    with pytest.raises(InputError, match=r"b \(40x14\) is smaller than the 16-pixel patch"):
        PairStream([pair(16, 16), pair(15, 40, name="b")], data, 0, "weights")
    with pytest.raises(InputError, match="b is a pair of scale 3, a one of scale 2; give pairs of one scale"):
        PairStream([pair(48, 48), pair(48, 48, 3, name="b")], data, 0, "weights")
    with pytest.raises(InputError, match="data.patch is 2; give a whole number from the scale 3 up"):
        PairStream([pair(48, 48, 3)], SuperResolutionData(patch=2), 0, "weights")


@pytest.mark.parametrize(
    ("field", "value"),
    [("patch", 0), ("patch", 1.5), ("batch", 0), ("batch", True), ("repeat", 0), ("memory", -1), ("workers", -1)]
    + [("validation_crop", -1)],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=f"data.{field} is {value}; give"):
        SuperResolutionData(**{field: value})


def test_defaults_are_the_papers_and_one_root_will_do():
    data = SuperResolutionData()
    assert (data.root, data.patch, data.batch) == ([], 64, 64)
    assert data.steps(3000) == 985  # 1000 times a batch of 64 goes 21 times into 3000 images
    assert SuperResolutionData(root="a").root == ["a"] and SuperResolutionData(root=None).root == []
    lr, hr = PairStream([pair(128, 150, 3)], SuperResolutionData(patch=128), 0, "weights")[0]
    assert lr.shape == (3, 42, 42) and hr.shape == (3, 126, 126)


def test_benchmark_sets_share_the_memory(tmp_path):
    written(tmp_path / "Set5", (20, 30), (30, 20))
    written(tmp_path / "Urban100/HR", (20, 30), (24, 24), (8, 30))
    one = 20 * 30 * 3
    found = benchmark_sets(tmp_path, 2, memory=3 * one)
    assert {name: [bool(i.memory) for i in pairs.images] for name, pairs in found.items()} == {
        "Set5": [True, True],
        "Urban100": [True, False],
    }
    assert [os.path.basename(line.split(": ")[0]) for line in found["Urban100"].skipped] == ["2.png"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark images are not here")
def test_real_benchmarks():
    found = benchmark_sets(DATA, 2)
    assert {name: len(pairs.images) for name, pairs in found.items()} == {"Set5": 5, "Set14": 14, "B100": 100}
    assert not any(pairs.skipped for pairs in found.values())
    made = [ImagePair(image.name, 2, image.size, image.hr) for image in found["Set5"].images]
    assert all(same(a.whole(), b.whole()) for a, b in zip(found["Set5"].images, made, strict=True))
    lr, hr = next(image for image in found["Set14"].images if image.name == "bridge.png").whole()
    assert lr.shape == (256, 256, 3) and (hr[..., 0] == hr[..., 2]).all()


def test_photographs_smaller_than_a_patch_are_left_out_and_told():
    every, fewer = (pairs_for(SuperResolutionData(patch=patch), 4, "search") for patch in (64, 256))
    assert not every.skipped and len(fewer.images) + len(fewer.skipped) == len(every.images)
    assert "page: 384x191 pixels, smaller than 256x256" in fewer.skipped
    assert all(4 * min(pair.size) >= 256 for pair in fewer.images)
    with pytest.raises(InputError, match="none of the photographs of scikit-image has 4000 pixels"):
        pairs_for(SuperResolutionData(patch=4000), 4, "search")
