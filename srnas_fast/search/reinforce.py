"""Search by reinforcement: a policy draws paths through a supernet, rewarded for those that are good and cheap."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.data.randomness import generator
from srnas_fast.errors import InputError, require_number, require_whole
from srnas_fast.report import draw_curves
from srnas_fast.search.algorithm import Best, Problem
from srnas_fast.search.run import memory_format, to_device
from srnas_fast.search.schedule import halved, require_shares
from srnas_fast.spaces import Policy, Sample, Space
from srnas_fast.spaces.check import sampled

LEAST_ERROR = 1e-2  # mean squared gray levels: below, a reward would grow without end
UNITS = {"madds": 2e8, "params": 5e4}  # of a cost of 1: half of HNAS's 1e-8 for each Multi-Add


@dataclass
class ReinforceConfig:
    """The schedule of a search by reinforcement; the defaults are HNAS's.

    Args:
        epochs: rounds of steps of the weights and then of the controller (paper: 400).
        steps: of the weights in a round; 0 for one pass over their images (paper: 200).
        controller_steps: of the controller in a round (paper: 300).
        learning_rate: of the weights at the start, by Adam (paper: 1e-3).
        final_learning_rate: at the end of a cosine over the epochs (paper: 1e-5).
        controller_learning_rate: Adam's (paper: 3e-4).
        controller_halve_at: shares of the epochs after which the controller's rate is halved (paper: 0.25).
        controller_weight_decay: Adam's (paper: 5e-4).
        controller_beta: Adam's decay of the controller's mean gradient (paper: 0.5).
        entropy: weight of the entropy, which keeps the controller from deciding early (paper: 1).
        baseline: decay of the rewards' moving average, which a reward has to beat (paper: 0.95). It goes on across
            epochs, and a reward is compared before it enters.
        samples: paths drawn at the end, of which the best on the images held out is kept (paper: 10).
    """

    epochs: int = 400
    steps: int = 0
    controller_steps: int = 300
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    controller_learning_rate: float = 3e-4
    controller_halve_at: list[float] = field(default_factory=lambda: [0.25])
    controller_weight_decay: float = 5e-4
    controller_beta: float = 0.5
    entropy: float = 1.0
    baseline: float = 0.95
    samples: int = 10

    def __post_init__(self):
        require_whole(self, "search.", epochs=1, steps=0, controller_steps=1, samples=1)
        require_number(
            self,
            "search.",
            above=["learning_rate", "controller_learning_rate"],
            least=["final_learning_rate", "controller_weight_decay", "entropy"],
        )
        for name in ("baseline", "controller_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"search.{name} is {getattr(self, name)}; give a number from 0 to below 1")
        require_shares("search.controller_halve_at", self.controller_halve_at)

    def rate(self, epoch: int) -> float:
        """The learning rate of the weights in an epoch (from 0).

        >>> [round(ReinforceConfig(epochs=4).rate(epoch), 6) for epoch in range(4)]
        [0.001, 0.000855, 0.000505, 0.000155]
        """
        cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine

    def controller_rate(self, epoch: int) -> float:
        """The learning rate of the controller in an epoch (from 0).

        >>> [ReinforceConfig(epochs=4).controller_rate(epoch) for epoch in range(2)]
        [0.0003, 0.00015]
        """
        return halved(self.controller_learning_rate, self.controller_halve_at, epoch, self.epochs)


@dataclass
class RewardConfig:
    """The reward of a path: ``flops_scale * PSNR - (1 - flops_scale) * cost``; the defaults are HNAS's.

    Args:
        flops_scale: how much quality counts beside cost, from 0 to 1: the paper's lambda (paper: 0.2, 0.6, 0.9).
        by: what a path costs: madds, in units of 2e8 for an input of ``side`` x ``side`` pixels, or params, in units
            of 5e4.
        side: pixels (paper: 48).
    """

    flops_scale: float = 0.2
    by: str = "madds"
    side: int = 48

    def __post_init__(self):
        require_whole(self, "reward.", side=1)
        if not 0 <= self.flops_scale <= 1:
            raise InputError(f"reward.flops_scale is {self.flops_scale}; give a number from 0, cost alone, to 1")
        if self.by not in UNITS:
            raise InputError(f"reward.by is {self.by!r}; give {' or '.join(UNITS)}")

    def __call__(self, psnr: float, amount: float) -> float:
        """The reward of a path of so many dB that takes so many Multi-Adds or parameters.

        >>> round(RewardConfig(flops_scale=0.6)(psnr=34.0, amount=93_959_424), 3)
        20.212
        """
        return self.flops_scale * psnr - (1 - self.flops_scale) * amount / UNITS[self.by]


class Baseline:
    """The moving average of rewards; a part of a checkpoint.

    >>> baseline = Baseline(0.95)
    >>> [round(baseline.advantage(reward), 4) for reward in (6.0, 7.0, 5.0)], round(baseline.value, 4)
    ([0.0, 1.0, -1.05], 5.9975)
    """

    def __init__(self, decay: float):
        self.decay, self.value = decay, None

    def advantage(self, reward: float) -> float:
        """How far a reward is above the average of those before, which it then enters; 0 for the first."""
        before = reward if self.value is None else self.value
        self.value = self.decay * before + (1 - self.decay) * reward
        return reward - before

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class _OnPath(nn.Module):
    """A supernet on the path that was set last: Fabric would take a genotype apart that is handed to its module."""

    def __init__(self, supernet: nn.Module):
        super().__init__()
        self.supernet, self.genotype = supernet, None

    def forward(self, x: Tensor) -> Tensor:
        return self.supernet(x, self.genotype)


class Reinforce:
    """Alternating: the weights of sampled paths learn on one part of the images, the policy from rewards on the other.

    One path serves a whole batch, and only its modules run. At the end some more paths are drawn, and the one of the
    best reward on the images held out is the genotype.

    Args:
        problem: ``supernet`` has ``forward(x, genotype)``, ``network_parameters()`` and ``cost(genotype, by, side)``;
            ``space.policy(config)`` is a :class:`srnas_fast.spaces.Policy`. It stays on the CPU, where its many small
            steps and looks at numbers are cheapest.
        search: the schedule.
        reward: what a path is worth.

    Source: REINFORCE, Williams 1992; the alternation is ENAS's (arXiv 1802.03268), the reward HNAS's (arXiv
    2003.04619, section III-C).
    """

    def __init__(self, problem: Problem, search: ReinforceConfig, reward: RewardConfig):
        self.problem, self.config, self.reward = problem, search, reward
        supernet = problem.supernet.to(memory_format=memory_format(problem.fabric.device))
        self.policy: Policy = problem.space.policy(problem.config)
        weights = torch.optim.Adam(supernet.network_parameters(), lr=search.learning_rate)
        self.controller = torch.optim.Adam(
            self.policy.parameters(),
            lr=search.controller_learning_rate,
            betas=(search.controller_beta, 0.999),
            weight_decay=search.controller_weight_decay,
        )
        self.path = _OnPath(supernet)
        self.model, self.weights = problem.fabric.setup(self.path, weights)
        self.baseline, self.best = Baseline(search.baseline), Best()
        self.of_weights = search.steps or problem.epoch_steps
        self.of_epoch = self.of_weights + search.controller_steps
        self.searching = search.epochs * self.of_epoch
        self.total = self.searching + search.samples
        self.note = ""
        with torch.no_grad():  # what cannot be counted is told now, not after the first steps
            self._cost(self._sample(0).genotype)

    check = staticmethod(sampled)

    @staticmethod
    def groups(space: Space) -> dict[str, type]:
        return {"search": ReinforceConfig, "reward": RewardConfig}

    def parts(self) -> dict[str, Any]:
        return {
            "supernet": self.problem.supernet,
            "weights_optimizer": self.weights.optimizer,
            "policy": self.policy,
            "controller_optimizer": self.controller,
            "baseline": self.baseline,
            "best": self.best,
        }

    def step(self, step: int) -> tuple[dict[str, Any], str]:
        if step >= self.searching:
            return self._derivation_step(step), self.note
        epoch, within = divmod(step, self.of_epoch)
        if within < self.of_weights:
            record = self.weight_step(step, epoch, epoch * self.of_weights + within)
        else:
            number = epoch * self.config.controller_steps + within - self.of_weights
            record = self.controller_step(step, epoch, number)
        return {"epoch": epoch + 1} | record, self.note

    def weight_step(self, step: int, epoch: int, number: int) -> dict[str, Any]:
        """Move the weights of one sampled path, on batch ``number`` of theirs."""
        with torch.no_grad():
            self.path.genotype = self._sample(step).genotype
        batch = self.problem.weights.take(number, self.config.epochs * self.of_weights)
        given, target = to_device(self.problem.fabric, *batch)
        for group in self.weights.param_groups:
            group["lr"] = self.config.rate(epoch)
        self.weights.zero_grad()
        loss = self.problem.loss(self.model(given), target)
        self.problem.fabric.backward(loss)
        self.weights.step()  # what the path does not hold has no gradient, and does not move
        return {"learning_rate": self.config.rate(epoch), "loss_weights": loss.item()}

    def controller_step(self, step: int, epoch: int, number: int) -> dict[str, Any]:
        """Move the policy by the reward of one sampled path on batch ``number`` of its images."""
        sample = self._sample(step)
        self.path.genotype = sample.genotype
        batch = self.problem.architecture.take(number, self.config.epochs * self.config.controller_steps)
        given, target = to_device(self.problem.fabric, *batch)
        with torch.no_grad():
            psnr = batch_psnr(self.model(given), target, self.problem.task.border)
        cost = self._cost(sample.genotype)
        reward = self.reward(psnr, cost)
        advantage = self.baseline.advantage(reward)
        for group in self.controller.param_groups:
            group["lr"] = self.config.controller_rate(epoch)
        self.controller.zero_grad()
        loss = policy_loss(sample, self.policy.weights, advantage, self.config.entropy)
        loss.backward()
        self.controller.step()
        self.note = f"reward {reward:.3f}, baseline {self.baseline.value:.3f}, {psnr:.2f} dB, last {sample.genotype}"
        return {
            "loss_controller": loss.item(),
            "reward": reward,
            "baseline": self.baseline.value,
            "psnr": psnr,
            "cost": float(cost),
            "entropy": float(sample.entropies.detach().sum()),
        }

    def _derivation_step(self, step: int) -> dict[str, Any]:
        """Draw one more path and keep it if its reward on the images held out is the best."""
        with torch.no_grad():
            self.path.genotype = genotype = self._sample(step).genotype
        found = self.problem.validate(self.model)
        cost = self._cost(genotype)
        record = {
            "sample": step - self.searching + 1,
            "score": self.reward(found["psnr"], cost),
            "psnr_held_out": found["psnr"],
            "ssim_held_out": found["ssim"],
            "cost": float(cost),
            "genotype": asdict(genotype),
        }
        self.best.offer(record)
        self.note = f"best of {record['sample']} drawn: {self.best.found['score']:.3f}, {self.genotype()}"
        return {"epoch": self.config.epochs} | record

    def _cost(self, genotype: Any) -> int:
        return self.problem.supernet.cost(genotype, self.reward.by, self.reward.side)

    def _sample(self, step: int) -> Sample:
        """The path of a step: drawn by the policy as it is now, from numbers that are this step's own."""
        number = int(generator(self.problem.seed, "path", step).integers(2**63))
        return self.policy.sample(torch.Generator().manual_seed(number))

    def genotype(self) -> Any:
        if self.best.found:
            return self.problem.space.read_genotype(self.best.found["genotype"])
        with torch.no_grad():
            return self._sample(self.searching).genotype

    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        last = next((record for record in reversed(records) if "reward" in record), {})
        names = {"sample": "sample", "score": "score", "psnr_held_out": "psnr", "ssim_held_out": "ssim", "cost": "cost"}
        figures = {new: self.best.found[name] for name, new in names.items()}
        return figures | {name: last[name] for name in ("reward", "baseline", "entropy") if name in last}

    def draw(self, records: list[dict[str, Any]], folder: Path) -> list[str]:
        """Reward, quality, cost and entropy over the controller's steps."""
        steps = [record for record in records if "reward" in record]
        unit, size = ("Multi-Adds, M", 1e6) if self.reward.by == "madds" else ("parameters, k", 1e3)

        def curve(name: str, size: float = 1) -> list[float]:
            return [record[name] / size for record in steps]

        panels = {
            "reward of the sampled paths": ("reward", {"reward": curve("reward"), "moving average": curve("baseline")}),
            "quality of the sampled paths": ("PSNR of a batch, dB", {"PSNR": curve("psnr")}),
            "cost of the sampled paths": (unit, {"cost": curve("cost", size)}),
            "entropy of the policy": ("entropy, nats", {"entropy of all decisions": curve("entropy")}),
        }
        draw_curves(range(1, len(steps) + 1), panels, folder / "reward.png", "step of the controller")
        return ["reward.png"]


def policy_loss(sample: Sample, weights: Sequence[float], advantage: float, entropy: float) -> Tensor:
    """``-sum_p w_p (log_probability_p * advantage + entropy * H_p)`` over the parts of a sample, a scalar tensor.

    Its gradient is REINFORCE's: that of the expected advantage, estimated from one sample.
    """
    parts = sample.log_probabilities * advantage + entropy * sample.entropies
    return -(parts * parts.new_tensor(weights)).sum()


def batch_psnr(restored: Tensor, target: Tensor, border: int) -> float:
    """PSNR in dB of a whole batch, (N, C, H, W) on the [0, 1] scale, rounded to 8 bits, without a border of pixels.

    >>> target = torch.full((2, 3, 20, 20), 0.5)
    >>> round(batch_psnr(target + 10 / 255, target, border=8), 2)
    28.13
    """
    height, width = target.shape[-2:]
    border = min(border, (min(height, width) - 1) // 2)
    inside = (..., slice(border, height - border), slice(border, width - border))
    error = (restored.float() * 255).clamp(0, 255).round()[inside] - (target.float() * 255).round()[inside]
    return 10 * math.log10(255**2 / max(error.square().mean().item(), LEAST_ERROR))
