"""``train``: from a genotype to a trained network."""

import copy
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from srnas_fast.data import loader, split_for_search
from srnas_fast.errors import InputError, require_number, require_whole
from srnas_fast.metrics import count_parameters
from srnas_fast.report import draw_architecture, print_skipped
from srnas_fast.search.loop import run_steps
from srnas_fast.search.run import RunConfig, RunFolder, memory_format, run_settings, to_device
from srnas_fast.search.schedule import halved, require_shares
from srnas_fast.search.validation import validate
from srnas_fast.spaces.own import loaded_code, told
from srnas_fast.train.checkpoint import read_genotype
from srnas_fast.train.load import load


@dataclass
class TrainConfig:
    """The recipe of the retraining; the defaults are HiNAS's, made to start safely.

    Args:
        iterations: steps (paper: 600000).
        optimizer: sgd, as in the paper, or adam, which gets further in few steps.
        learning_rate: at its highest (paper: 0.05 for sgd; 2e-3 suits adam).
        bias_rate: how many times faster biases learn (paper: 2).
        warmup: steps in which the rate rises to it; without, sgd diverges at the paper's rate (paper: none known).
        power: the rate falls as (1 - step / iterations) to this power (paper: 0.9).
        halve_at: shares of the steps after which the rate is halved; given, it falls in no other way.
        momentum: of sgd (paper: 0.9).
        weight_decay: of either (paper: 4e-5).
        bias_weight_decay: of biases, batch norms' shifts among them; None for that of all others.
        clip: largest absolute value of an entry of a gradient (paper: 5).
        clip_norm: largest norm of the whole gradient, instead of clip; 0 leaves it to clip.
        ema: decay of the weights' moving average, which is then what is measured and kept; 0 for none.
        start_from: what ``load`` takes, to begin with its weights; a network of another scale also, such as x2 for x4.
        validate_every: steps between two measurements on the held-out training images.
    """

    iterations: int = 600_000
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    bias_rate: float = 2.0
    warmup: int = 1000
    power: float = 0.9
    halve_at: list[float] = field(default_factory=list)
    momentum: float = 0.9
    weight_decay: float = 4e-5
    bias_weight_decay: float | None = None
    clip: float = 5.0
    clip_norm: float = 0.0
    ema: float = 0.0
    start_from: str | None = None
    validate_every: int = 1000

    def __post_init__(self):
        require_whole(self, "train.", iterations=1, warmup=0, validate_every=1)
        require_number(
            self,
            "train.",
            above=["learning_rate", "bias_rate", "clip"],
            least=["power", "momentum", "weight_decay", "clip_norm", "ema"],
        )
        if self.bias_weight_decay is not None:
            require_number(self, "train.", above=[], least=["bias_weight_decay"])
        require_shares("train.halve_at", self.halve_at)
        if self.ema >= 1:
            raise InputError(f"train.ema is {self.ema}; give a number from 0 to below 1")
        if self.optimizer not in ("sgd", "adam"):
            raise InputError(f"train.optimizer is {self.optimizer!r}; give sgd or adam")

    def rate(self, step: int) -> float:
        """The learning rate at a step (from 0).

        >>> [round(TrainConfig(iterations=10, warmup=2).rate(step), 4) for step in (0, 1, 5, 9)]
        [0.025, 0.0455, 0.0268, 0.0063]
        """
        rise = min(1, (step + 1) / self.warmup) if self.warmup else 1
        if self.halve_at:
            return rise * halved(self.learning_rate, self.halve_at, step, self.iterations)
        return self.learning_rate * rise * (1 - step / self.iterations) ** self.power

    def optimizer_for(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a network, whose biases learn at their own rate."""
        groups = [{"params": [], "rate_factor": 1}, {"params": [], "rate_factor": self.bias_rate}]
        for name, parameter in net.named_parameters():
            groups[name.endswith("bias")]["params"].append(parameter)
        if self.bias_weight_decay is not None:
            groups[1]["weight_decay"] = self.bias_weight_decay
        common = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, **common)
        return torch.optim.SGD(groups, momentum=self.momentum, **common)


def train(
    genotype: str | os.PathLike,
    preset: str = "paper",
    network: Any = None,
    data: Any = None,
    loss: Any = None,
    train: TrainConfig | None = None,
    run: RunConfig | None = None,
) -> dict[str, Any]:
    """Train the network of a genotype and leave it in the run's folder.

    Args:
        genotype: a ``genotype.json`` or the folder of a search.
        preset: what the groups of settings that are not given are taken from: paper, demo, smoke or another of the
            space's own.
        network: size of the network, of the space's own type.
        data: images and patches, of the space's own type; without a root, the embedded photographs. One image in
            fifty, at least one, is held out to measure on.
        loss: of the space's own type.
        train: the recipe.
        run: folder, seed, device.

    Returns:
        What ``result.json`` holds: parameters, PSNR (dB) and SSIM on the held-out training images.

    Raises:
        InputError: a genotype, settings, images or a checkpoint that cannot be used.
        OSError: the run's folder cannot be written.
        KeyboardInterrupt: stopped by the user, after a checkpoint was written.

    Example::

        from srnas_fast.search import RunConfig
        from srnas_fast.train import train
        train("runs/a", preset="demo", run=RunConfig(out="runs/b"))
    """
    the, found_genotype = read_genotype(genotype)
    start = the.train_preset(preset)
    network = network or the.network_config(**start.get("network", {}))
    data, loss = data or the.data(**start.get("data", {})), loss or the.loss(**start.get("loss", {}))
    recipe, run = train or TrainConfig(**start.get("train", {})), run or RunConfig()

    task = the.task(data, network)
    images, skipped, digest = task.images("train")
    print_skipped(skipped)
    *for_weights, for_validation = split_for_search(images, run.seed)
    pairs = task.pairs(for_validation, run.seed)

    config = {
        "space": the.name,
        "genotype": asdict(found_genotype),
        "images": digest,
        "network": asdict(network),
        "data": asdict(data),
        "loss": asdict(loss),
        "train": asdict(recipe),
    } | run_settings(run)
    fabric = run.fabric()
    with told(f"search space {the.name}: the network fails"):
        net = the.network(found_genotype, network)
    net.to(memory_format=memory_format(fabric.device))
    if recipe.start_from and not run.resume:
        _start(net, recipe.start_from)
    model, optimizer = fabric.setup(net, recipe.optimizer_for(net))
    patches = task.stream(sum(for_weights, []), run.seed, "train")
    epoch_steps = task.steps(sum(map(len, for_weights)))
    folder = RunFolder(run, "train", config)
    parts = {"network": net, "optimizer": optimizer.optimizer}
    measured = model
    if recipe.ema:
        average = copy.deepcopy(net)
        measured = fabric.setup(average)
        parts = {"network": average, "learning": net, "optimizer": optimizer.optimizer}
    if folder.checkpoint:
        config = folder.checkpoint["config"]
        config["genotype"] = asdict(the.read_genotype(config["genotype"]))  # of an older version: with what is new
        defaults = {"network": the.network_config, "data": the.data, "loss": the.loss, "train": TrainConfig}
        folder.restore(fabric, parts, {name: asdict(group()) for name, group in defaults.items()})
    the.save_genotype(found_genotype, folder.path / "genotype.json")

    code = "".join(f" --code {shlex.quote(path)}" for path in loaded_code())
    batches: Iterator = iter(loader(patches, folder.step, recipe.iterations, data.batch, data.workers))
    last: dict[str, float] = {}
    note = ""

    def do_step(step: int) -> tuple[dict[str, Any], str]:
        nonlocal last, note
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step) * group["rate_factor"]
        given, target = to_device(fabric, *next(batches))
        optimizer.zero_grad()
        value = loss(model(given), target)
        fabric.backward(value)
        if recipe.clip_norm:  # that a run diverges is told by its loss
            fabric.clip_gradients(model, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
        else:
            fabric.clip_gradients(model, optimizer, clip_val=recipe.clip)
        optimizer.step()
        if recipe.ema:
            _follow(average, net, min(recipe.ema, (1 + step) / (10 + step)))  # at first there is little to average
        epoch = step // epoch_steps + 1
        record = {"epoch": epoch, "learning_rate": recipe.rate(step), "loss": value.item()}
        if (step + 1) % recipe.validate_every == 0 or step + 1 == recipe.iterations:
            last = validate(measured, fabric.device, pairs, task)
            record |= last
            note = f"validation: {last['psnr']:.2f} dB, SSIM {last['ssim']:.4f}"
        return record, note

    try:
        run_steps(
            folder,
            fabric,
            f"train {the.name}",
            recipe.iterations,
            run.checkpoint_every,
            do_step,
            lambda: parts | {"validation": last},
            f"srnas-fast train {shlex.quote(run.out)}{code} --out {shlex.quote(run.out)} --resume",
        )
    finally:
        folder.close()

    draw_architecture(found_genotype.graph(), folder.path / "architecture.png")
    last = last or folder.checkpoint["validation"]  # a run that was finished before
    result = {
        "space": the.name,
        "genotype": str(found_genotype),
        "parameters": count_parameters(net),
        "psnr": last["psnr"],
        "ssim": last["ssim"],
        "steps": recipe.iterations,
        "skipped_images": len(skipped),
    }
    folder.write_result(result)
    print(f"trained: {folder.path}/checkpoint.pt, {result['parameters']:,} parameters, {note or 'finished before'}")
    return result


def _start(net: nn.Module, run: str) -> None:
    """Give a network the weights of a training; raises InputError where its kind or its shape does not allow it."""
    other = load(run).network
    if type(other) is not type(net) or not hasattr(net, "start_from"):
        raise InputError(
            f"train.start_from is {run}, but this network cannot start from another's weights; leave it out"
        )
    net.start_from(other)


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the average towards the network, running statistics with the weights that they are of; counts are copied."""
    ours, theirs = average.state_dict(), net.state_dict()
    for name, mean in ours.items():
        if mean.is_floating_point():
            mean.lerp_(theirs[name], 1 - decay)
        else:
            mean.copy_(theirs[name])
