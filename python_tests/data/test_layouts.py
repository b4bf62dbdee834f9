"""Folders as EDSR, BasicSR, BSDS500 and users lay them out, and what is said where none of them is found."""

from pathlib import Path

import pytest

from srnas_fast.data import benchmark_paths, training_paths
from srnas_fast.errors import InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def below(root, pairs):
    """name -> high- and low-resolution file below the root."""
    relative = {
        pair.name: tuple(path and path.relative_to(root).as_posix() for path in (pair.hr, pair.lr)) for pair in pairs
    }
    assert len(relative) == len(pairs)
    return relative


def test_edsr(tmp_path):
    touch(tmp_path, *(f"DIV2K/DIV2K_train_HR/{number}.png" for number in ("0001", "0800", "0801", "0900")))
    touch(tmp_path, "DIV2K/DIV2K_train_LR_bicubic/X2/0001x2.png", "DIV2K/DIV2K_train_LR_bicubic/X3/0800x3.png")
    touch(tmp_path, "DIV2K/DIV2K_valid_HR/0801.png")
    hr, lr = "DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_LR_bicubic"
    expected = {"0001.png": (f"{hr}/0001.png", f"{lr}/X2/0001x2.png"), "0800.png": (f"{hr}/0800.png", None)}
    for root in (tmp_path, tmp_path / "DIV2K", tmp_path / hr):
        assert below(tmp_path, training_paths([str(root)], 2)) == expected
    assert below(tmp_path, training_paths([tmp_path], 3))["0800.png"][1] == f"{lr}/X3/0800x3.png"
    assert below(tmp_path, training_paths([tmp_path], 4))["0001.png"][1] is None


def test_div2k_s_images_for_validation_are_measured_on_but_not_learnt_from(tmp_path):
    touch(tmp_path, "DIV2K_train_HR/0001.png", "DIV2K_train_HR/0801.png")
    measured = benchmark_paths(tmp_path / "DIV2K_train_HR", 2)
    assert [pair.name for pair in measured["DIV2K_train_HR"]] == ["0001.png", "0801.png"]
    (tmp_path / "DIV2K_train_HR/0001.png").unlink()
    with pytest.raises(InputError, match="DIV2K_train_HR has none of the images 1 to 800 of DIV2K"):
        training_paths([tmp_path], 2)


def test_basicsr_takes_the_pieces(tmp_path):
    touch(tmp_path, "DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png")
    touch(tmp_path, "DIV2K_train_HR_sub/0001_s001.png", "DIV2K_train_HR_sub/0801_s001.png")
    touch(tmp_path, "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png")
    found = below(tmp_path, training_paths([tmp_path], 4))
    piece = "0001_s001.png"
    assert found == {piece: (f"DIV2K_train_HR_sub/{piece}", f"DIV2K_train_LR_bicubic/X4_sub/{piece}")}


def test_df2k_is_several_roots_or_one(tmp_path):
    touch(tmp_path, "DIV2K/DIV2K_train_HR/0001.png", "Flickr2K/Flickr2K_HR/000801.png")
    touch(tmp_path, "Flickr2K/Flickr2K_LR_bicubic/X2/000801x2.png")
    expected = {
        "DIV2K_train_HR/0001.png": ("DIV2K/DIV2K_train_HR/0001.png", None),
        "Flickr2K_HR/000801.png": (
            "Flickr2K/Flickr2K_HR/000801.png",
            "Flickr2K/Flickr2K_LR_bicubic/X2/000801x2.png",
        ),
    }
    assert below(tmp_path, training_paths([tmp_path], 2)) == expected
    assert below(tmp_path, training_paths([tmp_path / "DIV2K", tmp_path / "Flickr2K"], 2)) == expected


def test_plain_folders_keep_their_depth(tmp_path):
    touch(tmp_path, "a/1.png", "b/c/1.JPG", "b/notes.txt")
    expected = {"a/1.png": ("a/1.png", None), "b/c/1.JPG": ("b/c/1.JPG", None)}
    assert below(tmp_path, training_paths([tmp_path], 2)) == expected
    assert below(tmp_path, training_paths([tmp_path / "a/1.png"], 2)) == {"1.png": ("a/1.png", None)}


def test_low_resolution_images_are_matched_by_path_and_either_name(tmp_path):
    touch(tmp_path, "HR/a/1.png", "HR/b/1.png", "HR/2.png", "HR/3.bmp", "HR/4.png")
    touch(
        tmp_path, "LR_bicubic/X2/a/1x2.png", "LR_bicubic/X2/b/1x2.png", "LR_bicubic/X2/2.png", "LR_bicubic/X2/3x2.png"
    )
    touch(tmp_path, "LR_bicubic/X2/4x3.png")
    found = below(tmp_path, training_paths([tmp_path], 2))
    low = {name: lr and lr.removeprefix("LR_bicubic/X2/") for name, (_, lr) in found.items()}
    assert low == {"2.png": "2.png", "3.bmp": "3x2.png", "4.png": None, "a/1.png": "a/1x2.png", "b/1.png": "b/1x2.png"}


def test_bsds500_gives_train_alone(tmp_path):
    touch(
        tmp_path, "BSDS500/data/images/train/1.jpg", "BSDS500/data/images/val/2.jpg", "BSDS500/data/images/test/3.jpg"
    )
    found = below(tmp_path, training_paths([tmp_path], 2))
    assert found == {"1.jpg": ("BSDS500/data/images/train/1.jpg", None)}
    touch(tmp_path / "other", "val/1.png", "test/2.png")
    assert [pair.name for pair in training_paths([tmp_path / "other"], 2)] == ["test/2.png", "val/1.png"]


def test_low_resolution_images_are_never_taken_for_whole_ones(tmp_path):
    for name in ("LR/1.png", "LRbicx4/1.png", "My_LR_bicubic/X2/1.png", "image_SRF_2/img_001_SRF_2_LR.png"):
        root = tmp_path / name.replace("/", "-")
        touch(root, "whole/1.png", name)
        with pytest.raises(InputError, match=f"low-resolution images .{name}.*not known; looked for DIV2K_train_HR"):
            training_paths([root], 2)
        with pytest.raises(InputError, match=f"low-resolution images .{name}.*not known; looked for the test sets"):
            benchmark_paths(root, 2)
    touch(tmp_path / "good", "COLR/1.png", "a/SLR_photo.png")
    assert len(training_paths([tmp_path / "good"], 2)) == 2


def test_what_was_looked_for_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(InputError, match="no images in this folder.*DIV2K_train_HR.*GTmod12.*BSDS500.*any depth"):
        training_paths([tmp_path / "empty"], 2)
    with pytest.raises(InputError, match="looked for the test sets Set5, Set14, B100, Urban100, Manga109") as told:
        benchmark_paths(tmp_path / "empty", 2)
    assert "DIV2K_train_HR" not in str(told.value)
    for find in (lambda root: training_paths([root], 2), lambda root: benchmark_paths(root, 2)):
        with pytest.raises(InputError, match="nowhere: no such file or folder"):
            find(tmp_path / "nowhere")


def test_benchmarks_by_their_usual_names(tmp_path):
    touch(tmp_path, "benchmark/Set5/HR/baby.png", "benchmark/Set5/LR_bicubic/X2/babyx2.png")
    touch(tmp_path, "Set14/GTmod12/comic.png", "Set14/LRbicx2/comic.png", "Set14/original/comic.png")
    touch(tmp_path, "Urban100/img_001.png", "other/manga109/a.png", "BSR/BSDS500/data/images/val/1.jpg")
    found = {name: below(tmp_path, pairs) for name, pairs in benchmark_paths(tmp_path, 2).items()}
    assert found == {
        "Set5": {"baby.png": ("benchmark/Set5/HR/baby.png", "benchmark/Set5/LR_bicubic/X2/babyx2.png")},
        "Set14": {"comic.png": ("Set14/GTmod12/comic.png", "Set14/LRbicx2/comic.png")},
        "B100": {"1.jpg": ("BSR/BSDS500/data/images/val/1.jpg", None)},
        "Urban100": {"img_001.png": ("Urban100/img_001.png", None)},
        "Manga109": {"a.png": ("other/manga109/a.png", None)},
    }
    assert list(found) == ["Set5", "Set14", "B100", "Urban100", "Manga109"]
    for name in ("B100", "bsd100", "BSDS100"):
        touch(tmp_path, f"{name}/1.png")
        assert below(tmp_path, benchmark_paths(tmp_path, 2)["B100"]) == {"1.png": (f"{name}/1.png", None)}
        (tmp_path / name / "1.png").unlink()


def test_one_set_and_own_images(tmp_path, monkeypatch):
    touch(tmp_path, "Set5/HR/baby.png", "mine/x/1.png")
    assert list(benchmark_paths(tmp_path / "Set5", 2)) == ["Set5"]
    monkeypatch.chdir(tmp_path / "Set5")
    assert list(benchmark_paths(".", 2)) == ["Set5"]
    assert below(tmp_path, benchmark_paths(tmp_path / "mine", 2)["mine"]) == {"x/1.png": ("mine/x/1.png", None)}
    assert list(benchmark_paths(tmp_path / "mine/x/1.png", 2)) == ["1.png"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark images are not here")
def test_real_folders():
    found = benchmark_paths(DATA, 3)
    assert {name: len(pairs) for name, pairs in found.items()} == {"Set5": 5, "Set14": 14, "B100": 100}
    assert all(pair.lr and pair.lr.stem == f"{pair.hr.stem}x3" for pair in found["Set5"])
    assert all(pair.lr is None for pair in found["Set14"] + found["B100"])
    assert len(training_paths([DATA / "BSDS500"], 2)) == 200
