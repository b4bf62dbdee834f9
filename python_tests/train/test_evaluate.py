import csv
import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.data import benchmark_sets, images_for, noisy_image, resize
from srnas_fast.errors import InputError
from srnas_fast.metrics import count_parameters, multi_adds, psnr, ssim, super_resolution_quality
from srnas_fast.train import evaluate, export, load, load_network
from srnas_fast.train.denoising import non_local_means, restore_pixels
from srnas_fast.train.super_resolution import upscale_pixels

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PUBLISHED = SHARED / "dlsr" / "RFDN_beta21_tiny18_ps128_20210306_lr4_700.pt"


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


def test_super_resolution_rows_means_files_and_figures(upscaler, test_sets, tmp_path, capsys):
    rows = evaluate(upscaler, root=str(test_sets), out=str(tmp_path))
    assert [(row["set"], row["image"], row["method"]) for row in rows] == [
        (benchmark, image, method)
        for benchmark, images in (("Set5", ("a.png", "b.png")), ("Set14", ("c.png",)))
        for image in (*images, "mean")
        for method in ("bicubic", "larger")
    ]
    for method in ("bicubic", "larger"):
        (mean,) = of(rows, set="Set5", image="mean", method=method)
        single = [row for row in of(rows, set="Set5", method=method) if row["image"] != "mean"]
        for figure in ("psnr", "ssim", "seconds"):
            assert mean[figure] == pytest.approx(np.mean([row[figure] for row in single]))
    # One of each method from its definition.
    lr, hr = benchmark_sets(str(test_sets), 2)["Set5"].images[1].whole()
    assert hr.shape == (40, 60, 3)
    for method, result in (
        ("bicubic", resize(lr, 2)),
        ("larger", upscale_pixels(load(upscaler).network, lr, torch.device("cpu"))),
    ):
        (row,) = of(rows, image="b.png", method=method)
        assert (row["psnr"], row["ssim"]) == pytest.approx(super_resolution_quality(result, hr, border=2))

    with open(tmp_path / "evaluation.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in written] == [row["psnr"] for row in rows]
    with open(tmp_path / "costs.csv", newline="") as file:
        columns, bicubic, (name, parameters, adds, peak, seconds) = list(csv.reader(file))
    assert columns[2] == "Multi-Adds at 1280x720" and bicubic[:4] == ["bicubic", "", "", ""]
    network = load(upscaler).network
    assert name == "larger" and int(parameters) == count_parameters(network) and float(seconds) > 0
    assert int(adds) == multi_adds(network, torch.zeros(1, 3, 360, 640))
    assert int(peak) > 4 * (3 * 360 * 640 + 3 * 720 * 1280)  # at least the image and its result
    assert Image.open(tmp_path / "comparison.png").width > 100
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Set5", "Set14", "bicubic", "larger", "parameters", "within a border of 2"))


def test_border_and_self_ensemble(upscaler, test_sets, capsys):
    command = ["evaluate", str(upscaler), "--data.root", str(test_sets / "Set14"), "--border", "4", "--self_ensemble"]
    assert main(command) == 0
    assert "mean of eight symmetries" in capsys.readouterr().out
    (row,) = of(evaluate(upscaler, str(test_sets / "Set14"), border=4, self_ensemble=True)[:2], method="larger")
    network = load(upscaler).network
    lr, hr = benchmark_sets(str(test_sets), 2)["Set14"].images[0].whole()
    total = 0
    for turns in range(4):
        for flipped in (False, True):
            image = np.rot90(lr[:, ::-1] if flipped else lr, turns)
            result = np.rot90(upscale_pixels(network, image, torch.device("cpu")), -turns)
            total = total + (result[:, ::-1] if flipped else result) / 8
    assert (row["psnr"], row["ssim"]) == pytest.approx(super_resolution_quality(total, hr, border=4), abs=1e-4)
    alone = super_resolution_quality(upscale_pixels(network, lr, torch.device("cpu")), hr, border=4)
    assert alone[0] != pytest.approx(row["psnr"], abs=1e-4)


def test_options_of_the_other_task_are_refused(upscaler, trained, test_sets):
    for options in ({"sigma": [50]}, {"nlm": False}, {"seed": 1}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: no option of super-resolution"):
            evaluate(upscaler, str(test_sets), **options)
    for options in ({"border": 4}, {"self_ensemble": True}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: no option of denoising"):
            evaluate(trained, **options)
    with pytest.raises(InputError, match="border is -1"):
        evaluate(upscaler, str(test_sets), border=-1)
    with pytest.raises(InputError, match="border is 14; give 12 or less, for c.png of Set14 is small"):
        evaluate(upscaler, str(test_sets / "Set14"), border=14)


def test_a_set_that_is_not_whole_says_so(upscaler, test_sets, tmp_path, capsys):
    shutil.copytree(test_sets / "Set5", tmp_path / "Set5")
    (tmp_path / "Set5/HR/torn.png").write_bytes(b"torn")
    evaluate(upscaler, str(tmp_path))
    assert "Set5 (2 of 3)" in " ".join(capsys.readouterr().out.split())


def test_networks_of_several_tasks_or_scales_are_refused(upscaler, trained, make_upscaler, test_sets, monkeypatch):
    with pytest.raises(InputError, match=r"several tasks: run \(denoising\), larger \(super-resolution\)"):
        evaluate([trained, upscaler])
    x2 = load(upscaler)
    x3 = dataclasses.replace(x2, name="x3", network=make_upscaler(scale=3))
    monkeypatch.setattr(sys.modules["srnas_fast.train.evaluate"], "load", {"x2": x2, "x3": x3}.get)
    with pytest.raises(InputError, match=r"several scales: larger \(x2\), x3 \(x3\)"):
        evaluate(["x2", "x3"], str(test_sets))


def test_an_exported_network_does_not_know_its_noise(trained, images, tmp_path):
    exported = export(trained, tmp_path / "run2.safetensors")
    with pytest.raises(InputError, match="run2 does not tell the noise"):
        evaluate(exported, root=str(images), nlm=False)
    rows = evaluate([trained, exported], root=str(images), nlm=False)
    assert of(rows, method="run", image="mean")[0]["psnr"] == of(rows, method="run2", image="mean")[0]["psnr"]


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"needs the published checkpoint and its test sets, in {SHARED}")
def test_the_published_network_as_its_authors_measured_it(tmp_path, capsys):
    paper = {"Set5": (37.71, 0.9595), "Set14": (33.26, 0.9151)}
    root = tmp_path / "root"
    root.mkdir()
    for benchmark in paper:  # and not BSDS500, which takes longer
        (root / benchmark).symlink_to(SHARED / benchmark)
    assert main(["evaluate", str(PUBLISHED), "--data.root", str(root), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "56,268" in shown and "12.07" in shown
    with open(tmp_path / "evaluation.csv", newline="") as file:
        means = of(list(csv.DictReader(file)), image="mean", method=PUBLISHED.stem)
    assert [row["set"] for row in means] == list(paper)
    for row in means:
        quality, similarity = paper[row["set"]]
        assert float(row["psnr"]) == pytest.approx(quality, abs=0.01)
        assert float(row["ssim"]) == pytest.approx(similarity, abs=0.0003)
