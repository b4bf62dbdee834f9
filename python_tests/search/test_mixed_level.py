"""The search of DLSR: both batches decide over the architecture, and so does what it costs."""

import json
import sys

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from srnas_fast.cli import main
from srnas_fast.data import ImagePair, SuperResolutionData, split_for_search
from srnas_fast.errors import InputError
from srnas_fast.losses import ComplexityLoss
from srnas_fast.metrics import LiveMemory, multi_adds
from srnas_fast.search import Bilevel, BilevelConfig, ComplexityConfig, RunConfig
from srnas_fast.search import search as search_images
from srnas_fast.spaces import SuperResolution, find_space
from srnas_fast.spaces.dlsr import DerivedNetwork, Genotype, NetworkConfig, Supernet, SupernetConfig
from srnas_fast.train import TrainConfig, export

TINY = SupernetConfig(width=4, cells=4)
READINGS = ("seconds", "memory_now", "memory_peak")


def batch(seed, size=16):
    random = torch.Generator().manual_seed(seed)
    shape = (2, 3, size, size)
    return torch.rand(shape, generator=random), torch.rand(2, 3, 2 * size, 2 * size, generator=random)


def algorithm(penalised=True, **settings):
    torch.manual_seed(0)
    net = Supernet(TINY)
    cost = ComplexityLoss(net.candidate_costs(TINY, "params"), 2.0)
    penalty = (lambda: cost(net.candidate_weights())) if penalised else None
    return Bilevel(Fabric(accelerator="cpu", devices=1), net, nn.L1Loss(), BilevelConfig(**settings), penalty)


def logs(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in READINGS} for record in records]


def test_the_gradient_is_the_sum_of_those_of_both_batches_and_of_the_complexity():
    search, held_out, seen = algorithm(), batch(0), batch(1)
    net = search.supernet
    logits = net.architecture_parameters()
    losses = [nn.L1Loss()(net(lr), hr) for lr, hr in (held_out, seen)]
    parts = [torch.autograd.grad(loss, logits) for loss in losses]
    weights = net.alpha.softmax(-1)
    costs = torch.tensor(net.candidate_costs(TINY, "params")).float()
    complexity = 2.0 * (weights @ (costs / costs.sum())).sum()
    (of_complexity,) = torch.autograd.grad(complexity, net.alpha)

    total = search.architecture_step(*held_out, also=[seen])
    assert total == pytest.approx(sum(loss.item() for loss in losses) + complexity.item(), rel=1e-6)
    torch.testing.assert_close(net.alpha.grad, parts[0][0] + parts[1][0] + of_complexity, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(net.beta.grad, parts[0][1] + parts[1][1], rtol=1e-5, atol=1e-9)
    assert all(p.grad is None for p in net.network_parameters())


def test_the_complexity_leaves_the_weights_alone():
    steps = []
    for penalised in (True, False):
        search = algorithm(penalised)
        steps.append((search.weight_step(*batch(0), epoch=0), [p.detach() for p in search.supernet.parameters()]))
    assert steps[0][0] == steps[1][0]
    assert all(torch.equal(a, b) for a, b in zip(steps[0][1], steps[1][1], strict=True))


def test_one_graph_at_a_time():
    peaks = []
    for also in ([], [batch(1, 32)], [batch(1, 32), batch(2, 32)]):
        search = algorithm()
        search.architecture_step(*batch(0, 32))  # Adam's state is there from now on
        with LiveMemory() as memory:
            search.architecture_step(*batch(0, 32), also=also)
        peaks.append(memory.peak)
    assert max(peaks) < 1.1 * peaks[0]


def test_the_steps_of_a_search_with_mixed_level(monkeypatch, tmp_path):
    seen = []

    def step(self, given, target, also=()):
        seen.append(("architecture", target, *(pair[1] for pair in also)))
        return 1.0

    def weights(self, given, target, epoch):
        seen.append(("weights", target))
        return 1.0

    monkeypatch.setattr(Bilevel, "architecture_step", step)
    monkeypatch.setattr(Bilevel, "weight_step", weights)
    for mixed in (True, False):
        seen.clear()
        search_images(
            "dlsr-x2",
            supernet=SupernetConfig(width=4, cells=3),
            data=SuperResolutionData(patch=32, batch=2, validation_crop=32),
            search=BilevelConfig(epochs=2, warmup_epochs=1, steps=2, validate_from=2, mixed_level=mixed),
            run=RunConfig(out=str(tmp_path / str(mixed))),
        )
        assert [name for name, *_ in seen] == ["weights"] * 2 + ["architecture", "weights"] * 2
        for (_, held_out, *also), (_, target) in zip(seen[2::2], seen[3::2], strict=True):
            assert len(also) == mixed and not torch.equal(held_out, target)
            assert all(torch.equal(pair, target) for pair in also)


def search(out, coefficient=1.0, by="params", resume=False, **settings):
    schedule = {"epochs": 4, "warmup_epochs": 1, "steps": 3, "validate_from": 4, "optimizer": "adam"} | settings
    return search_images(
        "dlsr-x2",
        supernet=SupernetConfig(width=4, cells=3),
        data=SuperResolutionData(patch=32, batch=2, validation_crop=32),
        search=BilevelConfig(mixed_level=True, architecture_beta=0.5, learning_rate=2e-3, **schedule),
        complexity=ComplexityConfig(by, coefficient),
        run=RunConfig(out=str(out), resume=resume, checkpoint_every=4),
    )


def cost(folder):
    genotype = Genotype.from_dict(json.loads((folder / "genotype.json").read_text()))
    return multi_adds(DerivedNetwork(genotype, NetworkConfig(width=4)), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("by", ["params", "madds"])
def test_a_larger_coefficient_ends_in_a_cheaper_network(by, tmp_path):
    costs = []
    for coefficient in (0.0, 1e4):
        out = tmp_path / str(coefficient)
        search(out, coefficient, by, architecture_learning_rate=0.05)
        costs.append(cost(out))
    assert costs[1] < 0.8 * costs[0]


def test_a_killed_search_goes_on_bit_for_bit(monkeypatch, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    search(whole)
    step, done = Bilevel.weight_step, []

    def dies(self, *arguments):
        done.append(arguments)
        if len(done) == 7:  # past the checkpoint of step 4, in mid-epoch, after the architecture's step
            raise RuntimeError("killed")
        return step(self, *arguments)

    monkeypatch.setattr(Bilevel, "weight_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        search(out)
    monkeypatch.setattr(Bilevel, "weight_step", step)
    search(out, resume=True)
    assert logs(out) == logs(whole)
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["supernet"] for folder in (whole, out))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_super_resolution_is_searched_and_its_network_trained_and_resumed(monkeypatch, tmp_path):
    searched, whole, out = (tmp_path / name for name in ("search", "whole", "run"))
    common = ["--preset", "smoke", "--threads", "1"]
    assert main(["search", "dlsr-x2", *common, "--out", str(searched)]) == 0
    assert (searched / "architecture.png").exists() and (searched / "weights.png").exists()
    result = json.loads((searched / "result.json").read_text())
    assert result["score"] == result["psnr"] > 5

    settings = [*common, "--train.ema", "0.9", "--checkpoint_every", "4"]
    assert main(["train", str(searched), *settings, "--out", str(whole)]) == 0
    TRAIN = sys.modules["srnas_fast.train.train"]
    follow, done = TRAIN._follow, []

    def dies(*arguments):
        done.append(arguments)
        if len(done) == 6:
            raise RuntimeError("killed")
        follow(*arguments)

    monkeypatch.setattr(TRAIN, "_follow", dies)
    with pytest.raises(RuntimeError, match="killed"):
        main(["train", str(searched), *settings, "--out", str(out)])
    monkeypatch.setattr(TRAIN, "_follow", follow)
    assert main(["train", str(searched), "--resume", "--out", str(out)]) == 0
    assert logs(out) == logs(whole)
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, out))
    for part in ("network", "learning"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    assert not torch.equal(a["network"]["head.conv.weight"], a["learning"]["head.conv.weight"])

    epochs = [json.loads(line)["epoch"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert set(epochs) == {1}  # 21 patches of each of 10 photographs, two a step

    x4 = tmp_path / "x4"
    larger = ["--network.scale", "4", "--data.patch", "64", "--data.validation_crop", "96", "--train.iterations", "1"]
    exported = export(whole, tmp_path / "x2.safetensors")
    start = ["--train.start_from", exported, "--train.learning_rate", "1e-9"]
    assert main(["train", str(searched), *common, *larger, *start, "--out", str(x4)]) == 0
    started = torch.load(x4 / "checkpoint.pt", weights_only=True)
    assert "scale" not in started["config"]["data"]  # it is the network's
    torch.testing.assert_close(started["network"]["head.conv.weight"], a["network"]["head.conv.weight"])
    assert started["network"]["tail.upsample.weight"].shape[0] == 48


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_and_crops_have_the_scale_of_the_network_and_are_as_large_as_it_needs(scale):
    size, least = NetworkConfig(scale=scale), 15 * scale
    task = SuperResolution(SuperResolutionData(patch=least, validation_crop=least), size)
    images = task.images("train")[0]
    lr, hr = task.pairs(images[:1], seed=0)[0]
    assert lr.shape == (15, 15, 3) and hr.shape == (least, least, 3)
    assert task.stream(images, 0, "train")[0][0].shape == (3, 15, 15)
    for field in ("patch", "validation_crop"):
        with pytest.raises(InputError, match=f"data.{field} is {least - 1}; give {least} or more"):
            SuperResolution(SuperResolutionData(**{field: least - 1}), size)
    assert SuperResolution(SuperResolutionData(validation_crop=0), size).pairs(images[:1], 0)[0][0].shape[0] > 15


def test_the_presets_run_at_every_scale():
    space = find_space("dlsr-x2")
    for presets, config in ((space.search_presets, SupernetConfig), (space.train_presets, NetworkConfig)):
        for preset in presets.values():
            for scale in (2, 3, 4):
                SuperResolution(SuperResolutionData(**preset.get("data", {})), config(scale=scale))


def test_images_are_shared_as_in_the_paper():
    images = [ImagePair(f"{i:04}", 2, (1, 1), np.zeros((2, 2, 3), np.uint8)) for i in range(3450)]
    task = SuperResolution(SuperResolutionData(), SupernetConfig())
    weights, architecture, validation = split_for_search(images, 0, task.architecture_share)
    assert (len(weights), len(architecture), len(validation)) == (2940, 441, 69)  # the paper: 3000 and 450
    assert task.steps(len(weights)) == 965  # the paper: about 984
    assert [len(part) for part in split_for_search(images[:3], 0, task.architecture_share)] == [1, 1, 1]


def test_a_space_without_costs_refuses_the_term():
    with pytest.raises(InputError, match="no settings complexity; it has supernet, data, loss, search"):
        search_images("hinas-denoise", preset="smoke", complexity=ComplexityConfig())


@pytest.mark.parametrize("settings", [{"by": "flops"}, {"coefficient": -1}])
def test_complexity_settings_out_of_their_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"complexity.{name}"):
        ComplexityConfig(**settings)


def test_every_preset_is_of_settings_that_exist():
    space = find_space("dlsr-x2")
    groups = {
        "supernet": space.supernet_config,
        "network": space.network_config,
        "data": space.data,
        "loss": space.loss,
        "complexity": ComplexityConfig,
        "search": BilevelConfig,
        "train": TrainConfig,
    }
    presets = [space.search_preset(name) for name in space.search_presets]
    presets += [space.train_preset(name) for name in space.train_presets]
    for preset in presets:
        made = {name: groups[name](**settings) for name, settings in preset.items()}
        if "search" in made:
            assert made["search"].validate_from <= made["search"].epochs
    paper = BilevelConfig(**space.search_preset("paper")["search"])
    assert [paper.rate(epoch) for epoch in (0, 199, 200, 400, 600, 999)] == pytest.approx(
        [5e-4, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5]
    )
    paper = TrainConfig(**space.train_preset("paper")["train"])
    assert [paper.rate(epoch * 1941) for epoch in (0, 199, 200, 400, 600, 800, 999)] == pytest.approx(
        [3e-4 / 2**halvings for halvings in (0, 0, 1, 2, 3, 4, 4)]
    )
