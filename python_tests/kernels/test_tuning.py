"""Tiles by measurement: who is timed, what is remembered, and that no tensor notices."""

import json
import math

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
from srnas_fast.kernels import multi_depthwise, separable_gradient, separable_sum, tuning  # noqa: E402

TILES = [{"BLOCK": 64, "num_warps": 4}, {"BLOCK": 32, "num_warps": 4}, {"BLOCK": 128, "num_warps": 8}]


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The launches that were timed, on a card that is made up, where each is faster than the one before it."""
    launches = []

    def milliseconds(launch):
        launch()
        launches.append(launch)
        return 1 / len(launches)

    monkeypatch.setattr(tuning, "folder", tmp_path / "cache")
    monkeypatch.setattr(tuning, "_card", lambda: "a card")
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    forget()
    yield launches
    forget()


def forget():
    """What a new process would not know."""
    tuning._memory.cache_clear()


def nothing(tile):
    pass


def kept():
    return json.loads((tuning.folder / tuning.FILE).read_text("utf-8"))


def test_each_is_timed_once_and_the_fastest_is_remembered(timed):
    x = torch.empty(2, 3, 5, 7)
    assert tuning.tuned("a", TILES, nothing, x) == tuning.tuned("a", TILES, nothing, x) == TILES[2]
    assert len(timed) == 3
    forget()
    assert tuning.tuned("a", TILES, nothing, x) == TILES[2]
    assert len(timed) == 3  # the next process reads the file
    assert list(kept().values()) == [TILES[2]]


def test_the_choice_is_made_for_each_kind_of_call(timed, monkeypatch):
    x = torch.empty(2, 8, 30, 30)
    tuning.tuned("a", TILES, nothing, x, 1)
    tuning.tuned("a", TILES, nothing, torch.empty(2, 8, 17, 32), 1)  # about as large
    assert len(timed) == 3
    others = [
        ("b", x, 1),
        ("a", x, 2),
        ("a", x.bfloat16(), 1),
        ("a", x.to(memory_format=torch.channels_last), 1),
        ("a", torch.empty(2, 8, 33, 30), 1),
    ]
    for number, (kernel, *key) in enumerate(others, 2):
        tuning.tuned(kernel, TILES, nothing, *key)
        assert len(timed) == 3 * number
    for place, value in (("_card", lambda: "another card"), ("triton.__version__", "0")):
        monkeypatch.setattr(f"srnas_fast.kernels.tuning.{place}", value)
        tuning.tuned("a", TILES, nothing, x, 1)
    assert len(timed) == 3 * 8


def test_the_rule_holds_without_a_folder(timed, monkeypatch):
    monkeypatch.setattr(tuning, "folder", None)
    assert tuning.tuned("a", TILES, nothing) == TILES[0] and not timed


def test_the_rule_holds_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(tuning, "_milliseconds", lambda launch: pytest.fail("timed"))
    monkeypatch.setattr(tuning, "folder", "never looked at")
    assert tuning.tuned("a", TILES, nothing) == TILES[0]


def test_nothing_is_timed_while_a_graph_is_captured(timed, monkeypatch):
    tuning.tuned("known", TILES, nothing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.tuned("known", TILES, nothing) == TILES[2]
    assert tuning.tuned("unknown", TILES, nothing) == TILES[0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.tuned("unknown", TILES, nothing) == TILES[2]  # the rule was not taken for a measurement


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"%s": 3}', '{"%s": {"BLOCK": 7, "num_warps": 4}}', '{"%s": [1]}', "\udcff"]
)
def test_other_files_do_no_harm(timed, text):
    tuning.tuned("a", TILES, nothing)
    (name,) = kept()
    file = tuning.folder / tuning.FILE
    file.write_bytes(text.replace("%s", name).encode("utf-8", "surrogateescape"))
    forget()
    assert tuning.tuned("a", TILES, nothing) == TILES[2]
    assert len(timed) == 6 and kept()[name] == TILES[2]
    assert [path.name for path in tuning.folder.iterdir()] == [tuning.FILE]


def test_what_other_processes_add_stays(timed):
    tuning.tuned("a", TILES, nothing)
    file = tuning.folder / tuning.FILE
    file.write_text(json.dumps(kept() | {"theirs": 1}), "utf-8")
    tuning.tuned("b", TILES, nothing)
    assert len(kept()) == 3 and kept()["theirs"] == 1


def test_a_folder_that_cannot_be_written_costs_the_next_process_only(timed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tuning, "folder", tmp_path / "file" / "cache")
    assert tuning.tuned("a", TILES, nothing) == tuning.tuned("a", TILES, nothing) == TILES[2]
    assert len(timed) == 3


def test_a_tile_too_large_for_the_card_is_passed_by(timed, monkeypatch):
    monkeypatch.setattr(tuning, "_milliseconds", lambda launch: math.inf)
    assert tuning.tuned("a", TILES, nothing) == TILES[0]
    assert not (tuning.folder / tuning.FILE).exists()  # where all fail nothing was measured


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), tuning.triton.runtime.errors.OutOfResources(9, 1, "shared memory")]
)
def test_what_counts_as_too_large(monkeypatch, error):
    def do_bench(*arguments, **options):
        raise error

    monkeypatch.setattr(tuning.triton.testing, "do_bench", do_bench)
    assert tuning._milliseconds(nothing) == math.inf


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def calls(device):
    """Each launcher that measures, as a function that gives its results; what it adds to begins as before."""
    x, before, y = (z.to(device) for z in (numbers(1, 3, 5, 4), numbers(1, 3, 5, 4) + 1, numbers(1, 4, 5, 4)))
    depthwise = [numbers(3, 1, 1, 1).to(device), numbers(3, 1, 3, 3).to(device)]
    pointwise, square = [numbers(4, 3).to(device)] * 2, [numbers(3, 3).to(device)] * 2
    plan = [1, 2], 1

    def outputs():
        found = [torch.empty_like(x), torch.empty_like(x)]
        multi_depthwise.multi_depthwise(found, x, depthwise, *plan)
        return found

    def gradients():
        found = torch.empty_like(x), [torch.empty_like(kernel) for kernel in depthwise]
        multi_depthwise.multi_depthwise_backward(*found, [x, before], x, depthwise, *plan)
        return [found[0], *found[1]]

    def total():
        found = y.clone()
        separable_sum.separable_sum(found, True, x, depthwise, pointwise, None, None, *plan)
        return [found]

    def moments():
        found = torch.empty(2, 3, device=device), torch.empty(2, 3, 3, device=device)
        separable_sum.separable_moments(*found, x, depthwise, *plan)
        return found

    def gradient():
        dx, kernels = before.clone(), [torch.empty_like(kernel) for kernel in depthwise]
        products = [torch.empty_like(matrix) for matrix in pointwise]
        left = [matrix.t() for matrix in pointwise]
        arguments = True, x, y, depthwise, left, square, None, None, *plan
        separable_gradient.separable_gradient(dx, None, kernels, products, *arguments)
        return [dx, *kernels, *products]

    return {"outputs": outputs, "gradients": gradients, "sum": total, "moments": moments, "gradient": gradient}


@pytest.mark.parametrize("name", ["outputs", "gradients", "sum", "moments", "gradient"])
def test_launchers_measure_and_give_the_same(device, timed, monkeypatch, name):
    call = calls(device)[name]
    folder = tuning.folder
    monkeypatch.setattr(tuning, "folder", None)
    expected = call()
    assert not timed
    monkeypatch.setattr(tuning, "folder", folder)
    first, launches = call(), len(timed)
    second = call()
    assert launches == len(timed) > 3
    for one, two, want in zip(first, second, expected, strict=True):
        assert torch.equal(one, two)
        assert (one - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.gpu
def test_on_a_card(device, tmp_path, monkeypatch):
    if device.type != "cuda":
        pytest.skip("needs a GPU: nothing is timed in the interpreter")
    monkeypatch.setattr(tuning, "folder", tmp_path)
    expected = calls(device)["sum"]()
    assert len(kept()) == 1
    monkeypatch.setattr(tuning, "_milliseconds", lambda launch: pytest.fail("timed again"))
    forget()
    assert torch.equal(calls(device)["sum"]()[0], expected[0])
