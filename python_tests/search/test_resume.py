"""A run that was killed or stopped, and resumed, ends bit for bit as one that ran through."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srnas_fast.cli import main

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 20
READINGS = ("seconds", "memory_now", "memory_peak")
# Epochs of 5 steps and checkpoints every 4: a run killed in its step 7 is in mid-epoch and past its last checkpoint.
COMMON = ["--preset", "smoke", "--threads", "1", "--checkpoint_every", "4"]
SEARCH = [*COMMON, "--search.steps", "5", "--search.epochs", "4"]
TRAIN = [*COMMON, "--train.iterations", "20", "--train.validate_every", "5"]

# Runs the command; kills itself where the first argument says.
KILLED = """
import os, signal, sys
from srnas_fast.cli import main
from srnas_fast.search.run import RunFolder

where, step = sys.argv[1], int(sys.argv[2])
log, replace = RunFolder.log, os.replace

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def log_and_die(self, record):
    log(self, record)
    if record["step"] == step:
        if where == "after the log":
            die()
        os.replace = lambda source, target: die() if str(target).endswith(".pt") else replace(source, target)

RunFolder.log = log_and_die
sys.exit(main(sys.argv[3:]))
"""


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_in_process(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def run_killed(where, step, *arguments):
    command = [sys.executable, "-c", KILLED, where, str(step), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def start(*arguments):
    command = [sys.executable, "-m", "srnas_fast", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(), text=True, start_new_session=True, **pipes)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def wait_for_step(process, folder, step):
    log = folder / "log.jsonl"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= step):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.002)


def alive(word):
    """The processes that have a word in their command line; none where there is no /proc."""
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if str(word).encode() in read(path)]


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def assert_equal(a, b, where=""):
    """Nested states are equal, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}/{i}")
    else:
        assert a == b, where


def assert_same_run(folder, reference):
    assert not list(folder.glob(".*"))  # no half-written file is left
    for name in ("genotype.json", "result.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()
    a, b = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (folder, reference))
    assert a["step"] == b["step"] == TOTAL
    for state in (a, b):  # the folders' names and the number of workers differ, and so the bytes of seconds
        state.pop("config"), state.pop("log_bytes")
    assert_equal(a, b)
    logs = [
        [{key: value for key, value in record.items() if key not in READINGS} for record in records(run)]
        for run in (folder, reference)
    ]
    assert [record["step"] for record in logs[0]] == list(range(1, TOTAL + 1))
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def searched(images, tmp_path_factory):
    """A search that ran through."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    run_in_process("search", "hinas-denoise", *SEARCH, "--data.root", images, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def trained(images, searched, tmp_path_factory):
    """A training that ran through."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_in_process("train", searched, *TRAIN, "--data.root", images, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def killed(images, tmp_path_factory):
    """A search killed in its step 7, past its only checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    run_killed("after the log", 7, "search", "hinas-denoise", *SEARCH, "--data.root", images, "--out", folder)
    assert len(records(folder)) == 7 and torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 4
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_search_killed_in_mid_epoch(images, searched, tmp_path, workers):
    out = tmp_path / "run"
    arguments = [*SEARCH, "--data.root", images, "--data.workers", workers]
    process = start("search", "hinas-denoise", *arguments, "--out", out)
    wait_for_step(process, out, 7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 4 <= torch.load(out / "checkpoint.pt", weights_only=True)["step"] < TOTAL
    assert len(records(out)) < TOTAL and not (out / "genotype.json").exists()
    run_in_process("search", "hinas-denoise", "--out", out, "--resume")
    assert_same_run(out, searched)


def test_a_search_moved_and_killed_again_while_it_writes_a_checkpoint(killed, searched, tmp_path):
    out = tmp_path / "moved"
    shutil.copytree(killed, out)
    before = (killed / "checkpoint.pt").read_bytes()
    run_killed("in the checkpoint", 12, "search", "hinas-denoise", "--out", out, "--resume")
    assert len(records(out)) == 12 and torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 8
    assert list(out.glob(".checkpoint-*.pt"))
    run_in_process("search", "hinas-denoise", "--out", out, "--resume")
    assert (killed / "checkpoint.pt").read_bytes() == before
    assert_same_run(out, searched)
    events = EventAccumulator(str(out)).Reload()
    assert [event.step for event in events.Scalars("loss_weights")] == list(range(1, TOTAL + 1))


def test_a_search_killed_before_its_first_checkpoint_starts_again(images, killed, searched, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(killed, out)
    (out / "checkpoint.pt").unlink()
    assert main(["search", "hinas-denoise", "--out", str(out), "--resume"]) == 2
    assert capsys.readouterr().err.startswith(f"error: no checkpoint at {out}")
    run_in_process("search", "hinas-denoise", *SEARCH, "--data.root", images, "--out", out)
    assert_same_run(out, searched)


def test_a_training_killed_and_resumed_with_workers(images, searched, trained, tmp_path):
    out = tmp_path / "run"
    run_killed("after the log", 7, "train", searched, *TRAIN, "--data.root", images, "--out", out)
    run_in_process("train", searched, "--out", out, "--resume", "--data.workers", 2)
    assert_same_run(out, trained)


@pytest.mark.parametrize(
    ("command", "number", "workers"),
    [
        ("search", signal.SIGINT, 2),
        ("search", signal.SIGTERM, 2),
        ("train", signal.SIGINT, 0),
    ],
)
def test_a_stopped_run_saves_and_says_how_to_go_on(images, searched, trained, tmp_path, command, number, workers):
    out = tmp_path / "run"
    first, settings = ("hinas-denoise", SEARCH) if command == "search" else (searched, TRAIN)
    process = start(command, first, *settings, "--data.root", images, "--data.workers", workers, "--out", out)
    wait_for_step(process, out, 2)
    os.killpg(process.pid, number)  # as a terminal does: to the workers also
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not alive(out)  # no worker is left
    done = len(records(out))
    assert 2 <= done < TOTAL and torch.load(out / "checkpoint.pt", weights_only=True)["step"] == done
    said, _, resume = errors.partition("go on with: srnas-fast ")
    assert said == f"stopped and saved after step {done}; " and errors.count("\n") == 1
    run_in_process(*shlex.split(resume))
    assert_same_run(out, searched if command == "search" else trained)


@pytest.mark.parametrize("command", ["search", "train"])
def test_a_finished_run_is_resumed_without_change(searched, trained, tmp_path, command):
    reference = searched if command == "search" else trained
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    run_in_process(command, "hinas-denoise" if command == "search" else searched, "--out", out, "--resume")
    assert (out / "checkpoint.pt").read_bytes() == (reference / "checkpoint.pt").read_bytes()
    assert (out / "log.jsonl").read_bytes() == (reference / "log.jsonl").read_bytes()
    assert_same_run(out, reference)


def test_the_seed_decides(images, searched, tmp_path):
    """The comparison above can fail: another seed gives other losses."""
    out = tmp_path / "run"
    run_in_process(
        "search", "hinas-denoise", *SEARCH, "--search.epochs", 2, "--data.root", images, "--out", out, "--seed", 1
    )
    assert records(out)[0]["loss_weights"] != records(searched)[0]["loss_weights"]


SCHEDULES = {
    "hinas-sr-x2": ["--search.steps", "5", "--search.epochs", "4"],
    # Widths that are drawn are drawn again.
    "trilevel-x2": ["--search.steps", "5", "--search.epochs", "4", "--supernet.width_weights", "gumbel"],
    # 2 times 5 steps of the weights and 4 of the controller, then 2 samples.
    "hnas-x2": [
        "--search.steps",
        "5",
        "--search.controller_steps",
        "4",
        "--search.epochs",
        "2",
        "--search.samples",
        "2",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("space", SCHEDULES)
def test_the_other_systems_end_as_if_never_killed(images, space, tmp_path):
    small = [*COMMON, "--data.root", images, "--data.patch", "24", "--data.validation_crop", "24"]
    search = ["search", space, *small, *SCHEDULES[space]]
    run_in_process(*search, "--out", tmp_path / "a")
    run_killed("after the log", 7, *search, "--out", tmp_path / "b")
    run_killed("before the checkpoint", 16, *search, "--out", tmp_path / "b", "--resume")
    run_in_process("search", space, "--out", tmp_path / "b", "--resume")
    assert_same_run(tmp_path / "b", tmp_path / "a")
    train = ["train", tmp_path / "a", *small, "--train.iterations", "20", "--train.validate_every", "5"]
    run_in_process(*train, "--out", tmp_path / "c")
    run_killed("after the log", 7, *train, "--out", tmp_path / "d")
    run_in_process("train", tmp_path / "d", "--out", tmp_path / "d", "--resume")
    assert_same_run(tmp_path / "d", tmp_path / "c")
