"""The benches on shapes that take no time. They run in processes of their own, since bench/ is no package."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.slow
def test_the_cases_are_those_published(bench):
    result = bench("""
import torch
from cases import MIXED, chosen
sizes = {name: [sum(p.numel() for p in op.parameters()) for op in case.candidates(case.shape[1])]
         for name, case in MIXED.items()}
result = [sizes, chosen(None, ["dlsr", "dlsr-32"]), chosen(["dlsr-32"], ["dlsr", "dlsr-32"]),
          chosen(["multi-depthwise"], ["dlsr", "multi-depthwise/7x7"]),
          chosen(["dlsr-search"], ["dlsr", "dlsr-search/8", "dlsr-search/64"]), torch.cuda.is_available()]
""")
    sizes, on_its_own, asked_for, group, steps, gpu = result
    assert sizes["dlsr"] == sizes["dlsr-32"] == [2304, 20736, 57600, 112896, 5472, 7008, 9312, 2736, 3504]
    assert sizes["hinas"] == [9 * 144, 2 * (9 + 12) * 12, 2 * (25 + 12) * 12, 9 * 144, 25 * 144, 0, 0]
    assert sizes["pc-darts"] == [0, 0, 0, 0, 2 * (9 + 16) * 16, 2 * (25 + 16) * 16, (9 + 16) * 16, (25 + 16) * 16]
    assert "dlsr" in on_its_own
    assert asked_for == ["dlsr-32"]
    assert group == ["multi-depthwise/7x7"]
    assert steps == ["dlsr-search/8"] or gpu


@pytest.mark.slow
def test_what_eager_keeps_is_what_was_published_and_both_trackers_see_it(bench):
    result = bench("""
from dataclasses import replace
from cases import MIXED
from memory import allocated, live
from peers import mixed_job
result = {}
for name in ("hinas", "hinas-wide", "dlsr", "pc-darts"):
    job = mixed_job(replace(MIXED[name], shape=(2, MIXED[name].shape[1], 24, 24)), "eager", "channels_last")
    job.backward(job.forward())
    result[name] = [job.x.nbytes, live(job), allocated(job)]
""")
    for name, multiple in {"hinas": 26, "hinas-wide": 26, "dlsr": 25, "pc-darts": 29}.items():
        unit, (held, forward, backward), (held_too, peak) = result[name]
        assert held / unit == pytest.approx(multiple, abs=0.05)
        assert held_too == pytest.approx(held, abs=1024)
        assert held <= forward and max(forward, backward) <= peak + 1024 < 2 * held


@pytest.mark.slow
def test_selective_checkpointing_keeps_what_convolutions_return_and_has_the_same_gradients(bench):
    result = bench("""
from dataclasses import replace
import torch
from cases import MIXED
from memory import error, live
from peers import mixed_job
result = {}
for name in ("hinas", "dlsr", "pc-darts-partial-reduce"):
    small, found = replace(MIXED[name], shape=(2, MIXED[name].shape[1], 12, 12)), {}
    jobs = {peer: mixed_job(small, peer, "NCHW", torch.float64) for peer in ("eager", "checkpoint", "selective")}
    exact = jobs["eager"].backward(jobs["eager"].forward())
    for peer, job in jobs.items():
        found[peer] = [error([job.backward(job.forward())], [exact]), live(job)[0] / job.x.nbytes]
    result[name] = found
""")
    for found in result.values():
        assert found["selective"][0] < 1e-12
        assert found["checkpoint"][1] < found["selective"][1] < found["eager"][1]
    for name, convolutions in {"hinas": 11, "dlsr": 11}.items():  # each returns as much as x
        more = result[name]["selective"][1] - result[name]["checkpoint"][1]
        assert more == pytest.approx(convolutions, abs=0.05)


@pytest.mark.slow
def test_memory_rows_and_a_peer_that_fails(bench):
    result = bench("""
from dataclasses import replace
import memory, peers

class Wrong(peers.PlainMixedOp):
    def forward(self, x, weights):
        return super().forward(x, 1.5 * weights)

class Broken(peers.PlainMixedOp):
    def forward(self, x, weights):
        raise RuntimeError("out of memory\\nand more")

peers.PEERS.update(wrong=Wrong, broken=Broken)
memory.resident = lambda *arguments: {"resident, U": 1.0}  # has a test of its own
tiny = replace(memory.MIXED["hinas"], shape=(4, 4, 12, 12))
result = memory.mixed_rows(tiny, ["eager", "broken"]) + memory.mixed_rows(tiny, ["srnas_fast"])
right, wrong = (peers.mixed_job(tiny, peer, "NCHW") for peer in ("eager", "wrong"))
result.append(memory.error(memory.gradients_of(wrong), memory.gradients_of(right)))
""")
    *rows, wrong = result
    assert [(row["peer"], row["layout"]) for row in rows] == [
        (peer, layout) for peer in ("eager", "broken", "srnas_fast") for layout in ("NCHW", "channels_last")
    ]
    assert [row["note"] for row in rows[2:4]] == 2 * ["RuntimeError: out of memory"]
    for row in rows[:2] + rows[4:]:
        assert "note" not in row
        assert 0 < row["error"] < 1e-4
        assert row["held, U"] < 27 and row["peak, U"] >= row["held, U"]
    assert rows[0]["fixed, MiB"] < 0.1 * rows[0]["held, MiB"]
    assert rows[4]["held, MiB"] - rows[4]["fixed, MiB"] < 0.1 * 4 * 4 * 12 * 12 * 4 / 2**20
    assert wrong == pytest.approx(0.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's high-water mark is Linux's")
def test_resident_memory_grows_by_what_a_peer_needs(bench):
    result = bench("""
from dataclasses import replace
from cases import MIXED
from memory import resident
from peers import mixed_job
case = replace(MIXED["pc-darts"], shape=(16, 16, 64, 64))
result = {peer: resident(case, peer, "channels_last", 4 << 20) for peer in ("eager", "checkpoint")}
""")
    assert 29 < result["eager"]["resident, U"] < 60
    assert result["checkpoint"]["resident, U"] < 0.8 * result["eager"]["resident, U"]


def test_speed_alternates_compares_and_survives_a_failure(bench):
    result = bench("""
from speed import DEPTHWISE, MIXED, measure, makers_of
import speed
from dataclasses import replace
order = []

def maker(key, times):
    times = iter(times)
    def work():
        order.append(key)
        return {"forward, ms": 1.0, "backward, ms": float(next(times))}
    return lambda: work

def fails():
    raise ValueError("no such thing")

rows = measure({("eager", "NCHW"): maker("a", [9, 9, 3, 5, 4]), ("eager", "channels_last"): maker("b", [9, 9, 1, 1, 1]),
                ("srnas_fast", "NCHW"): maker("c", [9, 9, 0, 0, 0]), ("compile", "NCHW"): fails,
                ("checkpoint", "NCHW"): maker("d", [])}, 3)
MIXED["dlsr"] = replace(MIXED["dlsr"], shape=(1, 4, 9, 9))
DEPTHWISE["multi-depthwise/7x7"] = replace(DEPTHWISE["multi-depthwise/7x7"], shape=(1, 4, 9, 9))
real = [measure(makers_of(case, ["eager", "srnas_fast"])[1], 2) for case in ("dlsr", "multi-depthwise/7x7")]
result = [order, rows, real]
""")
    order, rows, real = result
    assert "".join(order) == "abcd" + "abc" * 4
    assert [row.get("total, ms") for row in rows] == [5, 2, 1, None, None]
    assert [row.get("of faster eager") for row in rows[:3]] == [2.5, 1, 0.5]
    assert [row.get("of eager NCHW") for row in rows[:3]] == [1, 0.4, 0.2]
    assert rows[0]["backward, ms"] == 4 and rows[0]["p20, ms"] == pytest.approx(4.4)
    assert rows[3]["note"] == "ValueError: no such thing" and rows[4]["note"].startswith("StopIteration")
    for case in real:
        assert [row["note"] for row in case] == 4 * [None]
        assert all(row["total, ms"] > 0 for row in case)


@pytest.mark.slow
def test_sparse_steps_beside_full_ones(bench):
    result = bench("""
from dataclasses import replace
from torch.utils._python_dispatch import TorchDispatchMode
import cases, sparsity
from srnas_fast.mixed import program

class Clock(TorchDispatchMode):  # a millisecond for each operator, however busy the machine is
    time = 0
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        Clock.time += 1
        return function(*arguments, **(options or {}))

cases.MIXED["dlsr"] = replace(cases.MIXED["dlsr"], shape=(1, 2, 5, 6))
sparsity.MOST_SETS, sparsity.now = 2, lambda: Clock.time
program.enabled = False  # it is one operator, however many candidates are alive
with Clock():
    what, rows = sparsity.rows_of("sparsity/dlsr", ["srnas_fast", "compile", "eager"], 1)
result = [what, rows, sparsity.supports(9)]
""")
    what, rows, supports = result
    assert what == "forward and backward, 1 rounds"
    assert {size: len(sets) for size, sets in supports.items()} == {"1": 9, "4": 126} | dict.fromkeys("235678", 2)
    assert all(sum(alive) == int(size) and len(alive) == 9 for size, sets in supports.items() for alive in sets)
    assert len({tuple(alive) for alive in supports["4"]}) == 126
    keys = [(peer, layout) for peer in ("srnas_fast", "eager") for layout in ("NCHW", "channels_last")]
    assert [(row["peer"], row["layout"]) for row in rows] == [key for key in keys for _ in range(9)]
    assert [row["weights"] for row in rows] == [f"{size} of 9" for size in range(1, 10)] * 4
    assert all(0 < row["of full"] < 1.2 and row["of faster eager"] > 0 for row in rows)
    assert [row["of full"] for row in rows[8::9]] == 4 * [1]
    for ours in (rows[:9], rows[9:18]):
        assert ours[0]["of full"] < ours[-2]["of full"]  # the overhead, too, is that of the live ones
    assert min(rows[26]["of faster eager"], rows[35]["of faster eager"]) == 1


@pytest.mark.slow
def test_the_plain_way_of_a_mixed_level_step_does_the_same_with_both_graphs_alive(bench):
    result = bench("""
from dataclasses import replace
from functools import partial
import torch, cases, peers, memory, speed
space = cases.find_space("dlsr-x2")
small = partial(space.supernet_config, width=4, cells=3)
of_one_level = peers.step_peers(cases.STEPS["hinas-search"], [*peers.TWO_GRAPHS, "compile"])
cases.find_space = lambda name: replace(space, supernet_config=small, data=partial(space.data, patch=40))
step = cases.Step("dlsr-x2", 2)
moved = {}
peers.DEVICE = torch.device("cpu")  # without CUDA graphs
for peer, name in peers.step_peers(step, peers.ALL_PEERS):
    (op, way), layout, seen = peers.STEP_PEERS[peer], peers.LAYOUTS[name], []
    supernet, work, _ = cases.search_step(step, op, layout, way)
    supernet.cells[0].register_forward_hook(lambda cell, x, y: seen.append(y.is_contiguous(memory_format=layout)))
    work()
    moved[peer + " " + name] = [supernet.alpha.grad.tolist(), seen]
rows = memory.step_rows(step, ["two graphs", "eager", "srnas_fast-two-graphs", "srnas_fast"])
keys = peers.step_peers(step, ["two graphs", "eager"])
times = speed.measure({key: partial(speed.search, step, *key) for key in keys}, 1)
result = [moved, rows, times, of_one_level]
""")
    moved, rows, times, of_one_level = result
    first, *others = [np.array(gradient) for gradient, _ in moved.values()]
    assert len(others) == 13 and np.abs(first).max() > 0.01
    assert all(np.abs(other - first).max() < 1e-4 * np.abs(first).max() for other in others)
    assert all(len(seen) == 3 and all(seen) for _, seen in moved.values())  # the layout asked for
    peaks = {row["peer"]: row["peak, MiB"] for row in rows if row["layout"] == "NCHW"}
    assert peaks["two graphs"] > 1.7 * peaks["eager"] > 3 * peaks["srnas_fast"] > 0
    assert peaks["eager"] > peaks["srnas_fast-two-graphs"] > 1.2 * peaks["srnas_fast"]
    assert [row["peer"] for row in times] == ["two graphs"] * 2 + ["eager"] * 2 and not of_one_level
    assert all(row["total, ms"] > 0 for row in times)


@pytest.mark.slow
def test_sparse_search_steps(bench):
    result = bench("""
from dataclasses import replace
from functools import partial
import cases, sparsity
space = cases.find_space("hinas-denoise")
small = partial(space.supernet_config, filters=2, layers=2, nodes=2)
cases.find_space = lambda name: replace(space, supernet_config=small, data=partial(space.data, patch=16))
sparsity.BATCH, sparsity.RADII = 1, (0.0, 1.0)
result = sparsity.rows_of("sparsity/hinas-search", ["eager", "srnas_fast"], 1)[1]
""")
    assert [(row["peer"], row["weights"]) for row in result] == [
        (peer, weights)
        for peer in ("eager", "srnas_fast")
        for weights in ("softmax", "sparsestmax, radius 0.0", "sparsestmax, radius 1.0")
    ]
    for full, sparse, single in (result[:3], result[3:]):
        assert full["live"] == full["of full"] == 1 > sparse["live"] > single["live"] > 1 / 7
        assert full["held, MiB"] > sparse["held, MiB"] > single["held, MiB"] > 0
        assert min(row["step, ms"] for row in (full, sparse, single)) > 0
    assert result[0]["of faster eager"] == 1
    assert [row["live"] for row in result[:3]] == [row["live"] for row in result[3:]]
    assert result[3]["held, MiB"] < 0.7 * result[0]["held, MiB"]


def test_the_map_in_one_call_is_faster_than_row_by_row(bench):
    result = bench("""
import torch, sparsity
from srnas_fast.simplex import sparsestmax
logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).double()
errors = [(sparsity.published(row, radius) - sparsestmax(row, radius)).abs().max().item()
          for row in logits for radius in (0.0, 0.4, 0.8, 1.0)]
result = [len(errors), max(errors), sparsity.rows_of("simplex", ["eager", "srnas_fast"], 2)[1]]
""")
    count, error, rows = result
    assert count == 80 and error < 1e-9
    assert [row["peer"] for row in rows[::6]] == ["eager", "srnas_fast, row by row", "srnas_fast"]
    assert [row["live"] for row in rows[:6]] == [row["live"] for row in rows[12:]]
    for loop, rowwise, one in zip(rows[:6], rows[6:12], rows[12:], strict=True):
        assert loop["of faster eager"] == 1 and one["of faster eager"] < 0.5
        assert 3 * one["step, ms"] < rowwise["step, ms"]


def test_rows_are_appended_read_and_drawn(bench, tmp_path):
    shutil.copytree(BENCH / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    result = bench(f"""
from pathlib import Path
import plot, rows, memory, speed, sparsity, sys
results = Path({str(tmp_path / "results")!r})
place = rows.where()
figures = {{name: 1.23456789 for name in memory.FIGURES}}
eager, ours = {{"peer": "eager", "layout": "NCHW"}}, {{"peer": "srnas_fast", "layout": "NCHW"}}
rows.report("hinas", "tiny", [eager | figures, ours | {{"note": "failed"}}], memory.FIGURES, place,
            results / "memory.csv")
rows.report("hinas", "tiny", [eager | {{"total, ms": 3.0}}], speed.FIGURES, place, results / "speed.csv")
sys.argv = ["speed.py", "--out", str(results), "--case", "simplex", "--rounds", "1"]
speed.main()
line = {{"weights": "4 of 9", "live": 4 / 9, "step, ms": 1.0, "of faster eager": 0.5, "held, MiB": 2.0}}
for case in ("sparsity/dlsr", "sparsity/hinas-search"):
    rows.report(case, "tiny", [eager | line], sparsity.FIGURES, place, results / "sparsity.csv")
sys.argv = ["plot.py", "--out", str(results)]
plot.main()
try:
    rows.append(results / "speed.csv", ["other"], [])
except SystemExit as refused:
    result = [str(refused), list(place)]
""")
    refused, place = result
    assert "other columns" in refused
    assert place == ["device", "backend", "threads", "torch", "srnas_fast", "commit", "time"]
    with open(tmp_path / "results" / "memory.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-2]["peak, U"] == "1.23457" and rows[-1]["note"] == "failed" and rows[-1]["peak, U"] == ""
    with open(tmp_path / "results" / "sparsity.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows[-20:]] == 18 * ["simplex"] + ["sparsity/dlsr", "sparsity/hinas-search"]
    assert rows[-1]["weights"] == "4 of 9" and rows[-1]["p20, ms"] == ""
    for name in ("memory", "speed", "sparsity"):
        picture = tmp_path / "results" / f"{name}.png"
        assert 10_000 < picture.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_the_compiled_peers_differ_and_leave_the_budget_as_it_was(bench):
    result = bench("""
from dataclasses import replace
import torch._functorch.config as config
from torch import nn
from cases import Mixed
from memory import allocated, error
from peers import mixed_job

def candidates(channels):
    return [nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid(), nn.Tanh(), nn.GELU()), nn.Sigmoid()]

case, before = Mixed(candidates, (2, 4, 16, 16)), config.activation_memory_budget
eager = mixed_job(case, "eager", "NCHW")
exact = eager.backward(eager.forward())
result = {}
for peer in ("compile", "compile-budget"):
    job = mixed_job(case, peer, "NCHW")
    result[peer] = [error([job.backward(job.forward())], [exact]), allocated(job)[0] / job.x.nbytes]
assert config.activation_memory_budget == before
""")
    (error, held), (error_on_budget, held_on_budget) = result["compile"], result["compile-budget"]
    assert max(error, error_on_budget) < 1e-5
    assert 0 <= held_on_budget < held


def test_supernets_of_others_before_and_after(bench):
    before, after = bench("""
from functools import partial
import drop_in
drop_in.darts.Network = partial(drop_in.darts.Network, channels=8, layers=1, nodes=1)
result = drop_in.rows_of("pc-darts", batch=2, rounds=1)
""")
    assert before["of eager"] == 1 and after["of eager"] > 0 and after["accelerate, s"] > 0
    for what in ("mixed operations, MiB", "held, MiB", "peak, MiB"):
        assert before[what] > after[what] > 0
