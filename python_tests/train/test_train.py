import json

import pytest
import torch
from PIL import Image
from torch import nn

from srnas_fast.cli import main
from srnas_fast.errors import InputError
from srnas_fast.train import TrainConfig, load_network


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1 / 4), (1, 0.2 / 4 * 0.9**0.5), (3, 0.1 * 0.7**0.5), (5, 0.1 * 0.5**0.5), (9, 0.1 * 0.1**0.5)],
)
def test_the_rate_by_hand(step, rate):
    config = TrainConfig(iterations=10, learning_rate=0.1, warmup=4, power=0.5)
    assert config.rate(step) == pytest.approx(rate, rel=1e-12)


def test_the_rate_without_warm_up_starts_at_its_highest():
    assert TrainConfig(warmup=0).rate(0) == 0.05


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_biases_learn_at_twice_the_rate(optimizer):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = TrainConfig(optimizer=optimizer).optimizer_for(net).param_groups
    assert [group["rate_factor"] for group in groups] == [1, 2]
    assert [{id(p) for p in group["params"]} for group in groups] == [
        {id(net[0].weight), id(net[1].weight)},
        {id(net[0].bias), id(net[1].bias)},
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"warmup": -1},
        {"validate_every": 0},
        {"learning_rate": 0},
        {"clip": 0},
        {"optimizer": "rprop"},
        {"momentum": -1},
        {"weight_decay": -1},
        {"power": -1},
    ],
)
def test_settings_out_of_their_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=name):
        TrainConfig(**settings)


def test_the_folder_of_a_training(genotype_file, images, tmp_path):
    out = tmp_path / "run"
    settings = ["--preset", "smoke", "--threads", "1", "--train.iterations", "5", "--train.validate_every", "2"]
    assert main(["train", str(genotype_file), *settings, "--data.root", str(images), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir() if not path.name.startswith("events")}
    assert names == {"architecture.png", "checkpoint.pt", "config.yaml", "genotype.json", "log.jsonl", "result.json"}
    assert json.loads((out / "genotype.json").read_text()) == json.loads(genotype_file.read_text())
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "psnr" in record] == [2, 4, 5]
    config = TrainConfig(iterations=5, warmup=2)
    assert [record["learning_rate"] for record in records] == [config.rate(step) for step in range(5)]
    result = json.loads((out / "result.json").read_text())
    assert (result["psnr"], result["ssim"]) == (records[-1]["psnr"], records[-1]["ssim"])
    trained = load_network(out)
    assert not trained.network.training and trained.name == "run"
    assert result["parameters"] == sum(p.numel() for p in trained.network.parameters())


def test_a_training_learns(genotype_file, images, tmp_path):
    out = tmp_path / "run"
    settings = "--preset smoke --threads 1 --train.iterations 60 --train.optimizer adam --train.learning_rate 0.003"
    assert main(["train", str(genotype_file), *settings.split(), "--data.root", str(images), "--out", str(out)]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_damaged_images_are_named_skipped_and_counted(genotype_file, images, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    Image.open(images / "0.png").resize((200, 200)).save(folder / "torn.jpg", quality=95)
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:3000])
    commands = {"train": [str(genotype_file)], "search": ["hinas-denoise"]}
    for command, first in commands.items():
        out = tmp_path / command
        settings = ["--preset", "smoke", "--threads", "1", "--data.root", str(folder), "--out", str(out)]
        assert main([command, *first, *settings]) == 0
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 2 and error[0].startswith(f"skipped {folder}/torn.jpg: ")
        assert error[1] == "1 image skipped"
        assert json.loads((out / "result.json").read_text())["skipped_images"] == 1


def test_the_same_settings_give_the_same_weights(genotype_file, images, tmp_path):
    states = []
    for name in "ab":
        out = str(tmp_path / name)
        settings = ["--preset", "smoke", "--threads", "1", "--data.root", str(images), "--out", out]
        assert main(["train", str(genotype_file), *settings]) == 0
        states.append(torch.load(f"{out}/checkpoint.pt", weights_only=True)["network"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_genotype_of_other_operations_of_equal_size_is_not_resumed(trained, tmp_path, capsys):
    """con_c_3x3 and dil_c_3x3 have weights of one shape: they fit, but mean something else."""
    data = json.loads((trained / "genotype.json").read_text())
    data["cells"][0][0][0] = "dil_c_3x3"
    (tmp_path / "other.json").write_text(json.dumps(data))
    assert main(["train", str(tmp_path / "other.json"), "--resume", "--out", str(trained)]) == 2
    assert "has genotype.cells" in capsys.readouterr().err
