"""The systems that enlarge, each through all of its commands, as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.train import load

pytestmark = pytest.mark.slow
SYSTEMS = {"hinas-sr-x2": 2, "hinas-sr-x3": 3, "hnas-x2": 2, "hnas-x3": 3, "hnas-x4": 4, "dlsr-x4": 4}
SYSTEMS |= {f"trilevel-x{scale}": scale for scale in (2, 3, 4)}


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five colour images of odd sizes, none of them divisible by 2, 3 and 4."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (11, 13, 3), dtype=np.uint8))
        coarse.resize((161 + i, 149), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("space", SYSTEMS)
def test_from_images_to_an_exported_network(space, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scale, data = SYSTEMS[space], ["--data.root", photos, "--threads", 1]
    run("search", space, "--preset", "smoke", *data, "--out", "s")
    run("random", space, "--preset", "smoke", "--seed", 3, "--out", "r.json")
    assert json.loads(Path("s/genotype.json").read_text())["space"] == json.loads(Path("r.json").read_text())["space"]
    pictures = {path.name for path in Path("s").glob("*.png")}
    assert pictures == {"architecture.png", "reward.png" if space.startswith("hnas") else "weights.png"}
    run("train", "s", "--preset", "smoke", *data, "--out", "t")
    run("train", "r.json", "--preset", "smoke", *data, "--out", "u")
    capsys.readouterr()
    run("evaluate", "t", "u", "--data.root", photos, "--out", "table")
    table = capsys.readouterr().out
    assert f"x{scale}: PSNR in dB" in table and all(name in table for name in ("bicubic", "│ t ", "│ u "))
    run("export", "t", "t.safetensors")
    run("restore", "t", photos, "--out", "large")
    run("restore", "t.safetensors", photos / "0.png", "--out", "again")
    assert Image.open("large/0.png").size == (161 * scale, 149 * scale)
    assert Path("large/0.png").read_bytes() == Path("again/0.png").read_bytes()
    run("export", "t", "t.onnx")
    assert load("t.safetensors").network.scale == scale


@pytest.mark.parametrize("space", ["hinas-sr-x2", "hnas-x2", "trilevel-x2"])
def test_a_genotype_is_trained_at_another_scale(space, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("random", space, "--preset", "smoke", "--out", "r.json")
    smaller = ["--data.patch", 72, "--data.validation_crop", 72]
    run("train", "r.json", "--preset", "smoke", "--network.scale", 4, "--data.root", photos, *smaller, "--out", "t")
    assert load("t").network.scale == 4


@pytest.mark.parametrize("space", ["hinas-sr-x4", "hnas-x4", "trilevel-x4"])
def test_help_and_wrong_arguments(space, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["search", space, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    groups = ("supernet.scale", "supernet.candidates", "data.patch", "search.epochs")
    own = ("reward.flops_scale", "search.controller_steps") if space == "hnas-x4" else ("search.warmup_epochs",)
    assert all(f"--{name} " in shown for name in (*groups, *own))
    for wrong, told in (
        (["--supernet.scale", "5"], "supernet.scale is 5; known: 2, 3, 4"),
        (["--supernet.candidates", "dance"], "unknown candidate operation 'dance'"),
        (["--supernet.candidates"], "supernet.candidates"),
        (["--preset", "large"], "unknown preset 'large'; known: paper, demo, smoke"),
        (["--data.patch", "4"], "data.patch is 4"),
    ):
        assert main(["search", space, *wrong, "--out", "/nonexistent/run"]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
