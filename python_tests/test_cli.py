"""The commands: what they explain, what they refuse and how, and that each is a Python function too."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import srnas_fast
from srnas_fast import cli
from srnas_fast.cli import COMMANDS, main
from srnas_fast.data import DenoisingData, photographs
from srnas_fast.losses import DenoisingLoss
from srnas_fast.search import BilevelConfig, RunConfig, search
from srnas_fast.spaces.hinas import NetworkConfig, SupernetConfig
from srnas_fast.train import TrainConfig, evaluate, export, restore, train

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "search hinas-denoise --preset smoke --threads 1"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with images, a finished search ``s``, a finished training ``t``, and everything that can be wrong."""
    folder = tmp_path_factory.mktemp("house")
    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    random = np.random.default_rng(0)
    for name, size in {"images": (40, 48), "small": (10, 12)}.items():
        Path(name).mkdir()
        for i in range(4):
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(f"{name}/{i}.png")
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("no image")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*SMOKE.split(), "--data.root", "images", "--out", "s"]) == 0
        assert main(["train", "s", "--preset", "smoke", "--threads", "1", "--data.root", "images", "--out", "t"]) == 0

    for name, text in SETTINGS.items():
        Path(f"{name}.yaml").write_text(text)
    Path("bytes.yaml").write_bytes(bytes(range(128, 256)))
    for name, data in GENOTYPES.items():
        Path(f"{name}.json").write_text(data if isinstance(data, str) else json.dumps(data))
    whole = Path("t/checkpoint.pt").read_bytes()
    state = torch.load("t/checkpoint.pt", weights_only=True)
    for name, content in {
        "random-bytes": np.random.default_rng(1).bytes(5000),
        "no-bytes": b"",
        "zeros": bytes(1000),
        "text": b"hello",
        "first-half": whole[: len(whole) // 2],
        "all-but-the-end": whole[:-100],
        "code": pickle.dumps(Executed()),
        "another-pickle": pickle.dumps({"format": state["format"]}),
        "another-program": {"a": 1},
        "a-tensor": torch.ones(3),
        "a-module": torch.nn.Linear(2, 2),
        "no-kind": {"format": state["format"]},
        "no-config": {"format": state["format"], "kind": "train"},
        "unknown-space": state | {"config": state["config"] | {"space": "mars"}},
        "unknown-field": state | {"config": state["config"] | {"network": {"wings": 2}}},
        "another-size": state | {"config": state["config"] | {"network": {"filters": 6, "pyramid": False}}},
        "another-genotype": state | {"config": state["config"] | {"genotype": {}}},
        "no-weights": state | {"network": {}},
        "weights-of-no-kind": state | {"network": 3},
    }.items():
        run = Path("checkpoints", name)
        run.mkdir(parents=True)
        if isinstance(content, bytes):
            (run / "checkpoint.pt").write_bytes(content)
        else:
            torch.save(content, run / "checkpoint.pt")
        for file in ("config.yaml", "genotype.json"):
            (run / file).write_bytes(Path("t", file).read_bytes())
    yield folder
    os.chdir(before)
    torch.set_num_threads(threads)


class Executed:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


SETTINGS = {
    "unknown-field-in-a-group": "data:\n  bogus: 3\n",
    "unknown-field": "bogus: 3\n",
    "number-for-a-group": "data: 3\n",
    "nothing-for-a-group": "supernet:\n",
    "word-for-a-number": "data:\n  patch: big\n",
    "number-for-a-list": "data:\n  sigma: 50\n",
    "number-for-a-folder": "data:\n  root: 3\n",
    "open-bracket": "[1, 2\n",
    "a-list": "- 1\n",
    "nothing": "",
    "a-preset": "preset: demo\n",
    "a-resume": "resume: true\n",
}
EDGES = [["con_c_3x3", 0], ["con_c_3x3", 1]]
GENOTYPES = {
    "half": '{"space": ',
    "list": [],
    "no-space": {"cells": [EDGES], "path": [0]},
    "list-for-a-space": {"space": ["hinas-denoise"]},
    "mars": {"space": "mars"},
    "space-alone": {"space": "hinas-denoise"},
    "word-for-cells": {"space": "hinas-denoise", "cells": "abc", "path": [0]},
    "word-for-an-input": {"space": "hinas-denoise", "cells": [[["con_c_3x3", "x"], ["con_c_3x3", 1]]], "path": [0]},
    "word-for-a-width": {"space": "hinas-denoise", "cells": [EDGES], "path": ["x"]},
    "endless-width": {"space": "hinas-denoise", "cells": [EDGES], "path": [float("inf")]},
    "bottomless": "[" * 100_000,
    "null-for-a-width": {"space": "hinas-denoise", "cells": [EDGES], "path": [None]},
    "unknown-operation": {"space": "hinas-denoise", "cells": [[["con9", 0], ["con9", 1]]], "path": [0]},
    "unknown-activation": {"space": "hinas-denoise", "cells": [EDGES], "path": [0], "activation": "gelu"},
    "list-for-an-activation": {"space": "hinas-denoise", "cells": [EDGES], "path": [0], "activation": []},
}

CHECKPOINTS = """
    random-bytes no-bytes zeros text first-half all-but-the-end code another-pickle another-program a-tensor a-module
    no-kind no-config unknown-space unknown-field another-size another-genotype no-weights weights-of-no-kind
"""
# command -> words that the one line of the answer holds
REFUSED = {
    "dance": "unknown command 'dance'; known: demo, search",
    "search": "spaces: dlsr-x2",
    "search --preset smoke": "spaces: dlsr-x2",
    "search mars": "unknown search space 'mars'; known: dlsr-x2",
    f"{SMOKE} --data.root nowhere": "nowhere: no such file or folder",
    f"{SMOKE} --data.root empty": "empty: no images in this folder",
    f"{SMOKE} --data.root small": "all 4 images in small are smaller than the 16-pixel patch",
    f"{SMOKE} --data.root images/0.png": "at least 3 images",
    f"{SMOKE} --preset fast": "unknown preset 'fast'; known: ",
    f"{SMOKE} --preset": "srnas-fast search hinas-denoise --help",
    f"{SMOKE} --bogus 3": "--bogus 3; see `srnas-fast search hinas-denoise --help`",
    f"{SMOKE} --data.bogus 3": "--data.bogus 3",
    f"{SMOKE} --data.pat 3": "--data.pat 3",
    f"{SMOKE} bogus": "bogus",
    f"{SMOKE} --data.patch big": "data.patch",
    f"{SMOKE} --data.patch 1.5": "Got value: 1.5",
    f"{SMOKE} --data.patch -1": "data.patch is -1; give a whole number from 1 up",
    f"{SMOKE} --data.patch": "data.patch",
    f"{SMOKE} --data.sigma -1": "data.sigma holds -1.0",
    f"{SMOKE} --data.sigma a b": "data.sigma",
    f"{SMOKE} --data.sigma []": "data.sigma is empty",
    f"{SMOKE} --data.sigma": "data.sigma is empty",
    f"{SMOKE} --data.rescale maybe": "data.rescale",
    f"{SMOKE} --data.validation_crop 5": "data.validation_crop is 5",
    f"{SMOKE} --data.workers -1": "data.workers is -1",
    f"{SMOKE} --search.epochs 0": "search.epochs is 0",
    f"{SMOKE} --search.learning_rate nan": "search.learning_rate",
    f"{SMOKE} --search.warmup_epochs 5": "search.warmup_epochs is 5 of 3 epochs",
    f"{SMOKE} --search.validate_from 9": "search.validate_from is 9",
    f"{SMOKE} --search.momentum -1": "search.momentum is -1",
    f"{SMOKE} --supernet.filters 0": "supernet.filters is 0",
    f"{SMOKE} --supernet.activation gelu": "known: leaky, relu, prelu, sine",
    f"{SMOKE} --loss.mse -1": "mse is -1",
    f"{SMOKE} --seed -1": "seed is -1",
    f"{SMOKE} --seed 99999999999": "seed is 99999999999",
    f"{SMOKE} --device gpu": "give auto, cpu or cuda",
    f"{SMOKE} --precision 16-mixed --device cpu": "is for GPUs",
    f"{SMOKE} --precision 8": "give 32-true, bf16-mixed or 16-mixed",
    f"{SMOKE} --config nowhere.yaml": "nowhere.yaml",
    f"{SMOKE} --config images": "images",
    f"{SMOKE} --config bytes.yaml": "not text",
    f"{SMOKE} --out images/0.png": "images/0.png: File exists",
    f"{SMOKE} --out images/0.png/run": "images/0.png/run: Not a directory",
    f"{SMOKE} --out /proc/run": "/proc/run: ",
    f"{SMOKE} --data.root images --out s": "s holds a run already; go on with it by --resume",
    f"{SMOKE} --data.root images --out t": "t holds a run already",
    "search hinas-denoise --resume --out nowhere": "nothing to resume: there is no nowhere/config.yaml",
    "search hinas-denoise --resume --out images": "nothing to resume",
    "search hinas-denoise --resume --out t": "t/config.yaml is not of a `srnas-fast search hinas-denoise` run",
    "train s --resume --out s": "s/config.yaml is not of a `srnas-fast train GENOTYPE` run",
    "train s --resume --out t --network.filters 6": "has network.filters 4, not 6",
    "train s --resume --out t --train.optimizer adam": "has train.optimizer sgd, not adam",
    "train": "needs a genotype first",
    "train nowhere": "no genotype at nowhere",
    "train images": "no genotype at images/genotype.json",
    "train s --preset fast": "unknown preset 'fast'",
    "train s --preset smoke --train.optimizer rprop": "give sgd or adam",
    "train s --preset smoke --train.iterations 0": "train.iterations is 0",
    "train s --preset smoke --train.momentum -1": "train.momentum is -1",
    "train s --preset smoke --network.pyramid 3": "network.pyramid",
    "evaluate": "RUN; see `srnas-fast evaluate --help`",
    "evaluate nowhere": "nowhere: no such file or folder; give the folder of a training",
    "evaluate s": "s/checkpoint.pt belongs to a search run; a train run was asked for",
    "evaluate t --data.root nowhere": "nowhere: no such file or folder",
    "evaluate t --data.root small --sigma x": "'x'",
    "evaluate t --data.root images --sigma -3": "sigma holds -3.0",
    "evaluate t --data.root images --tile -1": "tile is -1",
    "evaluate t --data.root images --device gpu": "give auto, cpu or cuda",
    "evaluate t --data.root images --out images/0.png": "images/0.png: File exists",
    "evaluate images/0.png": "images/0.png is damaged or no PyTorch checkpoint",
    "evaluate t/config.yaml": "t/config.yaml is damaged or no PyTorch checkpoint",
    "restore t": "IN; see `srnas-fast restore --help`",
    "restore s images": "belongs to a search run",
    "restore t nowhere": "nowhere: no such file or folder",
    "restore t empty": "empty: no images in this folder",
    "restore t images --out images": "exists already and would be overwritten",
    "restore t images --out images/0.png": "images/0.png: File exists",
    "restore t images --tile -1": "tile is -1",
    "random mars --out r.json": "unknown search space 'mars'",
    "random hinas-denoise": "--out",
    "random hinas-denoise --out images": "Is a directory",
    "demo --out images": "images is not empty",
    "demo --out d --preset fast": "unknown preset 'fast'",
    "doctor now": "unrecognized arguments: now",
}
REFUSED |= {f"{SMOKE} --data.root images --config {name}.yaml": "" for name in SETTINGS}
REFUSED |= {f"train {name}.json --preset smoke": "" for name in GENOTYPES}
for _name in CHECKPOINTS.split():
    REFUSED |= {
        f"evaluate checkpoints/{_name} --data.root images": "",
        f"restore checkpoints/{_name} images": "",
        f"train s --resume --out checkpoints/{_name} --train.iterations 8": "",
    }


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line_and_nothing_is_lost(house, capsys, command):
    before = contents(house)
    capsys.readouterr()
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600
    assert REFUSED[command] in error
    assert contents(house) == before  # also: no pickle was executed, no folder made


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [f"{SMOKE} --device cuda", "restore t images --device cuda"])
def test_a_gpu_that_is_not_there_is_refused(house, capsys, command):
    assert main(command.split()) == 2
    assert "PyTorch sees no GPU here" in capsys.readouterr().err


def test_the_process_itself_prints_the_line_and_fails(house):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "srnas_fast", "evaluate", "checkpoints/code"]
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: checkpoints/code/checkpoint.pt is damaged") and done.stderr.count("\n") == 1
    assert not (house / "executed").exists()


def test_version_of_the_process():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "srnas_fast", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"srnas-fast {srnas_fast.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_command(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in shown and command.summary in shown


def help_of(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    shown = help_of(capsys, command)
    assert f"srnas-fast {command}" in shown


FIELDS = {
    "search hinas-denoise": {
        "": RunConfig,
        "supernet.": SupernetConfig,
        "data.": DenoisingData,
        "loss.": DenoisingLoss,
        "search.": BilevelConfig,
    },
    "train s": {
        "": RunConfig,
        "network.": NetworkConfig,
        "data.": DenoisingData,
        "loss.": DenoisingLoss,
        "train.": TrainConfig,
    },
}


@pytest.mark.parametrize("command", FIELDS)
def test_help_explains_every_field_with_its_default(house, capsys, command):
    words = " ".join(help_of(capsys, command).split()).partition(" options: ")[2]
    # The preset "paper" of the training stands over these defaults.
    preset = {"data.batch": 24, "data.sigma": [50.0], "loss.log_ssim": 0.6} if command == "train s" else {}
    for prefix, group in FIELDS[command].items():
        explained = inspect.getdoc(group).partition("Args:")[2]
        for field in dataclasses.fields(group):
            if field.name == "resume":  # in the words of the command line
                continue
            name = f"{prefix}{field.name}"
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            default = preset.get(name, default)
            spoken = "null" if default is None else default
            meaning = explained.partition(f"\n    {field.name}: ")[2].partition("\n")[0].rstrip(".")
            _, _, text = words.partition(f"--{name} ")
            assert meaning and meaning in text
            assert f"default: {spoken})" in text.partition(meaning)[2].partition(" --")[0], name


@pytest.mark.parametrize(
    ("command", "function", "spelled"),
    [
        ("evaluate", evaluate, {"runs": "RUN", "root": "--data.root", "nlm": "--no-nlm"}),
        ("restore", restore, {"run": "RUN", "images": "IN"}),
        ("export", export, {"run": "RUN", "file": "FILE"}),
        ("demo", cli.demo, {}),
        ("doctor", cli.doctor, {}),
        ("random", cli.random, {"space": "SPACE"}),
    ],
)
def test_a_command_and_its_function_have_the_same_arguments(capsys, command, function, spelled):
    shown = help_of(capsys, command)
    for name in inspect.signature(function).parameters:
        assert spelled.get(name, f"--{name} ") in shown


def test_search_and_train_take_the_groups_of_their_commands(house):
    common = set(inspect.signature(search).parameters) - {"preset", "settings"}
    for space, own in (("hinas-denoise", {"search"}), ("dlsr-x2", {"search", "complexity"})):
        assert set(cli._search_settings([space])) == common | own
    assert set(cli._search_settings(["hnas-x2"])) == common | {"search", "reward"}
    made = cli._train_settings(["s"])
    assert set(inspect.signature(train).parameters) - {"preset"} == set(made)


@pytest.mark.parametrize(
    ("arguments", "root"),
    [
        (["--data.root", "my images", "a,b", "7"], ["my images", "a,b", "7"]),
        (["--data.root=my images"], ["my images"]),
        (["--data.root", "[a, b]"], ["a", "b"]),
        ([], []),
    ],
)
def test_several_roots_with_any_names(arguments, root):
    assert cli._search_settings(["dlsr-x2", *arguments, "--seed", "1"])["data"].root == root


def settings(*arguments):
    return cli._search_settings(["hinas-denoise", *arguments])


def test_defaults_are_the_paper_s():
    made = settings()
    assert made == {
        "space": "hinas-denoise",
        "supernet": SupernetConfig(),
        "data": DenoisingData(),
        "loss": DenoisingLoss(),
        "search": BilevelConfig(),
        "run": RunConfig(),
    }


def test_options_stand_over_the_config_and_that_over_the_preset_whatever_the_order(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"data": {"patch": 20, "batch": 3}, "seed": 5}))
    parts = [["--preset", "smoke"], ["--config", str(config)], ["--data.batch", "7"]]
    for order in itertools.permutations(parts):
        made = settings(*itertools.chain(*order))
        assert made["supernet"].filters == 2  # preset, over the default
        assert (made["data"].patch, made["run"].seed) == (20, 5)  # config, over preset and default
        assert made["data"].batch == 7  # option, over the config


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.sigma", "30", "50", "70.5"],
        ["--data.sigma", "[30,50,70.5]"],
        ["--data.sigma", "[30, 50, 70.5]"],
        ["--data.sigma", "[30,", "50,", "70.5]"],
        ["--data.sigma=[30,50,70.5]"],
        ["--data.sigma=30,50,70.5"],
        ["--data.sigma", "30", "50", "70.5", "--seed", "0"],
    ],
)
def test_lists_in_every_spelling(arguments):
    assert settings(*arguments)["data"].sigma == [30.0, 50.0, 70.5]


@pytest.mark.parametrize("arguments", [["--data.sigma", "25"], ["--data.sigma=25"], ["--data.sigma", "[25]"]])
def test_lists_of_one(arguments):
    assert settings(*arguments)["data"].sigma == [25.0]


def test_a_preset_with_equals_sign_and_the_values_of_other_kinds():
    made = settings(
        "--preset=smoke", "--data.rescale", "false", "--data.root", "some where", "--search.momentum", "1e-1"
    )
    assert made["data"].rescale is False and made["data"].root == "some where" and made["search"].momentum == 0.1
    assert made["data"].patch == 16


def test_resume_takes_the_settings_of_the_run_and_options_stand_over_them(house):
    made = settings("--resume", "--out", "s")
    assert made["supernet"].filters == 2 and made["data"].root == "images"
    assert made["run"] == RunConfig(out="s", resume=True, threads=1)
    assert settings("--resume", "--out", "s", "--data.workers", "2")["data"].workers == 2


def test_random_draws_what_train_reads(house, tmp_path, capsys):
    files = [tmp_path / f"{i}.json" for i in range(3)]
    for file, seed in zip(files, "001", strict=True):
        assert main(["random", "hinas-denoise", "--out", str(file), "--seed", seed]) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert str(files[2]) in capsys.readouterr().out
    data = json.loads(files[0].read_text())
    assert data["space"] == "hinas-denoise" and len(data["path"]) == 3 and len(data["cells"][0]) == 8


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown and srnas_fast.__version__ in shown


LESS = "smaller --tile, --data.patch or --data.batch take less"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt("stopped and saved"), 130, "stopped and saved\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied\n"),
        (srnas_fast.errors.InputError("two\nlines"), 2, "error: two lines\n"),
        (MemoryError("8 GB"), 2, f"error: there is not enough memory (8 GB); {LESS}\n"),
        (torch.OutOfMemoryError("CUDA"), 2, f"error: there is not enough memory (CUDA); {LESS}\n"),
    ],
)
def test_how_a_command_ends(monkeypatch, capsys, error, status, said):
    def stop():
        raise error

    monkeypatch.setattr(cli, "doctor", stop)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == said


def test_what_the_cpu_s_allocator_says_is_understood(monkeypatch, capsys):
    monkeypatch.setattr(cli, "doctor", lambda: torch.empty(2**60, dtype=torch.uint8))
    assert main(["doctor"]) == 2
    assert "error: there is not enough memory" in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "doctor", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_the_demo_leaves_everything_the_design_names(tmp_path, monkeypatch, capsys):
    splits = sys.modules["srnas_fast.data.photographs"].SPLITS
    monkeypatch.setitem(splits, "test", ("chelsea.png", "coins.png"))  # the small ones
    out = tmp_path / "demo"
    rows = cli.demo(out=str(out), preset="smoke")
    names = contents(out)
    both = {"architecture.png", "checkpoint.pt", "config.yaml", "genotype.json", "log.jsonl", "result.json"}
    for part in ("search", "train"):
        found = {name.split("/")[1] for name in names if name.startswith(f"{part}/")}
        assert both <= found and any(name.startswith("events.") for name in found)
    assert {"search/weights.png", "evaluation.csv", "costs.csv", "comparison.png"} <= set(names)
    tests = photographs("test")
    for image in tests:
        for folder in ("noisy", "restored"):
            with Image.open(out / folder / f"{image.name}.png") as written:
                assert written.size == (image.pixels.shape[1], image.pixels.shape[0])
    assert {row["method"] for row in rows} == {"noisy", "non-local means", "train"}
    noisy = [row["psnr"] for row in rows if row["method"] == "noisy"]
    # Unclipped noise of 50 would leave 20 log10(255 / 50) = 14.15 dB; clipping takes away some of the noise.
    assert len(noisy) == 3 and all(14.1 < psnr < 15.2 for psnr in noisy)
    shown = capsys.readouterr()
    assert shown.err == "" and all(f"{i}/4" in shown.out for i in range(1, 5))
    with pytest.raises(srnas_fast.errors.InputError, match="is not empty"):
        cli.demo(out=str(out), preset="smoke")
