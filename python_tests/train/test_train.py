import copy
import json
import sys

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


def test_the_rate_is_halved_at_shares_of_the_way():
    config = TrainConfig(iterations=10, learning_rate=0.8, warmup=2, halve_at=[0.3, 0.5])
    assert [config.rate(step) for step in (0, 1, 2, 3, 5, 9)] == pytest.approx([0.4, 0.8, 0.8, 0.4, 0.2, 0.2])


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_average_follows_by_hand(genotype_file, images, tmp_path, ema, monkeypatch):
    seen, follow = [], sys.modules["srnas_fast.train.train"]._follow

    def watched(average, net, decay):
        before = next(average.parameters()).clone()
        follow(average, net, decay)
        after = decay * before + (1 - decay) * next(net.parameters())
        torch.testing.assert_close(next(average.parameters()), after)
        seen.append(decay)

    monkeypatch.setattr(sys.modules["srnas_fast.train.train"], "_follow", watched)
    settings = ["--preset", "smoke", "--threads", "1", "--train.ema", str(ema), "--data.root", str(images)]
    assert main(["train", str(genotype_file), *settings, "--out", str(tmp_path / "run")]) == 0
    assert seen == (pytest.approx([0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15]) if ema else [])
    assert not load_network(tmp_path / "run").network.training


def test_the_norm_of_the_gradient_is_limited(genotype_file, images, tmp_path, monkeypatch):
    norms, step = [], torch.optim.SGD.step

    def watched(self, *arguments, **named):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    settings = ["--preset", "smoke", "--threads", "1", "--train.clip_norm", "1e-4", "--data.root", str(images)]
    assert main(["train", str(genotype_file), *settings, "--out", str(tmp_path / "run")]) == 0
    assert norms == pytest.approx([1e-4] * 6, rel=0.02)


def test_a_diverged_training_is_told_also_where_the_norm_is_limited(genotype_file, images, tmp_path, capsys):
    settings = ["--preset", "smoke", "--threads", "1", "--train.clip_norm", "1", "--train.learning_rate", "1e30"]
    out = ["--data.root", str(images), "--out", str(tmp_path / "run")]
    assert main(["train", str(genotype_file), *settings, *out]) == 2
    assert "diverged" in capsys.readouterr().err


def test_a_network_that_cannot_start_from_another_says_so(genotype_file, trained, tmp_path, capsys):
    settings = ["--preset", "smoke", "--train.start_from", str(trained), "--out", str(tmp_path / "run")]
    assert main(["train", str(genotype_file), *settings]) == 2
    assert "train.start_from" in capsys.readouterr().err


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
        {"bias_rate": 0},
        {"halve_at": [0]},
        {"clip_norm": -1},
        {"ema": 1},
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


def test_the_average_has_the_running_statistics_of_its_own_weights():
    """In a network whose weights and images' means both move at a steady pace, those of the average lag together."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    average = copy.deepcopy(net)
    norm = net[1]
    for step in range(200):
        nn.init.constant_(net[0].weight, 1 + step)
        norm.running_mean.fill_(0.5 * (1 + step))  # of images whose mean is 0.5
        norm.num_batches_tracked.fill_(step)
        sys.modules["srnas_fast.train.train"]._follow(average, net, 0.9)
    mean, weight = average[1].running_mean.item(), average[0].weight.item()
    assert weight == pytest.approx(200 - 9, rel=1e-3) and mean == pytest.approx(0.5 * weight, rel=1e-5)
    assert average[1].num_batches_tracked == 199


@pytest.mark.parametrize("own, decays", [(None, [0.5, 0.5]), (0.0, [0.5, 0.0]), (0.25, [0.5, 0.25])])
def test_biases_may_have_a_weight_decay_of_their_own(own, decays):
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = TrainConfig(weight_decay=0.5, bias_weight_decay=own).optimizer_for(net)
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_a_negative_weight_decay_of_biases_is_refused():
    with pytest.raises(InputError, match="train.bias_weight_decay is -1"):
        TrainConfig(bias_weight_decay=-1)
