"""What the benches do on a GPU, with a stand-in for it where there is none; and bench/gpu.sh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu.sh"
PIECES = ["warm", "tests", "speed", "steps", "memory", "search", "summary"]

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_script = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout", "realpath"))), reason="bench/gpu.sh needs bash and GNU's coreutils"
)

# torch's allocator of a GPU, played by LiveMemory: the two count the same tensors.
STAND_IN = """
import torch
from srnas_fast.metrics import LiveMemory
card = LiveMemory()
torch.cuda.memory_allocated = lambda: card.live
torch.cuda.max_memory_allocated = torch.cuda.max_memory_reserved = lambda: card.peak
torch.cuda.reset_peak_memory_stats = card.reset_peak
"""


def run(*arguments, **environment):
    done = subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@needs_script
@needs_no_gpu
@pytest.mark.parametrize("piece", [[], ["summary"]])
def test_without_a_gpu_one_line_says_so(tmp_path, piece):
    status, out, err = run(tmp_path / "new", *piece, PYTHON=sys.executable)
    assert status == 1 and not out
    assert re.fullmatch(r"no GPU to measure: .+\n", err)
    assert not (tmp_path / "new").exists()


@needs_script
def test_wrong_arguments_are_told_the_pieces(tmp_path):
    for arguments in ([], [tmp_path, "dance"]):
        status, _, err = run(*arguments)
        assert status == 2 and " ".join(PIECES) in err


@pytest.mark.slow
@needs_script
def test_the_pieces_run_in_order_and_go_on_after_one_that_fails(bench, tmp_path):
    log, stand_in = tmp_path / "log", tmp_path / "python"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$1" = -c ]; then exec "{sys.executable}" "$@"; fi\n'
        f'echo "$*" >>"{log}"\n'
        'if [[ "$*" == *"memory.py"*" dlsr" ]]; then exit 3; fi\n'
    )
    stand_in.chmod(0o755)
    status, out, err = run(tmp_path / "out", PYTHON=str(stand_in), DATA=str(tmp_path / "my photos"))
    assert status == 1
    told = [piece for name in PIECES for piece in (name, f"{name}: done")]
    told.remove("memory: done")
    assert re.findall(r"^=== (\w+(?:: done)?)", out, re.M) == told
    assert re.search(r"exit status 3 .*memory.py.* --case dlsr\n=== memory: FAILED after \d+ s ===\n$", err)

    machine, *calls = [line.replace(f" --out {tmp_path / 'out'}", "") for line in log.read_text().splitlines()]
    assert machine == "bench/machine.py"
    warmed = [call for call in calls if " --rounds 1 " in call]
    assert all(re.fullmatch(r"bench/speed.py --out /\S+ --rounds 1 --case .+", call) for call in warmed)
    assert len(warmed) == 5 and calls[: len(warmed)] == warmed
    calls = calls[len(warmed) :]
    assert calls[0] == f"-m pytest -q -n auto -m gpu --junitxml={tmp_path / 'out' / 'tests.xml'} python_tests"
    assert calls[-3:] == [f"bench/search.py --gib 11 --root {tmp_path}/my photos", "bench/plot.py", "bench/summary.py"]
    benches = calls[1:-3]
    assert all("--gib 11" in call for call in benches)

    mixed, steps, depthwise, sparse = bench("""
import cases, sparsity
result = [list(cases.MIXED), list(cases.STEPS), list(cases.DEPTHWISE), list(sparsity.SPARSITY)]
""")

    def measured(name):
        return [re.search(r"--case (\S+)", call)[1] for call in benches if f"/{name}.py" in call]

    headline, heavy = ["hinas", "dlsr", "pc-darts"], ["hinas-search", "dlsr-search/64"]
    assert measured("memory") == heavy + headline
    assert measured("speed") == headline + [*headline, "dlsr-32"] + heavy
    assert sum("--graph" in call for call in benches) == 4

    log.unlink()
    status, out, _ = run(tmp_path / "out", "more", "summary", PYTHON=str(stand_in))
    assert status == 0 and "=== summary: done in" in out
    benches = log.read_text().splitlines()
    others = [case for case in mixed if case not in headline]
    later = ["dlsr-search/8", "hinas-sr-search"]
    assert sorted(measured("memory")) == sorted([*others, *later, "hnas-search"]) and {*heavy, *later} == {*steps}
    assert sorted(measured("speed")) == sorted([*others, "multi-depthwise", *sparse, *later])
    assert all(case.startswith("multi-depthwise/") for case in depthwise)


def test_the_times_that_the_pieces_have():
    script = SCRIPT.read_text()
    limits = [int(seconds) for seconds in re.findall(r"ends=\$\(\(SECONDS \+ (\d+)\)\)", script)]
    told = [int(seconds) for seconds in re.findall(r"^#   \w+ .*?(\d+)(?: seconds at most)?$", script, re.M)]
    assert limits == told and len(limits) == len(PIECES) + 1
    assert max(limits) <= 4 * 60 and sum(limits[:-1]) <= 15 * 60  # the last piece is for who has more time


@needs_no_gpu
def test_a_replay_needs_a_gpu(bench):
    told = bench("""
import contextlib, io, sys
import speed
sys.argv, told = ["speed.py", "--graph", "--case", "hinas"], io.StringIO()
try:
    with contextlib.redirect_stderr(told):
        speed.main()
except SystemExit as stop:
    result = [stop.code, told.getvalue().splitlines()[-1]]
""")
    assert told == [2, "speed.py: error: --graph replays CUDA graphs, and PyTorch sees no GPU"]


def test_a_replay_is_timed_between_two_events(bench):
    """With a stand-in for graphs and events: a forward and a backward pass are captured, once all is compiled."""
    result = bench("""
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
import torch, peers, speed
ran, clock = [], [0.0]

class Event:
    def __init__(self, enable_timing):
        pass
    def record(self):
        self.at = clock[0]
    def elapsed_time(self, other):
        return other.at - self.at

class Graph:
    def replay(self):
        clock[0] += 3.0

@contextmanager
def graph(made):
    before = len(ran)
    yield
    made.recorded = len(ran) - before

def job(case, peer, layout):
    def passed(*given):
        ran.append(peer)
        return torch.zeros(1)
    return SimpleNamespace(forward=passed, backward=passed)

stream = SimpleNamespace(wait_stream=lambda other: None)
torch.cuda.Stream = torch.cuda.current_stream = lambda: stream
torch.cuda.stream, torch.cuda.synchronize = lambda given: nullcontext(), lambda: None
torch.cuda.Event, torch.cuda.CUDAGraph, torch.cuda.graph = Event, Graph, graph
peers.DEVICE, speed.IN_A_ROW, speed.mixed_job = SimpleNamespace(type="cuda"), 4, job
what, makers = speed.makers_of("hinas", ["eager", "compile-graphs", "srnas_fast"], graph=True)
result = [what, sorted({peer for peer, _ in makers}), makers["srnas_fast", "NCHW"]()(), len(ran)]
""")
    what, found, times, ran = result
    assert what.startswith("forward and backward, replayed as a CUDA graph")
    assert found == ["eager", "srnas_fast"]  # the third one is graphs already
    assert times == {"total, ms": 3.0} and ran == 4 * 2


@needs_no_gpu
def test_a_cap_needs_a_gpu(bench):
    result = bench("""
import contextlib, io, sys
import drop_in, memory, overhead, search, speed
result = []
for module, gib in [(memory, "11"), (speed, "11"), (drop_in, "11"), (search, "11"), (overhead, "11"), (memory, "0")]:
    sys.argv, told = ["bench", "--gib", gib], io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            module.main()
    except SystemExit as stop:
        result.append([stop.code, told.getvalue().splitlines()[-1]])
""")
    assert [code for code, _ in result] == [2] * 6
    assert all("--gib 11 caps the memory of a GPU, and PyTorch sees none" in line for _, line in result[:5])
    assert "--gib is 0; give the GiB" in result[5][1]


def test_a_cap_binds_only_a_larger_card_and_the_rows_tell(bench):
    result = bench("""
import argparse
from types import SimpleNamespace
import machine, torch
from machine import cap, prepare
torch.backends.cudnn.allow_tf32, shares, devices = True, [], []
torch.set_float32_matmul_precision("high")
machine.where = lambda: {"device": "card", "backend": "ours"}
torch.cuda.is_available = lambda: True
torch.cuda.set_per_process_memory_fraction = shares.append
for size in (44, 8):
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(total_memory=size * 2**30)
    devices.append(prepare(argparse.ArgumentParser(), 11))
devices.append(prepare(argparse.ArgumentParser(), None))
result = [shares, devices, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
""")
    shares, devices, *tf32 = result
    assert shares == [0.25]
    assert [place["device"] for place in devices] == ["card (11 GiB of it)", "card", "card"]
    assert tf32 == [False, False]


@needs_script
def test_the_machine_is_written_down(bench, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.12\necho 570.12\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    refused, written = bench(f"""
import os, sys
from pathlib import Path
from types import SimpleNamespace
import machine, torch
out = Path({str(tmp_path / "out")!r})
os.environ["PATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PATH"]
card = SimpleNamespace(name="Card X", total_memory=24 * 2**30, major=8, minor=6)
torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, lambda: card.name
torch.cuda.get_device_properties = lambda index: card
torch.cuda.get_device_capability, torch.version.cuda = lambda: (card.major, card.minor), "13.0"
machine.where = lambda: {{"srnas_fast": "1.2", "backend": "triton", "commit": "abc1234", "time": "noon"}}
sys.argv, result = ["machine.py", "--out", str(out)], []
for architectures in (["sm_90"], ["sm_80", "sm_90"]):
    torch.cuda.get_arch_list = lambda: architectures
    try:
        machine.main()
        result.append(json.loads((out / "machine.json").read_text()))
    except SystemExit as stop:
        result.append(str(stop))
""")
    assert re.match(r"no GPU to measure: Card X .*8\.6.*: this torch holds code for sm_90 only; install", refused)
    asked = {"device": "Card X", "memory": "24.0 GiB", "compute capability": "8.6", "driver": "570.12"}
    asked |= {"CUDA of torch": "13.0", "torch": torch.__version__, "srnas_fast": "1.2, triton backend"}
    assert asked.items() <= written.items() and {"triton", "commit"} <= written.keys()


def test_the_rows_tell_the_backend_that_computes(bench, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    assert bench("import rows; result = rows.where()['backend']") == "reference"


@needs_no_gpu
def test_the_rows_tell_triton_where_it_serves(bench, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    assert bench("import rows; result = rows.where()['backend']") == "triton"


def test_the_rows_tell_who_serves_mixed_operations_and_primitives_of_a_gpu(bench):
    assert bench("""
from types import SimpleNamespace
import rows
image = SimpleNamespace(is_cuda=True)
rows.torch = SimpleNamespace(empty=lambda *size, device: image, cuda=SimpleNamespace(is_available=lambda: True))
rows.triton_kernel, rows.compiled_kernel = lambda name, image: print, lambda name, image: None
result = []
for served in (True, False):
    rows.gpu = SimpleNamespace(takes=lambda image: served)
    result.append(rows.backend())
""") == ["cuda+triton", "triton"]


def test_the_commit_can_be_read_without_git(bench, tmp_path):
    commits = ["0123456789abcdef", "fedcba9876543210", "00112233445566"]
    branch = "ref: refs/heads/main"
    for name, head in {"loose": branch, "packed": branch, "detached": commits[2]}.items():
        (tmp_path / name / "refs" / "heads").mkdir(parents=True)
        (tmp_path / name / "HEAD").write_text(f"{head}\n")
    (tmp_path / "loose" / "refs" / "heads" / "main").write_text(f"{commits[0]}\n")
    (tmp_path / "packed" / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{commits[2]} refs/heads/not/main\n{commits[1]} refs/heads/main\n"
    )
    found = bench(f"""
import os
from pathlib import Path
import rows
folder = Path({str(tmp_path)!r})
result = [rows.written_commit(folder / name) for name in ("loose", "packed", "detached", "none")]
os.environ["PATH"] = str(folder)
result.append(rows.commit())
""")
    assert found[:4] == ["0123456?", "fedcba9?", "0011223?", "unknown"]
    assert re.fullmatch(r"[0-9a-f]{7}\?|unknown", found[4])


def test_the_allocator_of_a_gpu_is_asked_for_the_same_figures(bench):
    result = bench(f"""
{STAND_IN}
from dataclasses import replace
from cases import MIXED
from memory import allocated, allocated_on_gpu, live
from peers import mixed_job
result = []
for name in ("hinas", "dlsr"):
    job = mixed_job(replace(MIXED[name], shape=(2, MIXED[name].shape[1], 24, 24)), "eager", "NCHW")
    job.backward(job.forward())
    with card:
        before = torch.ones(1000)  # what was there is no part of it
        found = allocated_on_gpu(job)
    result.append([found, allocated(job), live(job)])
""")
    for (held, peak), (held_too, most), (_, forward, backward) in result:
        assert held == pytest.approx(held_too, abs=1024)
        assert held < peak == max(forward, backward) <= most + 1024


def test_the_peak_of_a_step_on_a_gpu_is_that_of_the_first_ones(bench):
    result = bench(f"""
{STAND_IN}
from memory import step_on_gpu
sizes = iter([100, 5000, 200])  # floats; the graph is captured in the second one
with card:
    parameters = torch.ones(10_000)
    result = step_on_gpu(lambda: torch.empty(next(sizes)))
    result |= {{"left": len(list(sizes))}}
""")
    assert result["peak, MiB"] == 20_000 / 2**20 and result["resident, MiB"] == 60_000 / 2**20
    assert result["left"] == 0


@pytest.mark.slow
def test_rows_as_they_are_measured_on_a_gpu(bench):
    mixed, steps, times, done = bench(f"""
{STAND_IN}
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
import cases, memory, speed
memory.DEVICE = speed.DEVICE = SimpleNamespace(type="cuda")
space = cases.find_space("hinas-denoise")
small = partial(space.supernet_config, filters=2, layers=2, nodes=2)
cases.find_space = lambda name: replace(space, supernet_config=small, data=partial(space.data, patch=16))
step, peers = cases.Step("hinas-denoise", 2), ["eager", "srnas_fast"]
with card:
    mixed = memory.mixed_rows(replace(memory.MIXED["hinas"], shape=(4, 4, 12, 12)), peers)
    steps = memory.step_rows(step, peers)
done = []
speed.search_step = lambda *given: (None, lambda: done.append(1), None)
times = speed.search(step, "eager", "NCHW")()
result = [mixed, steps, times, len(done)]
""")
    for rows in (mixed, steps):
        assert not any(row.get("note") for row in rows) and len(rows) == 4
        for row in rows:
            assert row["resident, MiB"] > row["peak, MiB"] >= row["held, MiB"]
        assert rows[0]["peak, MiB"] > 1.5 * rows[2]["peak, MiB"]
    assert all(row["error"] < 1e-4 and "resident, U" in row for row in mixed)
    assert list(times) == ["total, ms"] and done == 2  # one that the clock leaves out, one that it counts


def test_what_a_peer_that_failed_held_is_freed_before_the_next(bench):
    alive = bench("""
import gc, weakref
import torch, memory
gc.disable()
kept = []

def fails():
    large = torch.ones(1000)
    kept.append(weakref.ref(large))
    circle = [large]
    circle.append(circle)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nMore")

rows = [memory.attempt(fails), memory.attempt(lambda: {"alive": kept[0]() is not None})]
result = rows
""")
    assert alive == [{"note": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."}, {"alive": False}]


def test_a_turn_on_a_gpu_is_a_row_of_passes_between_events(bench):
    result = bench("""
from types import SimpleNamespace
import torch, peers, speed
clock, synchronised = [0.0], []

class Event:
    def __init__(self, enable_timing):
        assert enable_timing
    def record(self):
        self.at = clock[0]
    def elapsed_time(self, other):
        assert synchronised
        return other.at - self.at

def takes(milliseconds):
    def work(*given):
        clock[0] += milliseconds
        return torch.zeros(1)
    return work

torch.cuda.Event, torch.cuda.synchronize = Event, lambda: synchronised.append(True)
peers.DEVICE, speed.IN_A_ROW = SimpleNamespace(type="cuda"), 4
job = SimpleNamespace(forward=takes(2.0), backward=takes(5.0))
result = [speed.passes(job), clock[0], len(synchronised)]
""")
    assert result == [{"forward, ms": 2.0, "backward, ms": 5.0}, 4 * 7.0, 1]


def test_only_one_peer_has_cuda_graphs(bench):
    """Also where Bilevel has them by default."""
    given = bench("""
import inspect
import cases, peers
setting = inspect.signature(cases.Bilevel).parameters.get("cuda_graphs")
ways = {peer: way for peer, (_, way) in peers.STEP_PEERS.items()}
ways["search_step"] = inspect.signature(cases.search_step).parameters["way"].default
result = {
    name: getattr(way, "keywords", {}).get("cuda_graphs", setting.default if setting else False)
    for name, way in ways.items()
}
""")
    assert [peer for peer, graphs in given.items() if graphs] == ["srnas_fast-graphs"]


def test_cuda_graphs_are_a_peer_of_search_steps_on_gpus(bench):
    result = bench("""
from types import SimpleNamespace
import peers
from cases import STEPS
from srnas_fast.search import Bilevel
op, way = peers.STEP_PEERS["srnas_fast-graphs"]
result = [[op is peers.MixedOp, way.func is Bilevel, way.keywords]]
for kind in ("cpu", "cuda"):
    peers.DEVICE = SimpleNamespace(type=kind)
    result.append([peer for peer, _ in peers.step_peers(STEPS["hinas-search"], peers.ALL_PEERS)[::2]])
""")
    made, on_cpu, on_gpu = result
    assert made == [True, True, {"cuda_graphs": True}]
    assert set(on_gpu) - set(on_cpu) == {"srnas_fast-graphs"}
    assert "srnas_fast" in on_cpu and not {"compile", "two graphs", "srnas_fast-two-graphs"} & set(on_gpu)


def test_a_search_as_long_as_its_seconds(bench, tmp_path):
    result = bench(f"""
import sys
from pathlib import Path
import search
out = Path({str(tmp_path)!r})
(out / search.RUN).mkdir()
(out / search.RUN / "log.jsonl").write_text("of a run before")
sys.argv = ["search.py", "--out", str(out), "--preset", "smoke", "--seconds", "0.1"]
search.main()
result = [search.figures(out / search.RUN), search.steps_of_epoch(60, 0.1), search.steps_of_epoch(1, 100)]
""")
    figures, many, one = result
    assert (many, one) == (120, 1)
    assert figures["steps"] % 4 == 0  # of five epochs one warms up
    assert figures["images/s"] == pytest.approx(2 * 2 / figures["step, s"])  # smoke has batches of two
    assert figures["peak, MiB"] > 0
    assert (tmp_path / "hinas-denoise" / "genotype.json").exists()


@pytest.mark.gpu
@needs_gpu
def test_a_tiny_case_on_the_gpu(bench):
    result = bench("""
from dataclasses import replace
import memory, peers, speed
case = replace(memory.MIXED["hinas"], shape=(4, 4, 24, 24))
peers.PEERS = {name: peers.PEERS[name] for name in ("eager", "srnas_fast")}
memory_rows = memory.mixed_rows(case, list(peers.PEERS))
speed.MIXED["hinas"] = case
result = [memory_rows, speed.measure(speed.makers_of("hinas", list(peers.PEERS))[1], 2)]
""")
    memory, speed = result
    assert not any(row.get("note") for row in memory + speed)
    for row in memory:
        assert row["error"] < 1e-4 and row["peak, U"] > 0
        assert row["resident, MiB"] >= row["peak, MiB"]
    assert memory[0]["held, U"] > 10 * memory[2]["held, U"]
    assert all(row["total, ms"] > 0 for row in speed)
