import csv

import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.data import images_for, noisy_image
from srnas_fast.errors import InputError
from srnas_fast.metrics import psnr, ssim
from srnas_fast.train import evaluate, load_network
from srnas_fast.train.evaluate import non_local_means
from srnas_fast.train.restore import restore_pixels


def of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_rows_means_files_and_figures(trained, images, tmp_path, capsys):
    rows = evaluate([str(trained)], root=str(images), sigma=[50, 20], out=str(tmp_path))
    assert len(rows) == 2 * 3 * (4 + 1)
    assert {row["method"] for row in rows} == {"noisy", "non-local means", "run"}
    for sigma in (50, 20):
        for method in ("noisy", "non-local means", "run"):
            (mean,) = of(rows, image="mean", sigma=sigma, method=method)
            single = [row for row in of(rows, sigma=sigma, method=method) if row["image"] != "mean"]
            assert [row["image"] for row in single] == [f"{i}.png" for i in range(4)]
            for figure in ("psnr", "ssim"):
                assert mean[figure] == pytest.approx(np.mean([row[figure] for row in single]))
    # One of them from its definition.
    image = images_for(str(images), "test").images[2]
    noisy = noisy_image(image.pixels, 50, 0, "2.png")
    restored = restore_pixels(load_network(trained).network, noisy, torch.device("cpu"))
    (row,) = of(rows, image="2.png", sigma=50, method="run")
    assert row["psnr"] == pytest.approx(psnr(restored, image.pixels), abs=1e-3)
    assert row["ssim"] == pytest.approx(ssim(restored, image.pixels), abs=1e-4)

    with open(tmp_path / "evaluation.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) and list(written[0]) == ["image", "sigma", "method", "psnr", "ssim"]
    for a, b in zip(rows, written, strict=True):
        assert (a["image"], a["method"], a["psnr"]) == (b["image"], b["method"], float(b["psnr"]))
    with open(tmp_path / "costs.csv", newline="") as file:
        ((name, parameters, multi_adds),) = list(csv.reader(file))[1:]
    assert name == "run" and int(parameters) > 50_000 and int(multi_adds) > int(parameters) * 1000
    assert Image.open(tmp_path / "comparison.png").width > 100
    shown = capsys.readouterr().out
    assert "parameters" in shown and "Multi-Adds at 64x64" in shown and "mean" in shown


def test_twice_the_same(trained, images):
    one, two = (evaluate([str(trained)], root=str(images), sigma=[30], nlm=False) for _ in range(2))
    assert one == two
    assert evaluate(trained, root=str(images), sigma=30, nlm=False) == one  # one network, one noise level
    other = evaluate([str(trained)], root=str(images), sigma=[30], nlm=False, seed=1)
    assert of(one, method="noisy") != of(other, method="noisy")


def test_runs_of_one_name_side_by_side_and_the_noise_of_their_training(trained, images, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    (other / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    rows = evaluate([str(trained), str(other)], root=str(images), nlm=False)
    assert {row["sigma"] for row in rows} == {50.0}  # of the preset
    assert {row["method"] for row in rows} == {"noisy", str(trained), str(other)}
    a, b = (of(rows, method=str(run)) for run in (trained, other))
    assert [row["psnr"] for row in a] == [row["psnr"] for row in b]


def test_damaged_images_are_named_skipped_and_counted(trained, images, tmp_path, capsys):
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.open(images / "0.png").resize((200, 200)).save(tmp_path / "torn.jpg", quality=95)
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "torn.jpg").read_bytes()[:3000])
    assert main(["evaluate", str(trained), "--data.root", str(tmp_path), "--sigma", "50", "--no-nlm"]) == 0
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2 and error[0].startswith(f"skipped {tmp_path}/torn.jpg: ") and error[1] == "1 image skipped"


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(trained, images, sigma):
    with pytest.raises(InputError, match="sigma holds"):
        evaluate([str(trained)], root=str(images), sigma=[sigma])


def test_no_run_is_refused():
    with pytest.raises(InputError, match="no network to evaluate"):
        evaluate([])


def test_non_local_means_removes_noise(pixels):
    clean = pixels(64, 80)
    noisy = noisy_image(clean, 30, 0, "a")
    restored = non_local_means(noisy, 30)
    assert restored.shape == clean.shape
    assert psnr(restored, clean) > psnr(noisy, clean) + 5
