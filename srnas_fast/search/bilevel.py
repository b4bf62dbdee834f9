"""First-order search: the weights learn from one half of the images, the architecture from the other or from both."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_number, require_whole
from srnas_fast.losses import ComplexityLoss
from srnas_fast.mixed import compile_ahead
from srnas_fast.report import draw_weights, normalised_entropy
from srnas_fast.search.algorithm import Best, Problem
from srnas_fast.search.complexity import ComplexityConfig
from srnas_fast.search.graphs import step_graphs
from srnas_fast.search.run import memory_format, to_device
from srnas_fast.search.schedule import halved, require_shares
from srnas_fast.simplex import linear_radius
from srnas_fast.spaces import Space
from srnas_fast.spaces.check import differentiable


@dataclass
class BilevelConfig:
    """The schedule of an alternating search; the defaults are HiNAS's.

    Args:
        epochs: passes over the images that train the weights (paper: 100).
        warmup_epochs: epochs at the start in which the architecture does not move (paper: 20). From then on the radius
            of sparsestmax, where the supernet's weights come from it, grows evenly from 0 to 1 in the last step.
        steps: steps per epoch; 0 for as many batches as there are images for the weights.
        optimizer: of the weights: sgd or adam (paper: sgd).
        learning_rate: of the weights at the start (paper: 0.025).
        final_learning_rate: of the weights at the end (paper: 0.001).
        cosine_epochs: epochs in which the cosine factor of the rate falls from 1 to 0, and again to rise (paper: 10).
        halve_at: shares of the epochs after which the rate is halved; given, nothing else changes the rate.
        momentum: of the weights with sgd (paper: 0.9).
        weight_decay: of the weights (paper: 3e-4).
        architecture_learning_rate: Adam's (paper: 1e-3).
        architecture_weight_decay: Adam's (paper: 1e-3). In short searches it outweighs the gradient, and all logits
            fall together; 0 leaves the decision to the images.
        architecture_beta: Adam's decay of the mean gradient (paper: 0.9).
        mixed_level: whether the architecture learns from the batch of the weights also, the two losses added.
        validate_from: epoch (from 1) from which on the supernet is validated and the best genotype kept (paper: 61).
    """

    epochs: int = 100
    warmup_epochs: int = 20
    steps: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    cosine_epochs: int = 10
    halve_at: list[float] = field(default_factory=list)
    momentum: float = 0.9
    weight_decay: float = 3e-4
    architecture_learning_rate: float = 1e-3
    architecture_weight_decay: float = 1e-3
    architecture_beta: float = 0.9
    mixed_level: bool = False
    validate_from: int = 61

    def __post_init__(self):
        require_whole(self, "search.", epochs=1, warmup_epochs=0, steps=0, cosine_epochs=1, validate_from=1)
        require_number(
            self,
            "search.",
            above=["learning_rate", "architecture_learning_rate"],
            least=["final_learning_rate", "momentum", "weight_decay", "architecture_weight_decay"],
        )
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"search.warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs: the architecture would never "
                "move; give fewer"
            )
        if self.optimizer not in ("sgd", "adam"):
            raise InputError(f"search.optimizer is {self.optimizer!r}; give sgd or adam")
        if not 0 <= self.architecture_beta < 1:
            raise InputError(f"search.architecture_beta is {self.architecture_beta}; give a number from 0 to below 1")
        require_shares("search.halve_at", self.halve_at)

    def rate(self, epoch: int) -> float:
        """The learning rate of the weights in an epoch (from 0): a repeated cosine under a falling power.

        >>> [round(BilevelConfig().rate(epoch), 4) for epoch in (0, 5, 10, 20)]
        [0.025, 0.0125, 0.001, 0.0206]
        >>> [BilevelConfig(learning_rate=8, halve_at=[0.2, 0.4]).rate(epoch) for epoch in (19, 20, 40)]
        [8.0, 4.0, 2.0]
        """
        if self.halve_at:
            return halved(self.learning_rate, self.halve_at, epoch, self.epochs)
        cosine = (1 + math.cos(math.pi * epoch / self.cosine_epochs)) / 2
        power = (1 - epoch / self.epochs) ** 0.9
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine * power


class Bilevel:
    """The two kinds of steps: the supernet and its two optimisers.

    Args:
        fabric: where it computes.
        supernet: has ``architecture_parameters()``, ``network_parameters()``, a ``radius`` and ``support()``, which its
            ``forward`` takes beside the images.
        loss: of (restored, clean).
        config: the schedule.
        penalty: of the architecture, beside the loss; None for none.
        cuda_graphs: whether the forward and backward passes of the steps run as CUDA graphs on a GPU.

    Source: DARTS (arXiv 1806.09055), first-order approximation; mixed-level: DLSR (arXiv 2105.03939).
    """

    def __init__(
        self,
        fabric: Fabric,
        supernet: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        config: BilevelConfig,
        penalty: Callable[[], Tensor] | None = None,
        cuda_graphs: bool = False,
    ):
        self.fabric, self.supernet, self.loss, self.config, self.penalty = fabric, supernet, loss, config, penalty
        common = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "adam":
            weights = torch.optim.Adam(supernet.network_parameters(), **common)
        else:
            weights = torch.optim.SGD(supernet.network_parameters(), momentum=config.momentum, **common)
        architecture = torch.optim.Adam(
            supernet.architecture_parameters(),
            lr=config.architecture_learning_rate,
            betas=(config.architecture_beta, 0.999),
            weight_decay=config.architecture_weight_decay,
        )
        supernet.to(memory_format=memory_format(fabric.device))
        self.model, self.weights, self.architecture = fabric.setup(supernet, weights, architecture)
        compile_ahead(supernet)
        self.graphs = step_graphs(fabric, supernet) if cuda_graphs else None

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint has to hold."""
        return {
            "supernet": self.supernet,
            "weights_optimizer": self.weights.optimizer,
            "architecture_optimizer": self.architecture.optimizer,
        }

    def architecture_step(self, given: Tensor, target: Tensor, also: Sequence[Sequence[Tensor]] = ()) -> float:
        """Move the architecture one step on a held-out batch, and ``also`` on others; returns the whole loss before.

        The losses of all batches and the penalty are added.
        """
        batches = [*also, (given, target)]
        return self._step(self.architecture, self.supernet.network_parameters, batches, self.penalty)

    def weight_step(self, given: Tensor, target: Tensor, epoch: int) -> float:
        """Move the weights one step at the rate of that epoch; returns the loss before."""
        for group in self.weights.param_groups:
            group["lr"] = self.config.rate(epoch)
        return self._step(self.weights, self.supernet.architecture_parameters, [(given, target)])

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        others: Callable[[], Iterable[nn.Parameter]],
        batches: Sequence[Sequence[Tensor]],
        penalty: Callable[[], Tensor] | None = None,
    ) -> float:
        """One step of an optimiser, which no gradient of the ``others`` is computed for."""
        support = self.supernet.support()

        def work(batches: Sequence[Sequence[Tensor]]) -> Tensor:
            with frozen(others()):
                # Gradients add up, so that the graph of one batch at a time is enough.
                losses = [self._backward(self._loss(batch, support)) for batch in batches]
                if penalty:
                    losses.append(self._backward(penalty()))
            return torch.stack(losses)

        optimizer.zero_grad()
        losses = self.graphs.run(optimizer, work, batches, support) if self.graphs else work(batches)
        optimizer.step()
        return sum(losses.tolist())  # the one look at them, while the optimiser's kernels are under way

    def _loss(self, batch: Sequence[Tensor], support: Any) -> Tensor:
        given, target = to_device(self.fabric, *batch)
        return self.loss(self.model(given, support=support), target)

    def _backward(self, loss: Tensor) -> Tensor:
        self.fabric.backward(loss)
        return loss.detach().double()


class BilevelSearch:
    """The search by :class:`Bilevel` steps: warm-up, alternation, and the genotype of the best validated epoch.

    Args:
        problem: what is searched, on what.
        search: the schedule.
        complexity: how much the cost of the architecture counts, in spaces that know it.

    Raises:
        InputError: no epoch would be validated.
    """

    def __init__(self, problem: Problem, search: BilevelConfig, complexity: ComplexityConfig | None = None):
        if search.validate_from > search.epochs:
            raise InputError(
                f"search.validate_from is {search.validate_from}, after the last of {search.epochs} epochs: no "
                "genotype would be chosen; give an epoch that comes"
            )
        self.problem, self.config, net = problem, search, problem.supernet
        penalty = _penalty(problem, complexity)
        self.steps = Bilevel(problem.fabric, net, problem.loss, search, penalty, problem.cuda_graphs)
        self.best = Best()
        self.of_epoch = search.steps or problem.epoch_steps
        self.warm, self.total = search.warmup_epochs * self.of_epoch, search.epochs * self.of_epoch
        self.note = ""

    check = staticmethod(differentiable)

    @staticmethod
    def groups(space: Space) -> dict[str, type]:
        knows_costs = space.candidate_costs or space.expected_cost
        return {"search": BilevelConfig} | ({"complexity": ComplexityConfig} if knows_costs else {})

    def parts(self) -> dict[str, Any]:
        return self.steps.parts() | {"best": self.best}

    def step(self, step: int) -> tuple[dict[str, Any], str]:
        epoch, net = step // self.of_epoch + 1, self.problem.supernet
        net.radius = linear_radius(step - self.warm, self.total - self.warm)  # of sparsestmax: other maps have none
        record: dict[str, Any] = {"epoch": epoch, "learning_rate": self.config.rate(epoch - 1)}
        batch = self.problem.weights.take(step, self.total)
        if step >= self.warm:
            also = {"also": [batch]} if self.config.mixed_level else {}
            other = self.problem.architecture.take(step, self.total)
            record["loss_architecture"] = self.steps.architecture_step(*other, **also)
        record["loss_weights"] = self.steps.weight_step(*batch, epoch - 1)
        record |= net.sparsity()
        if (step + 1) % self.of_epoch == 0:
            self._end_epoch(record)
        return record, self.note

    def _end_epoch(self, record: dict[str, Any]) -> None:
        """Add the architecture as it is now and, in the epochs that count, how good it is."""
        net = self.problem.supernet
        genotype = net.genotype()
        record |= {"genotype": asdict(genotype)} | _weights_now(net)
        self.note = f"now {genotype}"
        if record["epoch"] >= self.config.validate_from:
            record |= self.problem.validate(self.steps.model)
            self.best.offer({name: record[name] for name in ("epoch", "score", "psnr", "ssim", "genotype")})
            self.note = f"best, of epoch {self.best.found['epoch']}: {self.genotype()}"

    def genotype(self) -> Any:
        now = self.problem.supernet.genotype()
        if not self.best.found:
            return now
        # What an older version found lacks the fields that are new since; they are the supernet's.
        return self.problem.space.read_genotype(asdict(now) | self.best.found["genotype"])

    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        entropy = next(record["entropy"] for record in reversed(records) if "entropy" in record)
        return {name: self.best.found[name] for name in ("epoch", "score", "psnr", "ssim")} | {"entropy": entropy}

    def draw(self, records: list[dict[str, Any]], folder: Path) -> list[str]:
        """The architecture weights over time."""
        epochs = [record for record in records if "weights" in record]
        labels = {name: labels for name, (labels, _) in self.problem.supernet.architecture_weights().items()}
        draw_weights(
            [record["step"] for record in epochs],
            {name: (labels[name], np.array([record["weights"][name] for record in epochs])) for name in labels},
            folder / "weights.png",
        )
        return ["weights.png"]


def _penalty(problem: Problem, complexity: ComplexityConfig | None) -> Callable[[], Tensor] | None:
    """What the architecture's loss has beside the images: its cost, and the supernet's own term."""
    space, net, terms = problem.space, problem.supernet, []
    if complexity and complexity.coefficient and space.candidate_costs:
        of_candidates = ComplexityLoss(space.candidate_costs(problem.config, complexity.by), complexity.coefficient)
        terms.append(lambda: of_candidates(net.candidate_weights()))
    elif complexity and complexity.coefficient:
        terms.append(lambda: complexity.coefficient * space.expected_cost(net, complexity.by))
    own = getattr(net, "penalty", None)  # a supernet need not be derived from ours
    if own and own() is not None:
        terms.append(own)
    return (lambda: sum(term() for term in terms)) if terms else None


def _weights_now(net: nn.Module) -> dict[str, Any]:
    """The architecture weights after an epoch and the mean entropy of each group, for the log."""
    with torch.no_grad():
        groups = {name: rows.cpu().double().numpy() for name, (_, rows) in net.architecture_weights().items()}
    return {
        "weights": {name: rows.tolist() for name, rows in groups.items()},
        "entropy": {name: float(normalised_entropy(rows).mean()) for name, rows in groups.items()},
    }


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient is computed for these parameters inside the block."""
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
