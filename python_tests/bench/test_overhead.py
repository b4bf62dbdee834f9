"""bench/overhead.py, and how benches compare with what was recorded."""

import csv

import pytest

PLACE = {"device": "Processor X", "threads": "1", "time": "2026-02-01T00:00:00Z"}


def test_a_turn_is_a_row_of_passes_beside_eager_and_the_floor(bench):
    result = bench("""
from types import SimpleNamespace
import overhead
clock, order = [0.0], []

def job(case, peer):
    if peer == "compile":
        raise ValueError("no such thing")
    def forward():
        clock[0] += {"eager": 8.0, "srnas_fast": 2.0, "empty": 0.5}[peer] + 100 * (peer not in order[-3:])  # cold
        order.append(peer)
    return SimpleNamespace(forward=forward, backward=lambda y: None)

overhead.job, overhead.now = job, lambda: clock[0]
result = [*overhead.rows_of("hinas", ["empty", "srnas_fast", "compile", "eager"], 1), order]
result += [overhead.rows_of("hinas", ["srnas_fast"], 1)[1]]
""")
    what, rows, order, alone = result
    assert what == "forward and backward, x 1x8x4x4, 20 passes a turn, 1 rounds"
    assert order[: 3 * 69] == 3 * (23 * ["eager"] + 23 * ["srnas_fast"] + 23 * ["empty"])  # two turns warm up
    eager, failed, ours, empty = rows
    assert [row["peer"] for row in rows] == ["eager", "compile", "srnas_fast", "empty"]
    assert failed == {"peer": "compile", "layout": "NCHW", "note": "ValueError: no such thing"}
    for row, microseconds in ((eager, 8000), (ours, 2000), (empty, 500)):
        assert row["pass, us"] == row["p20, us"] == row["p80, us"] == microseconds
        assert row["of eager"] == microseconds / 8000 and row["of empty"] == microseconds / 500
        assert row["layout"] == "NCHW" and row["note"] is None
    assert alone[0]["pass, us"] == 2000 and alone[0]["of eager"] is alone[0]["of empty"] is None


def test_all_peers_of_a_small_mixed_operation_compute_the_same(bench):
    errors, floors = bench("""
import overhead
from memory import error
errors, floors = {}, []
for case, peers in {"pc-darts-partial": ["eager", "selective", "srnas_fast"], "accelerated": overhead.FOREIGN}.items():
    jobs = {peer: overhead.job(case, peer) for peer in peers}
    found = {peer: job.backward(job.forward()) for peer, job in jobs.items()}
    errors |= {f"{case} {peer}": error([found[peer]], [found["eager"]]) for peer in peers}
    floor = overhead.job(case, "empty")
    y = floor.forward()
    kept = [len(y.grad_fn.saved_tensors), len(jobs["eager"].inputs)]
    floors.append([y.equal(floor.x), *(dx.equal(floor.dy) for dx in floor.backward(y)), *kept])
overhead.LINKS, overhead.CHAINED["chain"] = 3, (2, 4, 8, 8)
jobs = {peer: overhead.chain_job("chain", peer) for peer in ("eager", "srnas_fast")}
found = {peer: job.backward(job.forward()) for peer, job in jobs.items()}
errors["chain"] = error([found["srnas_fast"]], [found["eager"]])
result = [errors, floors]
""")
    assert len(errors) == 7 and max(errors.values()) < 1e-4
    assert floors == 2 * [[True, True, 2 + 12, 2 + 12]]


def test_a_module_that_accelerate_left_alone_is_no_peer(bench):
    refused = bench("""
import torch, overhead

class Gated(overhead.Foreign):
    def forward(self, x, weights):
        return super().forward(x, weights.softmax(0))

overhead.Foreign = Gated
try:
    overhead.accelerated(torch.nn.ModuleList([torch.nn.Identity(), torch.nn.ReLU()]))
except RuntimeError as refusal:
    result = str(refusal)
""")
    assert refused


@pytest.mark.slow
def test_the_chain_tells_how_often_its_graph_is_broken(bench):
    rows = bench("""
from functools import partial
import torch, overhead

class Broken(overhead.PlainMixedOp):
    def forward(self, x, weights):
        torch._dynamo.graph_break()
        return super().forward(x, weights)

overhead.LINKS, overhead.CHAINED["chain"], overhead.CHAINS["srnas_fast-compile"] = 2, (2, 4, 8, 8), Broken
torch.compile = partial(torch.compile, backend="eager")
result = overhead.rows_of("chain", ["eager", "compile", "srnas_fast-compile"], 1)[1]
""")
    assert [row["peer"] for row in rows] == ["eager", "compile", "srnas_fast-compile"]
    assert [row["note"] for row in rows[:2]] == [None, "0 graph breaks"]
    breaks, told = rows[2]["note"].split(maxsplit=1)
    assert int(breaks) > 0 and told == "graph breaks"
    for row in rows:
        assert row["pass, us"] > 0
        assert row["of eager"] == pytest.approx(row["pass, us"] / rows[0]["pass, us"])


@pytest.fixture
def compared(bench):
    """A function: the table of a comparison by the figure "ms", and what was printed."""

    def run(measured, known):
        return bench(f"""
import contextlib, io, rows
tables = []
rows.show_table = lambda title, columns, lines: tables.append([columns, lines])
with contextlib.redirect_stdout(io.StringIO()) as told:
    rows.compare({measured!r}, {known!r}, "ms")
result = [tables, told.getvalue()]
""")

    return run


def recorded(case, peer, milliseconds, layout="NCHW", **place):
    return {"case": case, "peer": peer, "layout": layout, "ms": str(milliseconds)} | PLACE | place


def measured(case, peer, milliseconds, layout="NCHW"):
    place = PLACE | {"threads": 1, "time": "2026-03-01T00:00:00Z"}
    return {"case": case, "peer": peer, "layout": layout, "ms": milliseconds} | place


def test_what_is_slower_by_more_than_5_percent_is_marked(compared):
    known = [
        recorded("a", "eager", 10),
        recorded("a", "ours", 2),
        recorded("a", "other", 2),
        recorded("a", "ours", 2, "channels_last"),
        recorded("a", "ours", 1, time="2026-01-01T00:00:00Z"),  # older, though it stands below
        recorded("a", "ours", "", time="2026-02-02T00:00:00Z"),  # failed
        recorded("a", "ours", 1, device="Processor Y"),
        recorded("a", "ours", 1, threads="2"),
        recorded("b", "eager", 1, time="2026-01-01T00:00:00Z"),  # of another run than the next one
        recorded("b", "ours", 100),
        recorded("b", "other", 100),
    ]
    now = [
        measured("a", "eager", 20.0),  # a slow day
        measured("a", "ours", 4.18),
        measured("a", "other", 4.22),
        measured("a", "ours", 2.12, "channels_last"),
        measured("a", "new", 100.0),
        measured("b", "eager", 1.0),
        measured("b", "ours", 104.0),
        measured("b", "other", 106.0),
        measured("b", "ours", 1.0, "channels_last"),
        {name: value for name, value in measured("a", "failed", None).items() if value is not None},
    ]
    [[columns, rows]], told = compared(now, known)
    assert not told
    assert columns[3:] == ["then", "now", "now / then", "of eager then", "of eager now", "slower"]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("a", "eager", "NCHW", ""),
        ("a", "ours", "NCHW", ""),
        ("a", "other", "NCHW", "!"),
        ("a", "ours", "channels_last", "!"),
        ("b", "eager", "NCHW", ""),
        ("b", "ours", "NCHW", ""),
        ("b", "other", "NCHW", "!"),
    ]
    assert rows[1][3:8] == pytest.approx([2, 4.18, 2.09, 0.2, 0.209])
    assert rows[3][3:8] == [2, 2.12, pytest.approx(1.06), None, None]
    assert rows[5][3:8] == [100, 104, 1.04, None, 104]


def test_where_nothing_recorded_fits_one_line_says_so(compared):
    for known in ([], [recorded("a", "ours", 1, threads="2"), recorded("b", "ours", 1)]):
        tables, told = compared([measured("a", "ours", 1.0)], known)
        assert not tables and told.startswith("nothing recorded is of this processor") and told.count("\n") == 1
    assert compared([measured("a", "ours", 1.0)], None) == [[], ""]


def test_a_bench_compares_with_what_was_there_before_it(bench, tmp_path):
    told = bench(f"""
import contextlib, io, sys
from pathlib import Path
import overhead, rows
rows.RESULTS, result = Path({str(tmp_path)!r}), []
asked = ["--case", "hinas", "--peer", "eager", "--rounds", "1", "--out", {str(tmp_path)!r}]
for reference in (["--reference"], ["--reference"], [], ["--reference", "elsewhere.csv"]):
    sys.argv = ["overhead.py", *asked, *reference]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            overhead.main()
        result.append(printed.getvalue())
    except SystemExit as stop:
        result.append(str(stop))
""")
    first, second, unasked, missing = told
    assert "nothing recorded is of this processor" in first
    assert "Beside what was recorded" in second and "now / then" in second
    assert "recorded" not in unasked and "hinas: forward and backward" in unasked
    assert missing.startswith("there is no elsewhere.csv")
    with open(tmp_path / "overhead.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["peer"], row["of eager"], row["threads"]) for row in rows] == 3 * [
        ("hinas", "eager", "1", "1")
    ]
