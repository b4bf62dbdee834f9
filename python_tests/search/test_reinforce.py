"""Search by reinforcement: the gradient of its policy, its reward, its schedule, and what a resumed run repeats."""

import json
import math
from dataclasses import asdict, dataclass
from itertools import product

import pytest
import torch
from torch import nn

from srnas_fast.data import DenoisingData
from srnas_fast.errors import InputError
from srnas_fast.losses import DenoisingLoss
from srnas_fast.search import BilevelConfig, ComplexityConfig, ReinforceConfig, RewardConfig, RunConfig, search
from srnas_fast.search.algorithm import Batches
from srnas_fast.search.reinforce import Baseline, Reinforce, batch_psnr, policy_loss
from srnas_fast.spaces import Denoising, Space, known, register_space

ARMS = 3


@dataclass(frozen=True)
class Arm:
    """Which of the bandit's arms."""

    index: int

    def graph(self):
        return [("bandit", [("in", "out", f"arm {self.index}")])]


@dataclass
class Drawn:
    genotype: Arm
    log_probabilities: torch.Tensor
    entropies: torch.Tensor


@dataclass
class Size:
    """Nothing to set."""


@dataclass
class NetworkSize:
    """Nothing to set."""


class Bandit(nn.Module):
    """Softmax over arms."""

    weights = (1.0,)

    def __init__(self, config=None):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(ARMS))

    def sample(self, generator):
        log = self.logits.log_softmax(0)
        arm = int(torch.multinomial(log.detach().exp(), 1, generator=generator))
        return Drawn(Arm(arm), log[arm][None], -(log.exp() * log).sum()[None])


class Blend(nn.Module):
    """An image moved towards gray: arm 1 least of all, and it costs as much as the others."""

    strengths = (0.5, 0.0, 1.0)

    def __init__(self, config=None):
        super().__init__()
        self.shifts = nn.Parameter(torch.zeros(ARMS))

    def network_parameters(self):
        return list(self.parameters())

    def cost(self, genotype, by, side):
        return 1000

    def forward(self, x, genotype):
        return torch.lerp(x, torch.full_like(x, 0.5), self.strengths[genotype.index]) + self.shifts[genotype.index]


class Derived(nn.Module):
    """The arm's strength on images."""

    channels, smallest, reach = 1, 1, 0

    def __init__(self, genotype, config):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.shift


@pytest.fixture
def bandit(monkeypatch):
    monkeypatch.setattr(known, "_REGISTERED", {})
    return register_space(
        Space(
            name="bandit",
            supernet_config=Size,
            supernet=Blend,
            network_config=NetworkSize,
            network=Derived,
            read_genotype=lambda data: Arm(data["index"]),
            task=Denoising,
            data=DenoisingData,
            loss=DenoisingLoss,
            algorithm="reinforce",
            policy=Bandit,
        )
    )


def run(bandit, images, folder, resume=False, **changes):
    schedule = {"epochs": 4, "steps": 2, "controller_steps": 3, "samples": 3} | changes
    return search(
        bandit.name,
        data=DenoisingData(root=str(images), patch=16, batch=2, sigma=[5.0], validation_crop=16),
        search=ReinforceConfig(**schedule),
        reward=RewardConfig(flops_scale=1.0),
        run=RunConfig(out=str(folder), resume=resume, checkpoint_every=4),
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_bandit_with_a_known_best_arm_is_solved(bandit, images, tmp_path):
    result = run(
        bandit, images, tmp_path / "run", epochs=1, controller_steps=300, controller_learning_rate=0.05, entropy=0.1
    )
    assert result["genotype"] == str(Arm(1))
    policy = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["policy"]["logits"].softmax(0)
    assert policy[1] > 0.9
    assert (tmp_path / "run" / "reward.png").stat().st_size > 10_000


def test_the_schedule_alternates_and_ends_with_samples(bandit, images, tmp_path):
    result = run(bandit, images, tmp_path / "run")
    kinds = [
        "loss_weights" if "loss_weights" in r else "reward" if "reward" in r else "score"
        for r in log_of(tmp_path / "run")
    ]
    assert kinds == (["loss_weights"] * 2 + ["reward"] * 3) * 4 + ["score"] * 3
    samples = [record for record in log_of(tmp_path / "run") if "score" in record]
    best = max(samples, key=lambda record: record["score"])
    assert result["score"] == best["score"] and result["sample"] == best["sample"]
    assert json.loads((tmp_path / "run" / "genotype.json").read_text()) == {"space": "bandit"} | best["genotype"]


def test_the_two_groups_see_different_images_and_every_batch_once(monkeypatch, bandit, images, tmp_path):
    seen, take = {}, Batches.take

    def watched(self, number, total):
        batch = take(self, number, total)
        seen.setdefault(id(self), []).append((number, total, batch[1].clone()))
        return batch

    monkeypatch.setattr(Batches, "take", watched)
    run(bandit, images, tmp_path / "run")
    weights, controller = seen.values()
    assert [entry[:2] for entry in weights] == [(n, 8) for n in range(8)]
    assert [entry[:2] for entry in controller] == [(n, 12) for n in range(12)]
    every = [batch for *_, batch in weights + controller]
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


@pytest.mark.parametrize("dies_at", [1, 3, 6, 13, 21])
def test_a_killed_search_ends_as_if_never_killed(monkeypatch, bandit, images, tmp_path, dies_at):
    run(bandit, images, tmp_path / "whole")
    step, out = Reinforce.step, tmp_path / "run"

    def dies(self, number):
        if number == dies_at:
            raise RuntimeError("killed")
        return step(self, number)

    monkeypatch.setattr(Reinforce, "step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        run(bandit, images, out)
    monkeypatch.setattr(Reinforce, "step", step)
    run(bandit, images, out, resume=(out / "checkpoint.pt").exists())
    readings = ("seconds", "memory_now", "memory_peak")
    whole, resumed = (
        [{k: v for k, v in r.items() if k not in readings} for r in log_of(f)] for f in (tmp_path / "whole", out)
    )
    assert resumed == whole
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (tmp_path / "whole", out))
    assert a["baseline"] == b["baseline"] and torch.equal(a["policy"]["logits"], b["policy"]["logits"])
    assert torch.equal(a["supernet"]["shifts"], b["supernet"]["shifts"])


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """Of every outcome of two decisions, weighted with its probability: the mean is exact, and so are differences."""
    rewards = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.5, 3.0], [2.5, 1.5, 6.0]], dtype=torch.float64)
    first = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([-0.1, 0.4, 0.2], dtype=torch.float64, requires_grad=True)
    entropy = 0.7

    def objective(a, b):
        p, q = a.softmax(0), b.softmax(0)
        entropies = -(p * p.log()).sum() - (q * q.log()).sum()
        return (p[:, None] * q[None] * rewards).sum() + entropy * entropies

    total = 0
    for i, j in product(range(3), range(3)):
        logs = [first.log_softmax(0), second.log_softmax(0)]
        entropies = torch.stack([-(log.exp() * log).sum() for log in logs])
        sample = Drawn(Arm(0), torch.stack([logs[0][i], logs[1][j]]), entropies)
        probability = (logs[0][i] + logs[1][j]).exp().detach()
        # Any baseline leaves the mean as it is.
        total = total + probability * policy_loss(sample, (1.0, 1.0), rewards[i, j].item() - 2.2, entropy)
    total.backward()
    for logits in (first, second):
        for k in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[k] = 1e-6
            with torch.no_grad():
                high, low = ((first + s, second) if logits is first else (first, second + s) for s in (step, -step))
                difference = (objective(*high) - objective(*low)) / 2e-6
            assert -logits.grad[k].item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-8)


def test_parts_of_the_decisions_count_as_their_weights_say():
    sample = Drawn(Arm(0), torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0.5, 0.25, 0.125]))
    loss = policy_loss(sample, (1.0, 1.0, 10.0), advantage=2.0, entropy=4.0)
    assert loss.item() == -((-1 - 2 - 30) * 2 + 4 * (0.5 + 0.25 + 1.25))


@pytest.mark.parametrize(("scale", "reward"), [(0.2, 6.424), (0.6, 20.212), (0.9, 30.553)])
def test_the_reward_of_the_paper_by_hand(scale, reward):
    """34 dB and 93,959,424 Multi-Adds: a cost of 0.470."""
    assert RewardConfig(flops_scale=scale)(34.0, 93_959_424) == pytest.approx(reward, abs=5e-4)


def test_a_baseline_is_compared_before_it_moves_and_is_kept():
    baseline = Baseline(0.95)
    assert [baseline.advantage(reward) for reward in (6.0, 7.0)] == [0.0, 1.0]
    other = Baseline(0.95)
    other.load_state_dict(baseline.state_dict())
    assert other.advantage(5.0) == pytest.approx(5 - 6.05) and other.value == pytest.approx(5.9975)


def test_the_quality_of_a_batch_is_of_all_its_pixels_inside_the_border():
    target = torch.rand(2, 3, 24, 30)
    restored = target.clone()
    restored[..., :8, :] = 7.0  # outside
    restored[0, :, 10:14, 10:20] = -3.0  # clipped to black
    error = (target[0, :, 10:14, 10:20] * 255).round().square().sum() / (2 * 3 * 8 * 14)
    assert batch_psnr(restored, target, border=8) == pytest.approx(10 * math.log10(255**2 / error.item()), rel=1e-5)
    assert math.isfinite(batch_psnr(target, target, border=8))
    assert math.isfinite(batch_psnr(target[..., :5, :5], target[..., :5, :5], border=8))  # something is always left


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (lambda: RewardConfig(flops_scale=1.5), "reward.flops_scale is 1.5"),
        (lambda: RewardConfig(flops_scale=math.nan), "reward.flops_scale is nan"),
        (lambda: RewardConfig(by="seconds"), "reward.by is 'seconds'"),
        (lambda: RewardConfig(side=0), "reward.side is 0"),
        (lambda: ReinforceConfig(baseline=1.0), "search.baseline is 1.0"),
        (lambda: ReinforceConfig(samples=0), "search.samples is 0"),
        (lambda: ReinforceConfig(controller_steps=0), "search.controller_steps is 0"),
        (lambda: ReinforceConfig(controller_halve_at=[2.0]), "search.controller_halve_at holds 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(config, fault):
    with pytest.raises(InputError, match=fault):
        config()


def test_the_papers_settings():
    config = asdict(ReinforceConfig())
    assert (config["epochs"], config["controller_steps"], config["samples"]) == (400, 300, 10)
    rates = [ReinforceConfig().rate(epoch) for epoch in (0, 200, 399)]
    assert rates == pytest.approx([1e-3, 5.05e-4, 1e-5 + 9.9e-4 * (1 + math.cos(399 / 400 * math.pi)) / 2])
    assert [ReinforceConfig().controller_rate(epoch) for epoch in (99, 100, 399)] == [3e-4, 1.5e-4, 1.5e-4]


def test_a_cost_that_cannot_be_counted_is_told_before_the_first_step(tmp_path):
    with pytest.raises(InputError, match="costs of an image of 1 pixels"):
        search("hnas-x2", preset="smoke", reward=RewardConfig(side=1), run=RunConfig(out=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_settings_of_another_algorithm_are_refused(tmp_path):
    with pytest.raises(InputError, match="search is a BilevelConfig; a search in hnas-x2 takes ReinforceConfig"):
        search("hnas-x2", preset="smoke", search=BilevelConfig(), run=RunConfig(out=str(tmp_path / "run")))
    with pytest.raises(InputError, match="no settings complexity; it has supernet, data, loss, search, reward"):
        search("hnas-x2", preset="smoke", complexity=ComplexityConfig(), run=RunConfig(out=str(tmp_path / "run")))
