"""The rows of a bench: where they were measured, as a table on the terminal, as lines of a CSV file."""

import argparse
import csv
import subprocess
import time
from pathlib import Path

import torch

from srnas_fast import __version__
from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.backends.report import processor
from srnas_fast.mixed import gpu
from srnas_fast.report import show_table

RESULTS = Path(__file__).parent / "results"
SLOWER = 1.05  # than recorded, from where on a row is marked
Row = dict[str, str | float | None]
Read = list[dict[str, str]]  # rows as a file has them


def where() -> Row:
    """Device, our backend, threads, versions, commit and time: the end of every row."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "backend": backend(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "srnas_fast": __version__,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def backend() -> str:
    """Which of ours serve float32 images here: the answer of those that mixed operations and primitives ask, too. On a
    GPU "cuda" are programs, "triton" primitives."""
    image = torch.empty(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
    able = {
        "cuda": image.is_cuda and gpu.takes(image),
        "triton": triton_kernel("weighted_sum", image),
        "cpu": compiled_kernel("weighted_sum", image),
    }
    return "+".join(name for name, found in able.items() if found) or "reference"


def commit() -> str:
    """The commit measured: with a + where the tree differs from it, with a ? where no git is there to tell."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        if head := git("rev-parse", "--short", "HEAD"):
            return head + ("+" if git("status", "--porcelain", "--", "..", ":!results") else "")
    except FileNotFoundError:
        pass
    return written_commit(RESULTS.parents[1] / ".git")


def written_commit(folder: Path) -> str:
    """The commit that a .git folder names, read without git."""
    try:
        head = (folder / "HEAD").read_text().strip()
        if reference := head.partition("ref: ")[2]:
            if (loose := folder / reference).exists():
                head = loose.read_text()
            else:
                packed = (folder / "packed-refs").read_text().splitlines()
                [head] = [line for line in packed if line.endswith(f" {reference}")]
    except (OSError, ValueError):
        return "unknown"
    return f"{head[:7]}?"


def report(case: str, what: str, rows: list[Row], figures: list[str], place: Row, file: Path) -> None:
    """Print the rows of one case and append them to the CSV file; what a row lacks is a dash, an empty field."""
    title = (
        f"{case}: {what}; {place['device']}, {place['threads']} threads, torch {place['torch']}, "
        f"srnas_fast {place['srnas_fast']} ({place['backend']} backend), commit {place['commit']}"
    )
    shown = ["peer", "layout", *(name for name in figures if any(row.get(name) is not None for row in rows))]
    if any(row.get("note") for row in rows):
        shown.append("note")
    show_table(title, shown, [[row.get(name) for name in shown] for row in rows])
    columns = ["case", "peer", "layout", *figures, "note", *place]
    append(file, columns, [{"case": case, **row, **place} for row in rows])


def append(file: Path, columns: list[str], rows: list[Row]) -> None:
    """Add rows to a CSV file, six digits a number; the file is made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        with open(file, newline="", encoding="utf-8") as stream:
            there = next(csv.reader(stream), None)
        if there != columns:
            raise SystemExit(f"{file} has other columns than this bench writes; move it away:\n{there}\n{columns}")
    with open(file, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if stream.tell() == 0:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})


def read(file: Path) -> Read:
    """All rows of a CSV file, as text."""
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def add_reference(parser: argparse.ArgumentParser, name: str) -> None:
    """The option --reference of a bench that writes a file of that name."""
    told = f"in the end compare with the rows of FILE, without one with those of bench/results/{name}"
    parser.add_argument("--reference", type=Path, nargs="?", const=RESULTS / name, metavar="FILE", help=told)


def recorded(file: Path | None) -> Read | None:
    """The rows to compare with, None if nobody asked for it; to be read before the bench adds its own to them.

    In bench/results a file may be missing, as long as nothing was recorded.
    """
    if file is None:
        return None
    if not file.exists() and file.parent != RESULTS:
        raise SystemExit(f"there is no {file} to compare with; give a CSV file that this bench wrote")
    return read(file) if file.exists() else []


def compare(measured: list[Row], known: Read | None, time: str) -> None:
    """Print a table of what was measured beside the newest that was recorded of the same processor, number of threads,
    case, peer and layout; nothing if there are no recorded rows to look at, since nobody asked.

    ``time`` is the figure that is compared. A machine is faster on one day than on another, by more than what a change
    of the code costs, and eager, which the code has no part in, with it. So a ! marks what takes a multiple of eager of
    its own run, case and layout that is more than ``SLOWER`` times what it was then: never eager itself. Where one of
    the runs has no eager, the times alone decide.
    """
    if known is None:
        return
    columns = ["case", "peer", "layout", "then", "now", "now / then", "of eager then", "of eager now", "slower"]
    newest = {kind_of(row): row for row in sorted(known, key=lambda row: row["time"]) if row.get(time)}
    rows = []
    for row in measured:
        then = newest.get(kind_of(row))
        if then and row.get(time):
            before, after = float(then[time]), float(row[time])
            eager = of_eager(then, known, time), of_eager(row, measured, time)
            ratio = after / before if None in eager else eager[1] / eager[0]
            mark = "!" if ratio > SLOWER else ""
            rows.append([row["case"], row["peer"], row["layout"], before, after, after / before, *eager, mark])
    if rows:
        show_table(f"Beside what was recorded: {time}; !: more than {SLOWER - 1:.0%} slower", columns, rows)
    else:
        print("nothing recorded is of this processor, number of threads, and one of these cases, peers and layouts")


def kind_of(row: Row) -> tuple:
    """What rows that may be compared have in common."""
    return *(row[name] for name in ("device", "case", "peer", "layout")), str(row["threads"])


def of_eager(row: Row, rows: list[Row] | Read, time: str) -> float | None:
    """A row's time as a multiple of that of eager in the same run, case and layout; None without it."""
    key = kind_of(row | {"peer": "eager"}), row["time"]
    eager = [other[time] for other in rows if (kind_of(other), other["time"]) == key and other.get(time)]
    return float(row[time]) / float(eager[-1]) if eager else None
