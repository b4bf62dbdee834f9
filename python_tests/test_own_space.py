"""docs/own-space.md, followed to the letter: its files written, its commands run."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.spaces import known, own

PAGE = Path(__file__).parents[1] / "docs" / "own-space.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
PYTHON = [content for language, content in BLOCKS if language == "python"]
COMMANDS = [content.replace("\\\n", "").splitlines() for language, content in BLOCKS if language == "sh"]
QUICK, LATER, PACKAGED, WITH_A_CANDIDATE = COMMANDS


def block(word):
    (found,) = [content for content in PYTHON if word in content]
    return found


def write_space(path, *more):
    """The page's space as a file, with further blocks of the page behind it."""
    Path(path).write_text("\n".join([block("SPACE = Space("), *map(block, more)]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with photos, in which nothing of one's own is loaded."""
    monkeypatch.setattr(own, "_LOADED", {})
    monkeypatch.setattr(known, "_REGISTERED", {})
    monkeypatch.setitem(sys.modules["srnas_fast.data.photographs"].SPLITS, "test", ("chelsea.png", "coins.png"))
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45), dtype=np.uint8)).save("photos/a.png")
    threads, modules = torch.get_num_threads(), set(sys.modules)
    yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.startswith(("srnas_fast_own_", "my_")):
            del sys.modules[name]


def anew():
    """As in another process: nothing is loaded."""
    own._LOADED.clear()
    known._REGISTERED.clear()


def run(line):
    anew()
    program, *arguments = shlex.split(line)
    threads = ["--threads", "1"] if arguments[0] in ("search", "train") else []
    assert program == "srnas-fast" and main([*arguments, *threads]) == 0, line


def test_it_takes_about_40_lines():
    assert len([line for line in block("SPACE = Space(").splitlines() if line.strip()]) <= 45


def test_from_nothing_to_a_restored_image(folder, capsys):
    write_space("my_space.py")
    for line in QUICK:
        run(line)
    found = Path("runs/s/genotype.json").read_bytes()
    genotype = json.loads(found)
    assert genotype["space"] == "my-chain" and len(genotype["operations"]) == 4
    for name in ("restored", "again"):
        with Image.open(f"{name}/a.png") as image:
            assert image.size == (45, 31)
    assert Path("restored/a.png").read_bytes() == Path("again/a.png").read_bytes()

    for line in LATER:
        run(line)
    assert Path("runs/s/genotype.json").read_bytes() == found
    assert json.loads(Path("runs/r/genotype.json").read_text()) == json.loads(Path("random.json").read_text())
    capsys.readouterr()

    # Without the code everything refuses in one line, and none of it is run.
    Path("my_space.py").write_text("open('it-ran', 'w')\n")
    for line in [line for line in QUICK + LATER if "--code" in line]:
        anew()
        assert main(line.replace("--code my_space.py", "").split()[1:]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "--code FILE.py" in error
    assert not Path("it-ran").exists()


def test_a_package_of_ones_own(folder, monkeypatch):
    package = folder / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_space(package / "my_space.py", "search_presets=")
    scope = {}
    exec(block("ENTRY_POINTS"), scope)
    ((group, (offer,)),) = scope["ENTRY_POINTS"].items()
    info = folder / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{offer}\n")
    monkeypatch.syspath_prepend(folder / "site")
    for line in PACKAGED:
        run(line)
    assert Path("runs/t/result.json").exists()


def test_a_candidate_of_ones_own_in_dlsr(folder):
    Path("my_ops.py").write_text(block("class MyBlock"))
    for line in WITH_A_CANDIDATE:
        run(line)
    allowed = {"conv_3x3", "dil_conv_3x3", "my_ops.py:MyBlock"}
    assert set(json.loads(Path("runs/d/genotype.json").read_text())["operations"]) <= allowed


def test_an_algorithm_of_ones_own(folder):
    write_space("my_space.py", "search_presets=", "class Cooled(")
    run("srnas-fast search my_space.py:COOLED --preset demo --out runs/c")
    assert json.loads(Path("runs/c/genotype.json").read_text())["space"] == "my-cooled-chain"
    result, state = json.loads(Path("runs/c/result.json").read_text()), torch.load("runs/c/checkpoint.pt")
    last = 10 ** (1 - 2 * (result["steps"] - 1) / result["steps"])
    assert state["supernet"]["temperature"].item() == pytest.approx(last)  # a buffer, set by the last step
