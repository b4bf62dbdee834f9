from pathlib import Path

import numpy as np
import pytest

from srnas_fast.data import NamedImage, find_split, load_images, split_for_search, write_image
from srnas_fast.errors import InputError

BSDS500 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "BSDS500"


def write(path, height=20, width=30, value=0):
    write_image(path, np.full((height, width, 3), value))
    return path


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def names(images):
    return [image.name for image in images]


def test_good_images_survive_bad_ones(tmp_path):
    write(tmp_path / "good.jpg", value=200)
    write(tmp_path / "sub/also.png", value=100)
    truncate(write(tmp_path / "bad.jpg", 200, 300))
    write(tmp_path / "small.png", 15, 40)
    (tmp_path / "empty.png").touch()
    found = load_images(tmp_path, minimum=16)
    assert names(found.images) == ["good.jpg", "sub/also.png"]
    assert [image.pixels.shape for image in found.images] == [(20, 30, 1)] * 2
    assert np.abs(found.images[0].pixels.astype(int) - 200).max() <= 1
    assert len(found.skipped) == 3
    bad, empty, small = found.skipped
    assert bad.startswith(f"{tmp_path / 'bad.jpg'}: ") and "truncated" in bad
    assert empty == f"{tmp_path / 'empty.png'}: the file is empty (0 bytes)"
    assert small == f"{tmp_path / 'small.png'}: 40x15 pixels, smaller than 16x16"


def test_colour_is_kept_on_request_and_one_file_will_do(tmp_path):
    path = write(tmp_path / "a.png")
    assert load_images(path, gray=False).images[0].pixels.shape == (20, 30, 3)
    assert names(load_images(str(path)).images) == ["a.png"]


def test_minimum_is_inclusive(tmp_path):
    write(tmp_path / "a.png", 16, 16)
    assert names(load_images(tmp_path, minimum=16).images) == ["a.png"]


def test_all_too_small_names_the_largest(tmp_path):
    write(tmp_path / "a.png", 50, 40)
    write(tmp_path / "b.png", 30, 200)
    write(tmp_path / "c.png", 10, 10)
    with pytest.raises(InputError) as caught:
        load_images(tmp_path, minimum=64)
    assert str(caught.value) == (
        f"all 3 images in {tmp_path} are smaller than the 64-pixel patch (largest: a.png 40x50); "
        f"use a smaller --data.patch or larger images"
    )


def test_nothing_readable_says_so(tmp_path):
    truncate(write(tmp_path / "a.jpg", 200, 300))
    with pytest.raises(InputError, match=r"none of the 1 images in .* can be read; first: .*a\.jpg: .*truncated"):
        load_images(tmp_path)
    write(tmp_path / "b.png", 5, 5)
    with pytest.raises(InputError, match=r"1 cannot be read .*a\.jpg.*1 smaller than the 8-pixel .*b\.png 5x5"):
        load_images(tmp_path, minimum=8)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images in this folder"):
        load_images(tmp_path)


@pytest.mark.parametrize("below", ["", "images", "data/images", "BSDS500/data/images"])
def test_benchmark_root_is_recognised(tmp_path, below):
    for split in ("train", "val", "test"):
        write(tmp_path / below / split / f"{split}.png")
    train = load_images(find_split(tmp_path, "train")).images
    assert names(train) == ["train/train.png", "val/val.png"]
    assert names(load_images(find_split(tmp_path, "test")).images) == ["test.png"]


def test_plain_folder_serves_both(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "test/b.png")  # one image set with a subfolder of that name
    assert find_split(tmp_path, "train") == find_split(tmp_path, "test") == [tmp_path]
    assert find_split(tmp_path / "a.png", "train") == [tmp_path / "a.png"]


def test_missing_split_is_named(tmp_path):
    write(tmp_path / "train/a.png")
    write(tmp_path / "val/b.png")
    with pytest.raises(InputError, match="no folder 'test' beside train, val"):
        find_split(tmp_path, "test")


@pytest.mark.skipif(not BSDS500.is_dir(), reason="the benchmark images are not here")
def test_bsd500_has_300_and_200_images():
    folders = find_split(BSDS500, "train")
    assert [folder.name for folder in folders] == ["train", "val"]
    found = load_images(folders, minimum=64)
    assert len(found.images) == 300 and not found.skipped
    assert {image.pixels.shape for image in found.images} == {(481, 321, 1), (321, 481, 1)}
    assert [len(part) for part in split_for_search(found.images, seed=0)] == [147, 147, 6]
    test = load_images(find_split(BSDS500, "test"))
    assert len(test.images) == 200
    assert names(test.images) == names(load_images(BSDS500 / "test").images)


def blanks(count):
    return [NamedImage(f"{i:03}.png", np.zeros((1, 1, 1), np.uint8)) for i in range(count)]


@pytest.mark.parametrize("count, sizes", [(3, (1, 1, 1)), (4, (2, 1, 1)), (8, (4, 3, 1)), (200, (98, 98, 4))])
def test_search_split_sizes(count, sizes):
    assert tuple(len(part) for part in split_for_search(blanks(count), seed=1)) == sizes


@pytest.mark.parametrize("count", [3, 10, 75, 301])
def test_search_split_is_a_partition_that_depends_on_seed_and_names_alone(count):
    images = blanks(count)
    parts = split_for_search(images, seed=1)
    assert sorted(name for part in parts for name in names(part)) == names(images)
    again = split_for_search(images[::-1], seed=1)
    assert [names(part) for part in parts] == [names(part) for part in again]
    if count > 3:
        assert [names(part) for part in parts] != [names(part) for part in split_for_search(images, seed=2)]


def test_search_needs_three_images():
    with pytest.raises(InputError, match="at least 3 images.*found 2"):
        split_for_search(blanks(2), seed=0)
