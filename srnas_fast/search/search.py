"""``search``: from a folder of images to a genotype."""

import shlex
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from srnas_fast.data import loader, split_for_search
from srnas_fast.errors import InputError
from srnas_fast.losses import ComplexityLoss
from srnas_fast.report import draw_architecture, draw_weights, normalised_entropy, print_skipped
from srnas_fast.search.bilevel import Bilevel, BilevelConfig
from srnas_fast.search.complexity import ComplexityConfig
from srnas_fast.search.loop import run_steps
from srnas_fast.search.run import RunConfig, RunFolder, run_settings
from srnas_fast.search.validation import validate
from srnas_fast.simplex import linear_radius
from srnas_fast.spaces import find_space


def search(
    space: str,
    preset: str = "paper",
    supernet: Any = None,
    data: Any = None,
    loss: Any = None,
    search: BilevelConfig | None = None,
    complexity: ComplexityConfig | None = None,
    run: RunConfig | None = None,
) -> dict[str, Any]:
    """Search an architecture and leave it, with all that led to it, in the run's folder.

    Args:
        space: name of the search space, such as "hinas-denoise".
        preset: what the groups of settings that are not given are taken from: paper, demo, smoke or another of the
            space's own.
        supernet: size of the supernet, of the space's own type.
        data: images and patches, of the space's own type; without a root, the embedded photographs.
        loss: of the space's own type.
        search: the schedule.
        complexity: how much the cost of the architecture counts, in spaces that know it.
        run: folder, seed, device.

    Returns:
        What ``result.json`` holds: the genotype as text, where it comes from, the entropy of the weights.

    Raises:
        InputError: settings, images or a checkpoint that cannot be used.
        OSError: the run's folder cannot be written.
        KeyboardInterrupt: stopped by the user, after a checkpoint was written.

    Example::

        from srnas_fast.search import RunConfig, search
        search("hinas-denoise", preset="demo", run=RunConfig(out="runs/a"))
    """
    the = find_space(space)
    start = the.search_preset(preset)
    supernet = supernet or the.supernet_config(**start["supernet"])
    data, loss = data or the.data(**start["data"]), loss or the.loss(**start["loss"])
    schedule, run = search or BilevelConfig(**start["search"]), run or RunConfig()
    if schedule.validate_from > schedule.epochs:
        raise InputError(
            f"search.validate_from is {schedule.validate_from}, after the last of {schedule.epochs} epochs: no "
            "genotype would be chosen; give an epoch that comes"
        )

    if the.candidate_costs:
        complexity = complexity or ComplexityConfig(**start["complexity"])
    elif complexity:
        raise InputError(f"{space} does not know what its candidates cost; leave the complexity term out")

    task = the.task(data, supernet)
    images, skipped, digest = task.images("search")
    print_skipped(skipped)
    for_weights, for_architecture, for_validation = split_for_search(images, run.seed, task.architecture_share)
    steps = schedule.steps or task.steps(len(for_weights))
    total = steps * schedule.epochs

    config = {
        "space": space,
        "images": digest,
        "supernet": asdict(supernet),
        "data": asdict(data),
        "loss": asdict(loss),
        "search": asdict(schedule),
        **({"complexity": asdict(complexity)} if complexity else {}),
    } | run_settings(run)
    streams = {
        name: task.stream(part, run.seed, name)
        for name, part in (("weights", for_weights), ("architecture", for_architecture))
    }
    pairs = task.pairs(for_validation, run.seed)

    fabric = run.fabric()
    net = the.supernet(supernet)
    cost = None
    if complexity and complexity.coefficient:
        cost = ComplexityLoss(the.candidate_costs(supernet, complexity.by), complexity.coefficient)
    penalty = cost and (lambda: cost(net.candidate_weights()))
    algorithm = Bilevel(fabric, net, loss, schedule, penalty, run.cuda_graphs)
    folder = RunFolder(run, "search", config)
    best: dict[str, Any] = {}
    if folder.checkpoint:
        folder.restore(fabric, algorithm.parts())
        best = folder.checkpoint["best"]

    warm = schedule.warmup_epochs * steps
    weight_batches = iter(loader(streams["weights"], folder.step, total, data.batch, data.workers))
    first = max(folder.step, warm)
    architecture_batches = iter(loader(streams["architecture"], first, total, data.batch, data.workers))
    note = ""

    def do_step(step: int) -> tuple[dict[str, Any], str]:
        nonlocal best, note
        epoch = step // steps + 1
        net.radius = linear_radius(step - warm, total - warm)  # of sparsestmax: other maps have none
        record: dict[str, Any] = {"epoch": epoch, "learning_rate": schedule.rate(epoch - 1)}
        batch = next(weight_batches)
        if step >= warm:
            also = {"also": [batch]} if schedule.mixed_level else {}
            record["loss_architecture"] = algorithm.architecture_step(*next(architecture_batches), **also)
        record["loss_weights"] = algorithm.weight_step(*batch, epoch - 1)
        record |= net.sparsity()
        if (step + 1) % steps == 0:
            genotype = net.genotype()
            record |= {"genotype": asdict(genotype)} | _weights_now(net)
            note = f"now {genotype}"
            if epoch >= schedule.validate_from:
                record |= validate(algorithm.model, fabric.device, pairs, task)
                if not best or record["score"] > best["score"]:
                    best = {name: record[name] for name in ("epoch", "score", "psnr", "ssim", "genotype")}
                note = f"best, of epoch {best['epoch']}: {the.read_genotype(best['genotype'])}"
        return record, note

    try:
        run_steps(
            folder,
            fabric,
            f"search {space}",
            total,
            run.checkpoint_every,
            do_step,
            lambda: algorithm.parts() | {"best": best},
            f"srnas-fast search {space} --out {shlex.quote(run.out)} --resume",
        )
        epochs = [record for record in folder.records() if "weights" in record]
    finally:
        folder.close()

    genotype = the.read_genotype(best["genotype"])
    genotype.save(folder.path / "genotype.json")
    draw_architecture(genotype.graph(), folder.path / "architecture.png")
    labels = {name: labels for name, (labels, _) in net.architecture_weights().items()}
    draw_weights(
        [record["step"] for record in epochs],
        {name: (labels[name], np.array([record["weights"][name] for record in epochs])) for name in labels},
        folder.path / "weights.png",
    )
    result = {
        "space": space,
        "genotype": str(genotype),
        **{name: best[name] for name in ("epoch", "score", "psnr", "ssim")},
        "entropy": epochs[-1]["entropy"],
        "steps": total,
        "skipped_images": len(skipped),
    }
    folder.write_result(result)
    print(f"{genotype}\nsearched: {folder.path}/genotype.json, architecture.png, weights.png")
    return result


def _weights_now(net: nn.Module) -> dict[str, Any]:
    """The architecture weights after an epoch and the mean entropy of each group, for the log."""
    with torch.no_grad():
        groups = {name: rows.cpu().double().numpy() for name, (_, rows) in net.architecture_weights().items()}
    return {
        "weights": {name: rows.tolist() for name, rows in groups.items()},
        "entropy": {name: float(normalised_entropy(rows).mean()) for name, rows in groups.items()},
    }
