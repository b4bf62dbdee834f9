"""``search``: from a folder of images to a genotype."""

import shlex
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from srnas_fast.data import split_for_search
from srnas_fast.errors import InputError
from srnas_fast.report import draw_architecture, print_skipped
from srnas_fast.search.algorithm import Batches, Problem, algorithm_of
from srnas_fast.search.loop import run_steps
from srnas_fast.search.run import RunConfig, RunFolder, run_settings
from srnas_fast.spaces import Space, check_space, load_space


def search(
    space: str,
    preset: str = "paper",
    supernet: Any = None,
    data: Any = None,
    loss: Any = None,
    run: RunConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Search an architecture and leave it, with all that led to it, in the run's folder.

    Args:
        space: name of the search space, such as "hinas-denoise", or FILE.py:NAME of one's own.
        preset: what the groups of settings that are not given are taken from: paper, demo, smoke or another of the
            space's own.
        supernet: size of the supernet, of the space's own type.
        data: images and patches, of the space's own type; without a root, the embedded photographs.
        loss: of the space's own type.
        run: folder, seed, device.
        settings: of the algorithm that the space names: ``search``, its schedule, and for some ``complexity`` or
            ``reward``, how much the cost of the architecture counts.

    Returns:
        What ``result.json`` holds: the genotype as text, where it comes from, how good it was.

    Raises:
        InputError: settings, images or a checkpoint that cannot be used.
        OSError: the run's folder cannot be written.
        KeyboardInterrupt: stopped by the user, after a checkpoint was written.

    Example::

        from srnas_fast.search import RunConfig, search
        search("hinas-denoise", preset="demo", run=RunConfig(out="runs/a"))
    """
    the, run = load_space(space), run or RunConfig()
    make = algorithm_of(the)
    groups = search_groups(the)
    given = {"supernet": supernet, "data": data, "loss": loss} | settings
    if unknown := [name for name, group in given.items() if group is not None and name not in groups]:
        raise InputError(f"a search in {the.name} has no settings {', '.join(unknown)}; it has {', '.join(groups)}")
    start = the.search_preset(preset)
    chosen = {name: given.get(name) or group(**start.get(name, {})) for name, group in groups.items()}
    for name, group in groups.items():
        if not isinstance(chosen[name], group):
            given_type = type(chosen[name]).__name__
            raise InputError(f"{name} is a {given_type}; a search in {the.name} takes {group.__name__}")
    supernet, data, loss = (chosen[name] for name in ("supernet", "data", "loss"))

    check_space(the, supernet, getattr(make, "check", None))
    task = the.task(data, supernet)
    images, skipped, digest = task.images("search")
    print_skipped(skipped)
    for_weights, for_architecture, for_validation = split_for_search(images, run.seed, task.architecture_share)
    fabric = run.fabric()
    problem = Problem(
        space=the,
        config=supernet,
        supernet=the.supernet(supernet),
        fabric=fabric,
        loss=loss,
        task=task,
        weights=Batches(task.stream(for_weights, run.seed, "weights"), data),
        architecture=Batches(task.stream(for_architecture, run.seed, "architecture"), data),
        epoch_steps=task.steps(len(for_weights)),
        held_out=task.pairs(for_validation, run.seed),
        seed=run.seed,
        cuda_graphs=run.cuda_graphs,
    )
    algorithm = make(problem, **{name: chosen[name] for name in make.groups(the)})
    config = {"space": the.name, "images": digest} | {name: asdict(group) for name, group in chosen.items()}
    folder = RunFolder(run, "search", config | run_settings(run))
    if folder.checkpoint:
        folder.restore(fabric, algorithm.parts(), {name: asdict(group()) for name, group in groups.items()})

    try:
        run_steps(
            folder,
            fabric,
            f"search {the.name}",
            algorithm.total,
            run.checkpoint_every,
            algorithm.step,
            algorithm.parts,
            f"srnas-fast search {shlex.quote(space)} --out {shlex.quote(run.out)} --resume",
        )
        records = folder.records()
    finally:
        folder.close()

    genotype = algorithm.genotype()
    the.save_genotype(genotype, folder.path / "genotype.json")
    draw_architecture(genotype.graph(), folder.path / "architecture.png")
    pictures = ["architecture.png", *algorithm.draw(records, folder.path)]
    result = {"space": the.name, "genotype": str(genotype)} | algorithm.result(records)
    result |= {"steps": algorithm.total, "skipped_images": len(skipped)}
    folder.write_result(result)
    print(f"{genotype}\nsearched: {folder.path}/genotype.json, {', '.join(pictures)}")
    return result


def search_groups(space: Space) -> dict[str, type]:
    """The groups of settings that a search in a space has, by their names.

    Raises:
        InputError: the algorithm has a group of a name that is taken, or one that is no dataclass of defaults.
    """
    common = {"supernet": space.supernet_config, "data": space.data, "loss": space.loss}
    own = algorithm_of(space).groups(space)
    taken = {*common, "code", "config", "preset", *(field.name for field in fields(RunConfig))}
    for name, group in own.items():
        if name in taken:
            raise InputError(f"the algorithm of {space.name} has a group of settings {name!r}; give it another name")
        if not is_dataclass(group):
            raise InputError(
                f"the algorithm of {space.name} has settings {name!r} that are no dataclass; make them one"
            )
    return common | own
