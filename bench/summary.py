"""What was measured on a GPU, beside what was hoped for: python bench/summary.py --out FOLDER

Reads what the pieces of bench/gpu.sh left in the folder (machine.json, tests.xml, memory.csv, speed.csv, the search's
run), and writes summary.md there. Of each case the last process that measured it on this GPU counts. A hope is held,
not held, or not measured, by these numbers alone.
"""

import argparse
import json
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cases import HEADLINE, MIXED, STEPS
from machine import RUN
from peers import ALL_PEERS, CUDA_GRAPHS, TWO_GRAPHS
from rows import RESULTS, Read, read
from search import figures

LIMIT = 11 * 1024.0  # MiB: a GTX 1080 Ti
AS_A_GRAPH = {"hinas": 0.7, "dlsr": 0.9, "pc-darts": 0.5, "dlsr-32": 3.0}  # ms, on an H100
HELD, NOT_HELD, NOT_MEASURED = "held", "not held", "not measured"
COMPARE = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "=": operator.eq}
NOTES = f"""\
Times are in ms, of each peer in its faster memory layout, all in alternation in one process; memory is in MiB, in the
layout with the lower peak. TF32 is off for every peer (torch's own default has it on in convolutions), but in the
search, which is as users have it. "Taken" is what torch's allocator took of the GPU at most, here capped where the
device's name says so; the CUDA context, some hundred MiB, is not in it. The limit of a card of 11 GiB is
{LIMIT:,.0f} MiB. Images a second count both batches of a step, that of the weights and that of the architecture, of the
steps that have both."""


@dataclass
class Hope:
    """What was hoped for, and what came of it: None if it was not measured, not a number if it failed; without a target
    it is measured or not."""

    what: str
    found: float | None
    unit: str
    compare: str = ""
    target: float = 0

    @property
    def verdict(self) -> str:
        if self.found is None:
            return NOT_MEASURED
        if not self.compare:
            return "measured"
        return HELD if COMPARE[self.compare](self.found, self.target) else NOT_HELD

    def row(self) -> list[str]:
        target = f"{self.compare} {text(self.target)} {self.unit}" if self.compare else "–"
        number = self.found is not None and not math.isnan(self.found)
        return [self.what, target, text(self.found) + (f" {self.unit}" if number else ""), self.verdict]


def text(value: float | None) -> str:
    """Four digits, or all that stand before the point."""
    if value is None or math.isnan(value):
        return "–" if value is None else "failed"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def last_run(rows: Read, case: str) -> Read:
    """The rows of a case that were measured by the last process that measured it."""
    of_case = [row for row in rows if row["case"] == case]
    return [row for row in of_case if row["time"] == of_case[-1]["time"]]


def least(rows: Read, peer: str, name: str) -> dict[str, str] | None:
    """The row of the peer's layout with the lower figure; None if it has none."""
    able = [row for row in rows if row["peer"] == peer and row[name]]
    return min(able, key=lambda row: float(row[name]), default=None)


def ratio(rows: Read, peer: str, ours: str) -> float | None:
    """How many times faster ours is than a peer, both in their faster layout; not a number where ours failed, None
    where one of them was not measured."""
    theirs, best = least(rows, peer, "total, ms"), least(rows, ours, "total, ms")
    if theirs and best:
        return float(theirs["total, ms"]) / float(best["total, ms"])
    return math.nan if any(row["peer"] == ours for row in rows) and not best else None


def least_time(rows: Read) -> float | None:
    """Milliseconds of ours in its faster layout; not a number where it failed, None where it was not measured."""
    best = least(rows, "srnas_fast", "total, ms")
    if best:
        return float(best["total, ms"])
    return math.nan if any(row["peer"] == "srnas_fast" for row in rows) else None


def most_taken(memory: Read, cases: Iterable[str], peers: Iterable[str]) -> float | None:
    """The most that one of these peers took of the GPU in any case and layout; not a number where one failed, None
    where one was not measured."""
    taken = []
    for case in cases:
        rows = last_run(memory, case)
        for peer in peers:
            of_peer = [row for row in rows if row["peer"] == peer]
            if not of_peer:
                return None
            taken += [float(row["resident, MiB"] or math.nan) for row in of_peer]
    return math.nan if any(map(math.isnan, taken)) else max(taken)


def hopes(memory: Read, speed: Read, tests: dict[str, int], search: dict[str, float]) -> list[Hope]:
    """All of them, in the order of the pieces."""
    broken = tests["failures"] + tests["errors"] if tests else None
    found = [
        Hope("`pytest -m gpu`: passed", tests.get("passed"), "tests", ">", 0),
        Hope("`pytest -m gpu`: failed", broken, "tests", "=", 0),
    ]
    for case in HEADLINE:
        rows, what = last_run(speed, case), f"{case}, forward and backward: faster than"
        found.append(Hope(f"{what} eager in its faster layout", ratio(rows, "eager", "srnas_fast"), "times", "≥", 2))
        found.append(Hope(f"{what} torch.compile", ratio(rows, "compile", "srnas_fast"), "times", ">", 1))
    for case, most in AS_A_GRAPH.items():
        found.append(
            Hope(f"{case}, as a CUDA graph on an H100", least_time(last_run(speed, f"{case}/graph")), "ms", "≤", most)
        )
    rows = last_run(speed, "hinas-search")
    what = "HiNAS's search step with CUDA graphs: faster than the plain supernet"
    found.append(Hope(what, ratio(rows, "eager", CUDA_GRAPHS), "times", "≥", 4))
    single = most_taken(memory, MIXED, ["srnas_fast"])
    steps = most_taken(memory, STEPS, ["srnas_fast", CUDA_GRAPHS])
    both = most_taken(memory, ["dlsr-search/64"], [TWO_GRAPHS[1]])
    found += [
        Hope("Every mixed operation: taken of the GPU", single, "MiB", "≤", LIMIT),
        Hope("Every search step, with and without CUDA graphs: taken", steps, "MiB", "≤", LIMIT),
        Hope("DLSR's search step, batch 64, the autograd graphs of both batches alive: taken", both, "MiB", "≤", LIMIT),
        Hope("HiNAS's search at the paper's settings", search.get("images/s"), "images/s"),
        Hope("HiNAS's search: peak of tensors", search.get("peak, MiB"), "MiB", "≤", LIMIT),
    ]
    return found


def tests_of(file: Path) -> dict[str, int]:
    """Passed, failed, broken and skipped tests, of pytest's --junitxml; nothing where there is none."""
    if not file.exists():
        return {}
    try:
        suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    except ElementTree.ParseError:  # cut off
        return {}
    counts = {name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")}
    return counts | {"passed": 2 * counts["tests"] - sum(counts.values())}


def table(columns: list[str], rows: Iterable[list[str]], numbers: bool = False) -> str:
    """As Markdown; numbers, which are all but the first column, to the right."""
    lines = [columns, ["---", *["---:" if numbers else "---"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_peer(rows: Read, key: str, shown: list[str]) -> str:
    """A table of the cases down and the peers across; "failed" for who could not."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    runs = {case: last_run(rows, case) for case in cases}
    peers = [peer for peer in ALL_PEERS if any(row["peer"] == peer for run in runs.values() for row in run)]

    def cell(case: str, peer: str) -> str:
        best = least(runs[case], peer, key)
        if best:
            return " / ".join(text(float(best[name])) if best[name] else "–" for name in shown)
        return "failed" if any(row["peer"] == peer for row in runs[case]) else "–"

    return table(["case", *peers], [[case, *(cell(case, peer) for peer in peers)] for case in cases], numbers=True)


def failures(rows: Read) -> str:
    """Who could not, and why."""
    runs = [row for case in dict.fromkeys(row["case"] for row in rows) for row in last_run(rows, case)]
    return "\n".join(f"- {row['case']}, {row['peer']}, {row['layout']}: {row['note']}" for row in runs if row["note"])


def rows_of(file: Path, gpu: str) -> Read:
    """The rows that were measured on a GPU of that name, capped or not; none where there is no file."""
    return [row for row in read(file) if row["device"].startswith(gpu)] if file.exists() else []


def sections(folder: Path) -> dict[str, str]:
    """The summary by its headings."""
    if not (folder / "machine.json").exists():
        raise SystemExit(f"{folder} holds no machine.json, so nothing that bench/gpu.sh measured; run it first")
    machine = json.loads((folder / "machine.json").read_text())
    memory, speed = (rows_of(folder / name, machine["device"]) for name in ("memory.csv", "speed.csv"))
    tests, run = tests_of(folder / "tests.xml"), folder / RUN
    try:
        search = figures(run)
    except (OSError, ValueError):  # not there, or cut off
        search = {}
    for what, name in {"measured as": "device", "commits measured": "commit"}.items():
        machine[what] = ", ".join(dict.fromkeys(row[name] for row in memory + speed)) or "–"
    found = {
        "Machine": table(["what", "value"], [[name, str(value)] for name, value in machine.items()]),
        "What was hoped for": table(
            ["what", "target", "found", "verdict"], [hope.row() for hope in hopes(memory, speed, tests, search)]
        ),
        "How": NOTES,
        "Tests": ", ".join(f"{count:,} {name}" for name, count in tests.items()),
        "Time, ms": speed and by_peer(speed, "total, ms", ["total, ms"]),
        "Memory, MiB: held / peak / taken": memory
        and by_peer(memory, "peak, MiB", ["held, MiB", "peak, MiB", "resident, MiB"]),
        "Could not": failures(speed + memory),
        "Search": search and table([*search], [[text(value) for value in search.values()]]),
        "Pictures": "\n".join(f"![{file.stem}]({file.name})" for file in sorted(folder.glob("*.png"))),
    }
    return {heading: body for heading, body in found.items() if body}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; default: bench/results")
    folder = parser.parse_args().out
    written = "\n\n".join(f"## {heading}\n\n{body}" for heading, body in sections(folder).items())
    (folder / "summary.md").write_text(f"# srnas_fast on a GPU\n\n{written}\n")
    print(f"{written}\n\n{folder / 'summary.md'}")


if __name__ == "__main__":
    main()
