"""The progress view: plain lines, the terminal, time left and memory."""

import io
import mmap

import pytest
import torch
from rich.console import Console

from srnas_fast.report import Progress
from srnas_fast.report import progress as module


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def plain():
    out = io.StringIO()
    return out, Console(file=out, force_terminal=False)


def test_a_plain_line_every_ten_seconds_and_one_at_the_end(clock):
    out, console = plain()
    with Progress("search", total=100, console=console) as progress:
        for step in range(1, 26):
            clock.now += 1
            progress.update(step, epoch=step // 10, losses={"weights": 1 / step, "alphas": 2.0}, note="best [skip]")
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[2] for line in lines] == [
        "step 1/100",
        "step 11/100",
        "step 21/100",
        "step 25/100",
    ]
    parts = lines[1].split(" · ")
    assert parts[:4] == ["search", "epoch 1", "step 11/100", "1 min 29 s left"]
    assert parts[4:6] == ["weights 0.0909", "alphas 2.0000"]
    assert parts[6].endswith("MiB") or parts[6].endswith("GiB")
    assert "memory" in parts[6] and "peak" in parts[6]
    assert parts[7] == "best [skip]"  # no markup


def test_the_last_line_is_not_repeated_and_none_comes_without_a_step(clock):
    out, console = plain()
    with Progress("train", total=2, console=console) as progress:
        progress.update(1, 0, {})
    assert out.getvalue().count("\n") == 1
    out, console = plain()
    with Progress("train", total=2, console=console):
        pass
    assert out.getvalue() == ""


def test_a_resumed_run_counts_its_own_speed(clock):
    _, console = plain()
    with Progress("train", total=1000, first=900, console=console) as progress:
        assert progress.seconds_left() is None
        clock.now += 30
        progress.update(910, 3, {})
        assert progress.seconds_left() == pytest.approx(90 * 3)  # 3 s a step


def test_the_last_state_is_told_after_an_exception(clock):
    out, console = plain()
    with pytest.raises(KeyboardInterrupt), Progress("train", total=9, console=console) as progress:
        progress.update(1, 0, {"loss": 1.0})
        progress.update(2, 0, {"loss": float("nan")})
        raise KeyboardInterrupt
    assert "step 2/9" in out.getvalue().splitlines()[-1]
    assert "loss nan" in out.getvalue()


def test_long_lines_are_not_wrapped(clock):
    out, console = plain()
    with Progress("train", total=9, console=console) as progress:
        progress.update(1, 0, {}, note="x" * 500)
    assert out.getvalue().count("\n") == 1


def test_on_a_terminal():
    out = io.StringIO()
    with Progress("search", total=10, console=Console(file=out, force_terminal=True, width=120)) as progress:
        progress.update(10, 2, {"weights": 0.125}, note="best [skip]")
    text = out.getvalue()
    for part in ("search", "step 10/10", "epoch 2", "weights", "0.1250", "memory", "0 s left", "best [skip]"):
        assert part in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of the GPU there")
def test_memory_of_the_process():
    progress = Progress("train", total=1)
    before = progress.memory()
    assert 20 * 2**20 < before["now"] <= before["peak"] < 2**40
    block = mmap.mmap(-1, 64 * 2**20)  # straight from the system: an array may get memory freed by an earlier test
    block.write(bytes([1]) * len(block))
    during = progress.memory()
    assert during["now"] - before["now"] > 50 * 2**20
    block.close()
    after = progress.memory()
    assert after["now"] < during["now"] - 50 * 2**20
    assert after["peak"] >= during["now"] - 2**20
    assert "process memory" in progress._memory_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_memory_of_the_gpu():
    block = torch.zeros(2**20, device="cuda")
    memory = Progress("train", total=1).memory()
    assert memory["now"] == torch.cuda.memory_allocated() >= block.nbytes
    assert memory["peak"] >= memory["now"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (249, "4 min 09 s"),
        (3600, "1 h 00 min"),
        (86399, "23 h 59 min"),
        (97200, "1 d 03 h"),
        (-1, "0 s"),
    ],
)
def test_durations(seconds, text):
    assert module._duration(seconds) == text


def test_sizes():
    assert module._size(5 * 2**20) == "5 MiB"
    assert module._size(3 * 2**29) == "1.50 GiB"
