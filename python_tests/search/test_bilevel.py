import json
import math
import sys
from collections import defaultdict

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.data import DenoisingData
from srnas_fast.errors import InputError
from srnas_fast.mixed import PlainMixedOp
from srnas_fast.search import Bilevel, BilevelConfig, RunConfig
from srnas_fast.search import search as search_images
from srnas_fast.search.bilevel import frozen
from srnas_fast.spaces import find_space
from srnas_fast.spaces.hinas import SupernetConfig

ALGORITHM = sys.modules["srnas_fast.search.algorithm"]
TINY = SupernetConfig(filters=2, layers=2, nodes=1)


@pytest.fixture
def algorithm():
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    return Bilevel(
        fabric, find_space("hinas-denoise").supernet(TINY), nn.MSELoss(), BilevelConfig(epochs=10, warmup_epochs=2)
    )


def batch(seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(2, 1, 16, 16, generator=random), torch.rand(2, 1, 16, 16, generator=random)


def values(parameters):
    return [p.detach().clone() for p in parameters]


def all_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.025),
        (5, 0.001 + 0.024 * 0.5 * 0.95**0.9),  # cos(pi / 2) = 0
        (10, 0.001),  # cos(pi) = -1
        (15, 0.001 + 0.024 * 0.5 * 0.85**0.9),
        (20, 0.001 + 0.024 * 0.8**0.9),  # cos(2 pi) = 1
        (25, 0.001 + 0.024 * 0.5 * 0.75**0.9),
        (99, 0.001 + 0.024 * 0.5 * (1 + math.cos(9.9 * math.pi)) * 0.01**0.9),
    ],
)
def test_the_rate_of_the_paper_by_hand(epoch, rate):
    assert BilevelConfig().rate(epoch) == pytest.approx(rate, rel=1e-12)


def test_the_rate_depends_on_all_four_settings():
    config = BilevelConfig(epochs=8, warmup_epochs=2, cosine_epochs=4, learning_rate=0.3, final_learning_rate=0.1)
    quarter = (1 + math.sqrt(0.5)) / 2  # at a quarter of the half wave
    assert config.rate(1) == pytest.approx(0.1 + 0.2 * quarter * (7 / 8) ** 0.9)
    assert config.rate(4) == pytest.approx(0.1)


def test_an_architecture_step_moves_the_architecture_alone(algorithm):
    net = algorithm.supernet
    weights, architecture = values(net.network_parameters()), values(net.architecture_parameters())
    algorithm.architecture_step(*batch())
    assert all_equal(weights, net.network_parameters())
    assert all(p.grad is None for p in net.network_parameters())
    assert not torch.equal(architecture[0], net.alpha) and not torch.equal(architecture[1], net.beta)
    assert all(p.requires_grad for p in net.parameters())


def test_a_weight_step_moves_the_weights_alone(algorithm):
    net = algorithm.supernet
    algorithm.architecture_step(*batch())
    gradients = values(p.grad for p in net.architecture_parameters())
    weights, architecture = values(net.network_parameters()), values(net.architecture_parameters())
    algorithm.weight_step(*batch(1), epoch=5)
    assert all_equal(architecture, net.architecture_parameters())
    assert all_equal(gradients, [p.grad for p in net.architecture_parameters()])
    assert not any(torch.equal(a, b) for a, b in zip(weights, net.network_parameters(), strict=True) if b.numel() > 1)
    assert all(p.requires_grad for p in net.parameters())
    assert [group["lr"] for group in algorithm.weights.param_groups] == [algorithm.config.rate(5)]


def test_the_first_weight_step_is_sgd_by_hand(algorithm):
    """w - rate * (gradient + decay * w), the momentum being empty."""
    net, config = algorithm.supernet, algorithm.config
    noisy, clean = batch()
    before = values(net.network_parameters())
    gradients = torch.autograd.grad(nn.MSELoss()(net(noisy), clean), net.network_parameters())
    algorithm.weight_step(noisy, clean, epoch=3)
    for w, g, after in zip(before, gradients, net.network_parameters(), strict=True):
        torch.testing.assert_close(after, w - config.rate(3) * (g + config.weight_decay * w), rtol=1e-4, atol=1e-7)


def test_frozen_gives_back_what_it_took_also_after_an_error():
    learned, fixed = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(RuntimeError, match="stop"), frozen([learned, fixed]):
        assert not learned.requires_grad and not fixed.requires_grad
        raise RuntimeError("stop")
    assert learned.requires_grad and not fixed.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"warmup_epochs": -1},
        {"warmup_epochs": 100},
        {"steps": -1},
        {"cosine_epochs": 0},
        {"validate_from": 0},
        {"learning_rate": 0},
        {"learning_rate": math.inf},
        {"architecture_learning_rate": -1},
        {"final_learning_rate": -1},
        {"momentum": -1},
        {"weight_decay": -1},
        {"architecture_weight_decay": -1},
        {"optimizer": "rprop"},
        {"architecture_beta": 1},
        {"halve_at": [0.2, 1]},
    ],
)
def test_settings_out_of_their_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=name):
        BilevelConfig(**settings)


class Watched:
    """What a whole search fed to its two steps, and the architecture after every step."""

    def __init__(self, monkeypatch, images, tmp_path, scores=None, **schedule):
        self.steps, self.genotypes = [], []
        self.batches = defaultdict(list)
        for name in ("architecture_step", "weight_step"):
            monkeypatch.setattr(Bilevel, name, self.watch(name, getattr(Bilevel, name)))
        if scores is not None:
            scores = iter(scores)
            figures = {"psnr": 20.0, "ssim": 0.5}
            monkeypatch.setattr(ALGORITHM, "validate", lambda *_: figures | {"score": next(scores)})
        self.folder = tmp_path / "run"
        self.result = search_images(
            "hinas-denoise",
            supernet=TINY,
            data=DenoisingData(root=str(images), patch=16, batch=2, validation_crop=16),
            search=BilevelConfig(**schedule),
            run=RunConfig(out=str(self.folder)),
        )

    def watch(self, name, step):
        def watched(algorithm, noisy, clean, *epoch):
            self.batches[name].append((noisy.clone(), clean.clone()))
            loss = step(algorithm, noisy, clean, *epoch)
            self.steps.append((name, *epoch, values(algorithm.supernet.architecture_parameters())))
            return loss

        return watched


def test_the_architecture_rests_in_the_warm_up_then_the_steps_alternate(monkeypatch, images, tmp_path):
    watched = Watched(monkeypatch, images, tmp_path, epochs=3, warmup_epochs=2, steps=2, validate_from=3)
    names = [name for name, *_ in watched.steps]
    assert names == ["weight_step"] * 4 + ["architecture_step", "weight_step"] * 2
    assert [epoch for name, *epoch, _ in watched.steps if name == "weight_step"] == [[0], [0], [1], [1], [2], [2]]
    initial = values(find_space("hinas-denoise").supernet(TINY).architecture_parameters())
    moved = [not all_equal(initial, architecture) for *_, architecture in watched.steps]
    assert moved == [False] * 4 + [True] * 4


def test_the_two_groups_see_different_images(monkeypatch, images, tmp_path):
    watched = Watched(monkeypatch, images, tmp_path, epochs=2, warmup_epochs=0, steps=3, validate_from=2)
    weights, architecture = (watched.batches[name] for name in ("weight_step", "architecture_step"))
    assert len(weights) == len(architecture) == 6
    for noisy, clean in weights:
        assert not any(torch.equal(clean, other) for _, other in architecture)
        assert (noisy - clean).std() > 0.05


def test_the_best_genotype_is_that_of_the_best_score_of_the_epochs_that_count(monkeypatch, images, tmp_path):
    made = []
    space = find_space("hinas-denoise")

    def genotype(self):
        made.append(space.random_genotype(TINY, seed=len(made)))
        return made[-1]

    monkeypatch.setattr(space.supernet, "genotype", genotype)
    schedule = {"epochs": 5, "warmup_epochs": 1, "steps": 1, "validate_from": 2}
    watched = Watched(monkeypatch, images, tmp_path, scores=[0.3, 0.9, 0.9, 0.1], **schedule)
    # Epoch 1 is not validated; 3 and 4 are equally good, and the first of them is kept.
    assert watched.result["epoch"] == 3 and watched.result["score"] == 0.9
    records = [json.loads(line) for line in (watched.folder / "log.jsonl").read_text().splitlines()]
    assert watched.result["genotype"] == str(space.read_genotype(records[2]["genotype"]))
    assert len({str(genotype) for genotype in made}) == len(made)
    assert (watched.folder / "genotype.json").exists()


def test_no_steps_given_means_one_pass_over_the_images_for_the_weights(monkeypatch, images, tmp_path):
    """Of 8 images, 1 validates, 3 are for the architecture, 4 for the weights: 2 batches of 2."""
    watched = Watched(monkeypatch, images, tmp_path, epochs=2, warmup_epochs=1, validate_from=2)
    assert len(watched.batches["weight_step"]) == 4 and len(watched.batches["architecture_step"]) == 2


def test_an_epoch_to_validate_from_that_never_comes_is_refused(tmp_path):
    with pytest.raises(InputError, match="validate_from is 9"):
        search_images("hinas-denoise", search=BilevelConfig(epochs=3, warmup_epochs=1, validate_from=9))


def test_the_first_twenty_steps_are_those_of_the_plain_supernet():
    losses, logits = [], []
    for mixed_op in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
        supernet = find_space("hinas-denoise").supernet(SupernetConfig(filters=3, layers=2, nodes=2), mixed_op).double()
        algorithm = Bilevel(fabric, supernet, nn.MSELoss(), BilevelConfig(epochs=10, warmup_epochs=0))
        for step in range(20):
            noisy, clean = (t.double() for t in batch(step))
            losses.append(float(algorithm.architecture_step(noisy, clean)))
            losses.append(float(algorithm.weight_step(noisy, clean, epoch=0)))
        logits.append(torch.cat([p.detach().flatten() for p in supernet.architecture_parameters()]))
    torch.testing.assert_close(torch.tensor(losses[40:]), torch.tensor(losses[:40]), rtol=1e-8, atol=0)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-8, atol=1e-8)


SPARSE = SupernetConfig(filters=2, layers=2, nodes=1, weights="sparsestmax")


def sparse_search(images, folder, supernet=SPARSE, resume=False):
    """Six steps, of which the first two are warm-up; the records of its log."""
    search_images(
        "hinas-denoise",
        supernet=supernet,
        data=DenoisingData(root=str(images), patch=16, batch=2, validation_crop=16),
        search=BilevelConfig(epochs=3, warmup_epochs=1, steps=2, validate_from=3, architecture_learning_rate=0.02),
        run=RunConfig(out=str(folder), resume=resume, checkpoint_every=2),
    )
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_search_with_sparsestmax_ends_decided(images, tmp_path):
    records = sparse_search(images, tmp_path / "run")
    assert [record["radius"] for record in records] == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1])
    live = [record["live"] for record in records]
    assert live[:2] == [1, 1] and live == sorted(live, reverse=True) and live[-1] == pytest.approx(7 / 35)
    for rows in records[-1]["weights"].values():
        assert all(sorted(row)[-1] == 1 and sum(row) == 1 for row in rows)
    assert set(records[-1]["entropy"].values()) == {0}


@pytest.mark.parametrize("weights, logged", [("softmax", set()), ("sparsemax", {"live"})])
def test_other_maps_have_no_radius(weights, logged, images, tmp_path):
    records = sparse_search(images, tmp_path / "run", SupernetConfig(2, 2, 1, weights=weights))
    assert all(record.keys() & {"live", "radius"} == logged for record in records)
    assert all(0 < max(row) < 1 for rows in records[-1]["weights"].values() for row in rows)


def test_a_resumed_search_goes_on_with_its_radius(monkeypatch, images, tmp_path):
    whole, out = sparse_search(images, tmp_path / "whole"), tmp_path / "run"
    step = Bilevel.weight_step

    def dies(self, noisy, clean, epoch):
        if self.supernet.radius > 0.5:  # in step 5, past the checkpoint of step 4
            raise RuntimeError("killed")
        return step(self, noisy, clean, epoch)

    monkeypatch.setattr(Bilevel, "weight_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        sparse_search(images, out)
    monkeypatch.setattr(Bilevel, "weight_step", step)
    resumed = sparse_search(images, out, resume=True)
    readings = ("seconds", "memory_now", "memory_peak")
    assert [{k: v for k, v in record.items() if k not in readings} for record in resumed] == [
        {k: v for k, v in record.items() if k not in readings} for record in whole
    ]
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["supernet"] for folder in (tmp_path / "whole", out))
    assert all(torch.equal(a[name], b[name]) for name in a)
