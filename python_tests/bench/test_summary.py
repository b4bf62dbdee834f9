"""The verdicts of bench/summary.py on made-up figures: no card measured them."""

import csv
import json

import pytest

PLACE = {"device": "Card X (11 GiB of it)", "backend": "triton", "commit": "abc1234", "time": "12:00"}
GRAPH = {"eager": 2.0, "compile": 1.5, "srnas_fast": 0.5}
GOOD = {"eager": 8.0, "compile": 5.0, "srnas_fast": 4.0, "srnas_fast-graphs": 2.0}


def write(file, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def speed_rows(case, times, **place):
    """A layout that is slower than the given times, and one that has them; None is a failure."""
    return [
        {"case": case, "peer": peer, "layout": layout, "note": "" if time else "RuntimeError: no", **PLACE, **place}
        | {"total, ms": time and factor * time}
        for peer, time in times.items()
        for layout, factor in {"NCHW": 1.5, "channels_last": 1}.items()
    ]


def memory_row(case, peer, taken, layout="NCHW", **more):
    figures = {"held, MiB": 1.0, "peak, MiB": 2.0, "resident, MiB": taken} if taken else {"resident, MiB": None}
    return {"case": case, "peer": peer, "layout": layout, "note": "", **PLACE, **figures, **more}


MIXED = ["hinas", "hinas-wide", "dlsr", "dlsr-32", "pc-darts", "pc-darts-partial", "pc-darts-partial-reduce"]
STEPS = ["hinas-search", "dlsr-search/8", "dlsr-search/64", "hinas-sr-search"]
MEMORY = [memory_row(case, "srnas_fast", 300) for case in MIXED + STEPS]
MEMORY += [memory_row(case, "srnas_fast-graphs", 900) for case in STEPS]
MEMORY += [memory_row("dlsr-search/64", "srnas_fast-two-graphs", 2000)]


@pytest.fixture
def verdicts(bench, tmp_path):
    """A function: the summary of a folder, as its text and as the rows of what was hoped for."""
    (tmp_path / "machine.json").write_text(json.dumps({"device": "Card X", "driver": "123.4"}))

    def summed():
        written = bench(f"""
import sys
import summary
sys.argv = ["summary.py", "--out", {str(tmp_path)!r}]
summary.main()
result = open({str(tmp_path / "summary.md")!r}).read()
""")
        lines = written.partition("## What was hoped for")[2].partition("\n## ")[0].strip().splitlines()[2:]
        return written, [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    return summed


def test_all_hopes_held(verdicts, tmp_path):
    speed = [row for case in ("hinas", "dlsr", "pc-darts", "hinas-search") for row in speed_rows(case, GOOD)]
    speed += [row for case in ("hinas", "dlsr", "pc-darts", "dlsr-32") for row in speed_rows(f"{case}/graph", GRAPH)]
    write(tmp_path / "speed.csv", speed)
    write(tmp_path / "memory.csv", MEMORY)
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="12" failures="0" errors="0" skipped="2"/></testsuites>'
    )
    (tmp_path / "hinas-denoise").mkdir()
    (tmp_path / "hinas-denoise" / "config.yaml").write_text("data: {batch: 6}\n")
    records = [{"seconds": 9.0, "memory_peak": 2**30}]  # of the warm-up
    records += [{"seconds": seconds, "memory_peak": 2**29, "loss_architecture": 0.1} for seconds in (0.1, 0.1, 7.0)]
    (tmp_path / "hinas-denoise" / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    written, rows = verdicts()
    assert [row[-1] for row in rows] == ["held"] * 16 + ["measured", "held"]
    assert [row[2] for row in rows] == [
        "10 tests", "0 tests", *["2 times", "1.25 times"] * 3, *["0.5 ms"] * 4, "4 times", "300 MiB", "900 MiB",
        "2,000 MiB", "120 images/s", "1,024 MiB",
    ]  # fmt: skip
    assert "| driver | 123.4 |" in written and "| measured as | Card X (11 GiB of it) |" in written
    assert "| hinas | 8 | 5 | 4 | 2 |" in written  # each peer in its faster layout
    assert "| dlsr-search/64 | 1 / 2 / 300 | 1 / 2 / 900 | 1 / 2 / 2,000 |" in written
    assert "TF32 is off" in written and "## Could not" not in written


def test_hopes_that_were_not_held(verdicts, tmp_path):
    slow = GOOD | {"srnas_fast": 5.0, "srnas_fast-graphs": 2.1}
    broken = GOOD | {"srnas_fast": None}
    write(
        tmp_path / "speed.csv",
        speed_rows("hinas", GOOD)  # an earlier run counts no more
        + speed_rows("hinas", slow, time="12:01")
        + speed_rows("dlsr", broken)
        + speed_rows("pc-darts", GOOD | {"compile": None})
        + speed_rows("hinas/graph", GRAPH | {"srnas_fast": 0.8})
        + speed_rows("dlsr/graph", GRAPH | {"srnas_fast": None})
        + speed_rows("hinas-search", slow),
    )
    memory = [row for row in MEMORY if row["peer"] != "srnas_fast-two-graphs"]
    memory += [memory_row("hinas", "srnas_fast", 11_265, layout="channels_last")]
    memory += [memory_row("dlsr-search/64", "srnas_fast-two-graphs", None, note="OutOfMemoryError: CUDA")]
    write(tmp_path / "memory.csv", memory)
    (tmp_path / "tests.xml").write_text('<testsuite tests="12" failures="1" errors="1" skipped="0"/>')
    written, rows = verdicts()
    assert [(row[2], row[3]) for row in rows] == [
        ("10 tests", "held"),
        ("2 tests", "not held"),
        ("1.6 times", "not held"),
        ("1 times", "not held"),
        ("failed", "not held"),
        ("failed", "not held"),
        ("2 times", "held"),
        ("–", "not measured"),
        ("0.8 ms", "not held"),
        ("failed", "not held"),
        ("–", "not measured"),
        ("–", "not measured"),
        ("3.81 times", "not held"),
        ("11,265 MiB", "not held"),
        ("900 MiB", "held"),
        ("failed", "not held"),
        ("–", "not measured"),
        ("–", "not measured"),
    ]
    assert "- dlsr-search/64, srnas_fast-two-graphs, NCHW: OutOfMemoryError: CUDA" in written
    assert "- pc-darts, compile, channels_last: RuntimeError: no" in written
    assert "| dlsr | 8 | 5 | failed | 2 |" in written


def test_what_is_missing_was_not_measured(verdicts, tmp_path):
    _, rows = verdicts()
    assert {row[-1] for row in rows} == {"not measured"} and len(rows) == 18
    write(tmp_path / "speed.csv", speed_rows("hinas", GOOD, device="Another card"))  # nor is what another card measured
    write(tmp_path / "memory.csv", MEMORY[1:])
    written, rows = verdicts()
    assert [row[0] for row in rows if row[-1] != "not measured"] == [
        "Every search step, with and without CUDA graphs: taken",
        "DLSR's search step, batch 64, the autograd graphs of both batches alive: taken",
    ]
    assert "## Time" not in written


def test_a_folder_that_no_gpu_left_is_refused(bench, tmp_path):
    refused = bench(f"""
import sys
import plot, summary
sys.argv, result = ["bench", "--out", {str(tmp_path)!r}], []
for module in (summary, plot):
    try:
        module.main()
    except SystemExit as stop:
        result.append(str(stop))
""")
    assert "no machine.json" in refused[0] and "none of memory.csv, speed.csv, sparsity.csv" in refused[1]
    assert not list(tmp_path.iterdir())
