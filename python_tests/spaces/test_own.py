"""Files of the user's own: what they give, what is refused and how, and that names in data run nothing."""

import sys

import pytest
import torch
from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.spaces import own
from srnas_fast.spaces.own import (
    candidate,
    load_code,
    load_object,
    own_object,
    require_candidates,
    require_same_shape,
    short_name,
    told,
)

BLOCKS = """
from torch import nn
from shutil import rmtree

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
    def forward(self, x):
        return self.conv(x)

class Stranded(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.missing.attribute

class Plain(Block):
    def __init__(self, channels):
        super().__init__(channels)
        import json
        json.loads("{")

class InPlace(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1))

class Narrower(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3)

class Number:
    pass

def danger(channels):
    raise SystemExit("it ran")

WIDTH = 3
"""


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(own, "_LOADED", {})
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("srnas_fast_own_"):
            del sys.modules[name]


@pytest.fixture
def blocks(tmp_path):
    (tmp_path / "blocks.py").write_text(BLOCKS)
    return "blocks.py"


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_a_file_runs_once_and_its_objects_are_found_by_its_name_alone(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "ops.py").write_text("import pathlib\npathlib.Path('runs').open('a').write('x')\nA = 1\n")
    with pytest.raises(InputError, match="name its file by --code ops.py"):
        own_object("ops.py:A")
    assert load_object("code/ops.py:A") == 1 == own_object("ops.py:A") == own_object("elsewhere/ops.py:A")
    assert load_code(tmp_path / "code" / "ops.py") is load_code("code/../code/ops.py")
    assert (tmp_path / "runs").read_text() == "x"


def test_dataclasses_pickle_and_neighbours_work_as_in_a_script(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 7\n")
    (tmp_path / "uses.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import VALUE\n"
        "@dataclass\nclass Config:\n    width: int = VALUE\n"
    )
    path = list(sys.path)
    made = load_object("uses.py:Config")()
    assert made.width == 7 and sys.path == path
    import pickle

    assert pickle.loads(pickle.dumps(made)) == made
    del sys.modules["neighbour_of_mine"]


def test_files_of_one_name_are_refused_wherever_they_lie(tmp_path, blocks):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "blocks.py").write_text(BLOCKS)
    load_code(blocks)
    with pytest.raises(InputError, match="other/blocks.py and .*blocks.py have one name.*rename") as error:
        load_code("other/blocks.py")
    one_line(error)
    (tmp_path / "blocks.py").unlink()
    with pytest.raises(InputError, match="have one name"):
        load_code("other/blocks.py")


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = (\n", r"bad.py cannot be run: SyntaxError: .*\(bad.py, line 1\)"),
        ("\n\nx = 1 / 0\n", r"bad.py cannot be run: ZeroDivisionError: division by zero \(bad.py, line 3\)"),
        ("import nowhere_at_all\n", r"ModuleNotFoundError: No module named 'nowhere_at_all' \(bad.py, line 1\)"),
        ("import torch\n\ntorch.zeros(2) + torch.zeros(3)\n", r"RuntimeError: .* \(bad.py, line 3\)"),
        ("import torch\ntorch.nn.Conv2d(3, 4, 3, groups=2)\n", r"ValueError: .* \(bad.py, line 2\)"),
        ("import sys\nsys.exit('usage')\n", r"SystemExit: usage \(bad.py, line 2\)"),
        ("x = '\0'\n", "bad.py cannot be run: (SyntaxError|ValueError)"),
        ("\udcff", "bad.py cannot be run: (SyntaxError|ValueError)"),
        ("from srnas_fast import MixedOp\nMixedOp([])\n", r"run: MixedOp got no candidate.*\(bad.py, line 2\)"),
    ],
)
def test_a_file_that_fails_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "bad.py").write_bytes(text.encode("utf-8", "surrogateescape"))
    for _ in range(2):  # nothing is left of the first time
        with pytest.raises(InputError, match=message):
            load_code("bad.py")
        assert "srnas_fast_own_bad" not in sys.modules
    (tmp_path / "bad.py").write_text("x = 10000\n")
    assert load_object("bad.py:x") == 10000


def test_ctrl_c_stays_ctrl_c(tmp_path):
    (tmp_path / "stops.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_code("stops.py")
    assert "srnas_fast_own_stops" not in sys.modules


@pytest.mark.parametrize("reference", ["nowhere.py:A", ".py:A", "folder.py:A", "a\0.py:A", ":A"])
def test_files_that_are_not_there(tmp_path, reference):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(InputError, match="no such Python file"):
        load_object(reference)


def test_names_that_a_file_does_not_hold(blocks):
    for name in ("Brick", "", "Block.__init__", "__class__"):
        with pytest.raises(InputError, match=r"blocks.py holds no '.*'; it holds nn, rmtree, Block, .*WIDTH"):
            load_object(f"{blocks}:{name}")


# Names in data


def test_a_name_in_data_calls_nothing_but_classes_of_modules(blocks):
    load_code(blocks)
    for name in ("danger", "rmtree", "WIDTH", "Number", "nn", "__builtins__", "__loader__"):
        with pytest.raises(InputError, match=f"blocks.py:{name} is .*; a candidate operation is a class derived"):
            candidate(f"blocks.py:{name}", {})


def test_a_module_s_own_getattr_is_not_asked(tmp_path):
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    raise SystemExit('it ran')\n")
    load_code("lazy.py")
    with pytest.raises(InputError, match="holds no 'A'"):
        own_object("lazy.py:A")


@pytest.mark.parametrize("name", ["blocks.py:Block", "./blocks.py:Block", "a/b/blocks.py:Block"])
def test_what_was_not_loaded_is_not_run(tmp_path, blocks, name):
    (tmp_path / "blocks.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="which only you can let run"):
        candidate(name, {})


def test_the_folder_in_a_stranger_s_name_is_not_told():
    with pytest.raises(InputError, match="^blocks.py:Block is code.* by --code blocks.py, or.*'blocks.py'. before$"):
        candidate("/tmp/of-a-stranger/blocks.py:Block", {})


@pytest.mark.parametrize("name", [None, 3, ["conv"], {}, "dance", "", "os:system", "blocks:Block"])
def test_unknown_candidates(name):
    with pytest.raises(InputError, match="unknown candidate operation .*; known: conv, and your own as FILE.py:CLASS"):
        candidate(name, {"conv": nn.Identity})


# Candidates


def test_a_candidate_is_built_or_says_where_it_fails(blocks):
    load_code(blocks)
    made = candidate("blocks.py:Block", {})(4)
    assert isinstance(made, own_object("blocks.py:Block")) and made.conv.in_channels == 4
    with pytest.raises(InputError, match=r"Stranded cannot be built of 4 channels: AttributeError.*blocks.py, line 15"):
        candidate("blocks.py:Stranded", {})(4)
    for name, fault in {
        "InPlace": "changes its input in place, which other edges read, too; build it with inplace=False",
        "Narrower": r"makes \(1, 4, 6, 6\) of \(1, 4, 8, 8\)",
    }.items():
        for quick in (False, True):
            with torch.inference_mode(quick), pytest.raises(InputError, match=f"blocks.py:{name} {fault}"):
                candidate(f"blocks.py:{name}", {})(4)
    known = {"conv": object()}
    assert candidate("conv", known) is known["conv"]


@pytest.mark.parametrize(
    "names, message",
    [
        ([], r"supernet.candidates is \[\]; give at least one of conv"),
        ("conv", "supernet.candidates is 'conv'; give at least one"),
        (None, "give at least one"),
        (["conv", "conv"], "names conv twice"),
        (["conv", "dance"], "supernet.candidates: unknown candidate operation 'dance'"),
        (["conv", 3], "supernet.candidates: unknown candidate operation 3"),
        (["blocks.py:Block", "../here/blocks.py:Block"], "names blocks.py:Block twice"),
        (["blocks.py:Brick"], "blocks.py holds no 'Brick'"),
        (["blocks.py:danger"], "blocks.py:danger is a function"),
        (["nowhere.py:Block"], "nowhere.py: no such Python file"),
    ],
)
def test_lists_of_candidates_that_are_refused(tmp_path, monkeypatch, names, message):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "blocks.py").write_text(BLOCKS)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=message) as error:
        require_candidates("supernet.candidates", names, {"conv": nn.Identity})
    one_line(error)


def test_what_is_typed_is_run_and_then_known_by_its_short_name(tmp_path, blocks):
    require_candidates("supernet.candidates", ["conv", f"{tmp_path}/blocks.py:Block"], {"conv": nn.Identity})
    assert candidate(short_name(f"{tmp_path}/blocks.py:Block"), {})(2).conv.out_channels == 2


class Odd(nn.Module):
    def forward(self, x):
        return {"x": x}


class Fails(nn.Module):
    def forward(self, x):
        return self.nothing(x)


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Conv2d(4, 5, 1), r"my.py:M makes \(1, 5, 8, 8\) of \(1, 4, 8, 8\)"),
        (nn.Conv2d(4, 4, 3), r"makes \(1, 4, 6, 6\) of"),
        (Odd(), r"makes a dict of \(1, 4, 8, 8\)"),
        (nn.Conv2d(3, 4, 1), r"my.py:M cannot run on \(1, 4, 8, 8\): RuntimeError: .*expected input"),
        (nn.Sequential(nn.Flatten(0, -1), nn.ReLU(inplace=True), nn.Unflatten(0, (1, 4, 8, 8))), "its input in place"),
        (Fails(), r"AttributeError: 'Fails' .*test_own.py, line \d+\)"),
    ],
)
def test_candidates_of_another_shape_are_refused(module, message):
    for quick in (False, True):
        with torch.inference_mode(quick), pytest.raises(InputError, match=message) as error:
            require_same_shape("my.py:M", module, 4)
        one_line(error)


def test_the_trial_leaves_a_candidate_as_it_was():
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity().eval())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    require_same_shape("my.py:M", module, 4)
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in module] == [True, True, True, False] and module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("name, line", [("blocks.py", 21), ("beside_blocks.py", 2)])
def test_an_error_inside_a_library_is_told_by_the_users_line(tmp_path, blocks, name, line):
    (tmp_path / "beside_blocks.py").write_text("import json\njson.loads('{')\n")
    (tmp_path / "loads.py").write_text("import beside_blocks\n")
    with pytest.raises(InputError, match=rf"JSONDecodeError: .* \({name}, line {line}\)$"):
        if name == "blocks.py":
            load_code(name)
            candidate("blocks.py:Plain", {})(4)
        else:
            load_code("loads.py")


def test_no_memory_is_not_the_users_fault():
    with pytest.raises(MemoryError), told("it failed"):
        raise MemoryError
