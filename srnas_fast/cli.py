"""The commands: each reads its arguments and calls the function of the same name."""

import argparse
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from srnas_fast import __version__
from srnas_fast.errors import InputError

# The rooms are imported by the command that needs them, so that `srnas-fast --help` answers at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C.

    >>> main(["dance"])  # on the standard error: unknown command 'dance'; known: demo, search, ...
    2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_overview())
        elif argv[0] == "--version":
            print(f"srnas-fast {__version__}")
        elif argv[0] not in COMMANDS:
            raise InputError(f"unknown command {argv[0]!r}; known: {', '.join(COMMANDS)}")
        else:
            COMMANDS[argv[0]].run(argv[1:])
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `srnas-fast evaluate ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        less = "smaller --tile, --data.patch or --data.batch take less"
        print(f"error: there is not enough memory ({_in_one_line(error)[:200]}); {less}", file=sys.stderr)
        return 2
    return 0


def doctor() -> None:
    """Print what this machine can do: versions, compilers, devices, backends and why one of them is missing."""
    from srnas_fast.backends.report import describe

    print(describe())


def demo(out: str = "runs/demo", preset: str = "demo") -> list[dict[str, Any]]:
    """Search, retrain, measure and restore on the photographs that come with scikit-image.

    Args:
        out: folder for everything; new or empty.
        preset: "demo" (minutes on two CPU cores) or "smoke" (seconds; shows that it runs, restores nothing well).

    Returns:
        The rows of :func:`srnas_fast.train.evaluate`.

    Raises:
        InputError: ``out`` holds something, or the preset is unknown.
    """
    from srnas_fast.data import noisy_image, photographs, write_image
    from srnas_fast.search import RunConfig, search
    from srnas_fast.train import evaluate, restore, train

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another --out or delete it")
    print(f"1/4 search an architecture ({folder}/search)")
    search("hinas-denoise", preset, run=RunConfig(out=f"{folder}/search"))
    print(f"2/4 train its network ({folder}/train)")
    train(folder / "search", preset, run=RunConfig(out=f"{folder}/train"))
    print("3/4 measure it on photographs it has not seen")
    rows = evaluate(folder / "train", out=str(folder))
    print("4/4 restore them")
    sigma = rows[0]["sigma"]
    for image in photographs("test"):
        write_image(folder / "noisy" / f"{image.name}.png", noisy_image(image.pixels, sigma, 0, image.name))
    restore(f"{folder}/train", [folder / "noisy"], out=f"{folder}/restored")
    print(f"look at {folder}/comparison.png, {folder}/search/architecture.png and {folder}/search/weights.png")
    return rows


def random(space: str, out: str, seed: int = 0, preset: str = "paper") -> str:
    """Draw a genotype at random: the peer that a search has to beat.

    Args:
        space: name of the search space, or FILE.py:NAME of one's own.
        out: file to write, such as random.json.
        seed: of the draw.
        preset: the preset of the search, which gives the layers and nodes.

    Returns:
        The genotype as text.

    Raises:
        InputError: the space or the preset is unknown.
    """
    from srnas_fast.spaces import load_space
    from srnas_fast.spaces.own import told

    the = load_space(space)
    if the.random_genotype is None:
        raise InputError(f"{the.name} cannot draw genotypes: its Space has no random_genotype")
    with told(f"search space {the.name}: random_genotype fails"):
        genotype = the.random_genotype(the.supernet_config(**the.search_preset(preset).get("supernet", {})), seed)
    the.save_genotype(genotype, out)
    print(f"{genotype}\nwritten: {out}")
    return str(genotype)


@dataclass(frozen=True)
class Command:
    """A line for the overview and what to do with the arguments behind the command's name."""

    summary: str
    run: Callable[[list[str]], Any]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def _in_one_line(error: Exception) -> str:
    """What went wrong, in one line.

    >>> _in_one_line(FileExistsError(17, "File exists", "runs/a"))
    'runs/a: File exists'
    """
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _out_of_memory(error: Exception) -> bool:
    """Whether numpy, PyTorch on a CPU or PyTorch on a GPU could not get the memory it asked for.

    >>> _out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return True
    return type(error).__name__ == "OutOfMemoryError"  # PyTorch's, which is not imported for every command


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "srnas-fast COMMAND ...: search image-restoration networks on one ordinary GPU, or without one",
            "",
            *lines,
            "",
            "`srnas-fast COMMAND --help` explains the arguments; `srnas-fast --version` tells the version.",
        ]
    )


def _run_search(argv: list[str]) -> None:
    settings = _search_settings(argv)
    from srnas_fast.search import search

    search(**settings)


def _run_train(argv: list[str]) -> None:
    settings = _train_settings(argv)
    from srnas_fast.train import train

    train(**settings)


def _run_evaluate(argv: list[str]) -> None:
    parser = _Parser(prog="srnas-fast evaluate", description="PSNR and SSIM of trained networks on test images.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=_NETWORK)
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        help="test images; for super-resolution a folder that holds Set5, Set14, B100, Urban100 or Manga109, or images "
        "(default: photographs held out)",
    )
    parser.add_argument("--out", metavar="DIR", help="also write evaluation.csv, costs.csv and comparison.png there")
    _add_tile_and_device(parser)
    noise = parser.add_argument_group("denoising networks")
    noise.add_argument(
        "--sigma", nargs="+", type=float, help="noise levels on the [0, 255] scale (default: the training's)"
    )
    noise.add_argument(
        "--no-nlm", dest="nlm", action="store_false", default=None, help="leave out scikit-image's non-local means"
    )
    noise.add_argument("--seed", type=int, help="of the noise (default: 0)")
    larger = parser.add_argument_group("super-resolution networks")
    larger.add_argument(
        "--border", type=int, metavar="PIXELS", help="left out at each side where images are compared (default: scale)"
    )
    larger.add_argument(
        "--self_ensemble", action="store_true", default=None, help="mean of the image's eight symmetries (8x the time)"
    )
    settings = _arguments(parser, argv)
    from srnas_fast.train import evaluate

    evaluate(**settings)


def _run_restore(argv: list[str]) -> None:
    parser = _Parser(prog="srnas-fast restore", description="Restore or enlarge images with a trained network.")
    parser.add_argument("run", metavar="RUN", help=_NETWORK)
    parser.add_argument("images", nargs="+", metavar="IN", help="images, or folders of them")
    parser.add_argument("--out", metavar="DIR", default="restored", help="folder for the results (default: restored)")
    _add_tile_and_device(parser)
    settings = _arguments(parser, argv)
    from srnas_fast.train import restore

    restore(**settings)


def _run_export(argv: list[str]) -> None:
    parser = _Parser(prog="srnas-fast export", description="Write a trained network as ONNX or safetensors.")
    parser.add_argument("run", metavar="RUN", help=_NETWORK)
    parser.add_argument("file", metavar="FILE", help="to write: .onnx or .safetensors")
    settings = _arguments(parser, argv)
    from srnas_fast.train import export

    export(**settings)


_NETWORK = "folder of a training, its checkpoint.pt, an exported .safetensors file, or DLSR's published .pt"


def _arguments(parser: _Parser, argv: list[str]) -> dict[str, Any]:
    """The arguments of a command on trained networks, which may need code of the user's."""
    parser.add_argument("--code", action="append", metavar="FILE", help=_CODE)
    settings = vars(parser.parse_args(argv))
    _load(settings.pop("code") or [])
    return settings


def _load(code: list[str]) -> None:
    from srnas_fast.spaces import register_code

    for path in code:
        register_code(path)


_CODE = "Python file of yours that the network's search space or candidates come from; no other file is ever run"


def _add_tile_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of the tiles of large images; 0: none (default: 512; super-resolution: whole where memory allows)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def _run_demo(argv: list[str]) -> None:
    parser = _Parser(prog="srnas-fast demo", description="All of it, on photographs that come with scikit-image.")
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="folder for everything (default: runs/demo)")
    parser.add_argument("--preset", default="demo", help="demo (minutes) or smoke (seconds) (default: demo)")
    demo(**vars(parser.parse_args(argv)))


def _run_doctor(argv: list[str]) -> None:
    _Parser(prog="srnas-fast doctor", description=doctor.__doc__).parse_args(argv)
    doctor()


def _run_random(argv: list[str]) -> None:
    from srnas_fast.spaces import known_spaces

    parser = _Parser(prog="srnas-fast random", description="Draw a genotype at random, as a peer for a search.")
    parser.add_argument("space", metavar="SPACE", help=f"{', '.join(known_spaces())}, or your own as FILE.py:NAME")
    parser.add_argument("--out", metavar="FILE", required=True, help="the genotype's file")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--preset", default="paper", help="of the search it is a peer for (default: paper)")
    random(**_arguments(parser, argv))


COMMANDS = {
    "demo": Command("all of the below on small photographs, in minutes", _run_demo),
    "search": Command("images -> genotype", _run_search),
    "train": Command("genotype -> trained network", _run_train),
    "evaluate": Command("trained networks -> table of PSNR and SSIM", _run_evaluate),
    "restore": Command("trained network + images -> restored images", _run_restore),
    "export": Command("trained network -> .onnx or .safetensors", _run_export),
    "random": Command("a genotype drawn at random, as a peer", _run_random),
    "doctor": Command("what this machine can do, and why not more", _run_doctor),
}


def _search_settings(argv: list[str]) -> dict[str, Any]:
    """The arguments of ``search`` from the command line."""
    from srnas_fast.search import search_groups
    from srnas_fast.spaces import known_spaces, load_space

    if not argv or argv[0].startswith("-"):
        usage = f"srnas-fast search SPACE ...; spaces: {', '.join(known_spaces())}, or your own as FILE.py:NAME"
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: {usage}\n`srnas-fast search SPACE --help` explains its settings")
            raise SystemExit(0)
        raise InputError(f"search needs a search space first: {usage}")
    the = load_space(argv[0])
    settings = _settings(f"search {argv[0]}", argv[1:], search_groups(the), the.search_presets)
    return {"space": argv[0]} | settings


def _train_settings(argv: list[str]) -> dict[str, Any]:
    """The arguments of ``train`` from the command line."""
    if not argv or argv[0].startswith("-"):
        usage = "srnas-fast train GENOTYPE ...; a genotype is the folder of a search or a genotype.json"
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: {usage}\n`srnas-fast train GENOTYPE --help` explains the settings of its search space")
            raise SystemExit(0)
        raise InputError(f"train needs a genotype first: {usage}")
    from srnas_fast.train.checkpoint import read_genotype
    from srnas_fast.train.train import TrainConfig

    early = _Parser(prog="srnas-fast train", add_help=False, allow_abbrev=False)
    early.add_argument("--code", action="append", default=[])
    code, rest = early.parse_known_args(argv[1:])
    _load(code.code)
    the, _ = read_genotype(argv[0])
    groups = {"network": the.network_config, "data": the.data, "loss": the.loss, "train": TrainConfig}
    return {"genotype": argv[0]} | _settings("train GENOTYPE", rest, groups, the.train_presets, code=True)


def _settings(
    command: str, argv: list[str], groups: dict[str, type], presets: dict[str, dict[str, Any]], code: bool = False
) -> dict[str, Any]:
    """Dataclasses from defaults, preset, the run's own config, ``--config`` and options, each over the ones before.

    ``code``: whether the command takes ``--code``, which was read before.
    """
    import jsonargparse

    from srnas_fast.search.run import RunConfig, flat
    from srnas_fast.spaces.space import chosen_preset

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
            raise InputError(f"{' '.join(message.split())[:300]}; see `{self.prog} --help`") from None

    parser = Parser(prog=f"srnas-fast {command}", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings, such as a run's config.yaml")
    parser.add_argument(
        "--preset",
        default="paper",
        help=f"settings to start from: {', '.join(presets)}; options come over them",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    if code:
        parser.add_argument("--code", action="append", help=_CODE)
    parser.add_class_arguments(RunConfig, skip={"resume"})
    for name, group in groups.items():
        parser.add_class_arguments(group, name)

    early, argv = _early([_underscored(argument) for argument in argv], parser.prog)
    parser.set_defaults(flat(chosen_preset(presets, early.preset)))
    if early.resume:
        path = Path(early.out or RunConfig.out) / "config.yaml"
        try:
            parser.set_defaults(flat(_read_yaml(path)) | {"out": str(path.parent)})
        except KeyError as error:
            raise InputError(f"{path} is not of a `{parser.prog}` run: {error.args[0]}") from None
    try:
        values = parser.parse_args(_bracketed(argv, groups)).as_dict()
    except UnicodeDecodeError:
        raise InputError("the --config file is not text; give a YAML file of settings") from None
    for name in groups:
        if not isinstance(values[name], dict):
            raise InputError(f"{name} is {values[name]!r}; give its fields, as in a run's config.yaml")
    if values.pop("preset") != "paper" or values.pop("resume"):
        raise InputError("a --config file holds settings only; give --preset and --resume on the command line")
    values.pop("config")
    values.pop("code", None)
    return {name: group(**values.pop(name)) for name, group in groups.items()} | {
        "run": RunConfig(resume=early.resume, **values)
    }


def _underscored(argument: str) -> str:
    """An option's name as its setting is called, where it was given with hyphens.

    >>> _underscored("--cuda-graphs=false"), _underscored("--out=a-b"), _underscored("a-b")
    ('--cuda_graphs=false', '--out=a-b', 'a-b')
    """
    if not argument.startswith("--"):
        return argument
    name, sign, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{sign}{value}"


def _early(argv: list[str], prog: str) -> tuple[argparse.Namespace, list[str]]:
    """What decides over the defaults; and the other arguments, which stand over config files wherever they are written.

    >>> early, rest = _early(["--seed", "1", "--preset", "demo", "--config", "a.yaml"], "srnas-fast")
    >>> early.preset, early.resume, rest
    ('demo', False, ['--config=a.yaml', '--seed', '1'])
    """
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out")
    early, rest = parser.parse_known_args(argv)
    out = [] if early.out is None else [f"--out={early.out}"]
    return early, [f"--config={path}" for path in early.config] + out + rest


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"nothing to resume: there is no {path}; leave out --resume or name the run by --out"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not the config.yaml of a run; start again in another --out")
    return settings


def _bracketed(argv: list[str], groups: dict[str, type]) -> list[str]:
    """The arguments with the values of list options in brackets, so that ``--data.sigma 30 50`` works.

    >>> from srnas_fast.data import DenoisingData
    >>> _bracketed(["--data.sigma", "30", "50", "--seed", "1"], {"data": DenoisingData})
    ['--data.sigma=[30,50]', '--seed', '1']
    >>> from srnas_fast.data import SuperResolutionData
    >>> _bracketed(["--data.root", "my images", "b"], {"data": SuperResolutionData})
    ['--data.root=["my images", "b"]']
    """
    lists = {
        f"--{name}.{field}": typing.get_args(kind)
        for name, group in groups.items()
        if is_dataclass(group)
        for field, kind in typing.get_type_hints(group).items()
        if typing.get_origin(kind) is list
    }
    result, rest = [], list(argv)
    while rest:
        option = rest.pop(0)
        name, equals, value = option.partition("=")
        if name in lists:
            values = [value] if equals else []
            while not equals and rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            if lists[name] != (str,):
                option = f"{name}=[{','.join(' '.join(values).strip('[]').replace(',', ' ').split())}]"
            elif len(values) != 1 or not values[0].startswith("["):  # names may hold blanks and commas
                option = f"{name}={json.dumps(values)}"
            else:
                option = f"{name}={values[0]}"
        result.append(option)
    return result
