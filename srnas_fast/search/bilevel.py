"""First-order bilevel search: the architecture on one half of the images, the weights on the other."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_number, require_whole
from srnas_fast.search.run import memory_format, to_device


@dataclass
class BilevelConfig:
    """The schedule of an alternating search; the defaults are HiNAS's.

    Args:
        epochs: passes over the images that train the weights (paper: 100).
        warmup_epochs: epochs at the start in which the architecture does not move (paper: 20). From then on the radius
            of sparsestmax, where the supernet's weights come from it, grows evenly from 0 to 1 in the last step.
        steps: steps per epoch; 0 for as many batches as there are images for the weights.
        learning_rate: of the weights at the start, SGD (paper: 0.025).
        final_learning_rate: of the weights at the end (paper: 0.001).
        cosine_epochs: epochs in which the cosine factor of the rate falls from 1 to 0, and again to rise (paper: 10).
        momentum: of the weights (paper: 0.9).
        weight_decay: of the weights (paper: 3e-4).
        architecture_learning_rate: Adam's (paper: 1e-3).
        architecture_weight_decay: Adam's (paper: 1e-3). In short searches it outweighs the gradient, and all logits
            fall together; 0 leaves the decision to the images.
        validate_from: epoch (from 1) from which on the supernet is validated and the best genotype kept (paper: 61).
    """

    epochs: int = 100
    warmup_epochs: int = 20
    steps: int = 0
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    cosine_epochs: int = 10
    momentum: float = 0.9
    weight_decay: float = 3e-4
    architecture_learning_rate: float = 1e-3
    architecture_weight_decay: float = 1e-3
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

    def rate(self, epoch: int) -> float:
        """The learning rate of the weights in an epoch (from 0): a repeated cosine under a falling power.

        >>> [round(BilevelConfig().rate(epoch), 4) for epoch in (0, 5, 10, 20)]
        [0.025, 0.0125, 0.001, 0.0206]
        """
        cosine = (1 + math.cos(math.pi * epoch / self.cosine_epochs)) / 2
        power = (1 - epoch / self.epochs) ** 0.9
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine * power


class Bilevel:
    """One search in progress: the supernet and its two optimisers.

    Args:
        fabric: where it computes.
        supernet: has ``architecture_parameters()`` and ``network_parameters()``.
        loss: of (restored, clean).
        config: the schedule.

    Source: DARTS (arXiv 1806.09055), first-order approximation.
    """

    def __init__(
        self,
        fabric: Fabric,
        supernet: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        config: BilevelConfig,
    ):
        self.fabric, self.supernet, self.loss, self.config = fabric, supernet, loss, config
        weights = torch.optim.SGD(
            supernet.network_parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        architecture = torch.optim.Adam(
            supernet.architecture_parameters(),
            lr=config.architecture_learning_rate,
            weight_decay=config.architecture_weight_decay,
        )
        supernet.to(memory_format=memory_format(fabric.device))
        self.model, self.weights, self.architecture = fabric.setup(supernet, weights, architecture)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint has to hold."""
        return {
            "supernet": self.supernet,
            "weights_optimizer": self.weights.optimizer,
            "architecture_optimizer": self.architecture.optimizer,
        }

    def architecture_step(self, noisy: Tensor, clean: Tensor) -> float:
        """Move the architecture one step on a held-out batch; returns the loss before."""
        with frozen(self.supernet.network_parameters()):
            return self._step(self.architecture, noisy, clean)

    def weight_step(self, noisy: Tensor, clean: Tensor, epoch: int) -> float:
        """Move the weights one step at the rate of that epoch; returns the loss before."""
        for group in self.weights.param_groups:
            group["lr"] = self.config.rate(epoch)
        with frozen(self.supernet.architecture_parameters()):
            return self._step(self.weights, noisy, clean)

    def _step(self, optimizer: torch.optim.Optimizer, noisy: Tensor, clean: Tensor) -> float:
        noisy, clean = to_device(self.fabric, noisy, clean)
        optimizer.zero_grad()
        loss = self.loss(self.model(noisy), clean)
        self.fabric.backward(loss)
        optimizer.step()
        return loss.item()


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
