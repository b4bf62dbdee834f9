"""Charts of the newest rows of each case, peer and layout: python bench/plot.py

Reads memory.csv, speed.csv and sparsity.csv in bench/results, or in --out, writes a .png beside each that is there.
Only what was measured on one device with one number of threads stands in one picture: those of the file's last row.
"""

import argparse
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cases import DEPTHWISE, MIXED, STEPS
from peers import ALL_PEERS, LAYOUTS
from rows import RESULTS, Read, read
from sparsity import ITSELF
from srnas_fast.report.colours import COLOURS

MEMORY = "Memory: held between forward and backward (strong) / peak (pale)"
SPEED = "Time: forward (pale) and backward (strong)"
OURS, OTHERS, PALE = COLOURS[1], COLOURS[6], 0.35
SPARSE_PANELS = [  # case, what goes up, what the axis says
    ("sparsity/dlsr", "of faster eager", "step, of eager's with all alive"),
    ("sparsity/hinas-search", "of faster eager", "step, of eager's with all alive"),
    ("sparsity/hinas-search", "held, MiB", "held between forward and backward, MiB"),
    ("simplex", "step, ms", "forward and backward of the map, ms"),
]


def comparable(rows: Read) -> Read:
    """Those measured where the last one was."""
    return [row for row in rows if all(row[name] == rows[-1][name] for name in ("device", "threads"))]


def newest(rows: Read) -> dict[str, Read]:
    """By case, the last measured row of each peer and layout, without those that failed."""
    cases, peers, layouts = [*MIXED, *DEPTHWISE, *STEPS], ALL_PEERS, list(LAYOUTS)
    last = {
        (cases.index(row["case"]), peers.index(row["peer"]), layouts.index(row["layout"])): row
        for row in comparable(rows)
        if row["case"] in cases  # of a path there is nothing held to draw
    }
    found: dict[str, Read] = {}
    for _, row in sorted(last.items()):
        if row.get("peak, MiB") or row.get("total, ms"):
            found.setdefault(row["case"], []).append(row)
    return found


def text(value: float) -> str:
    """Three digits or more, no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def memory_panel(axes: Axes, rows: Read) -> str:
    """Peak, and over it what is held between the passes; in sizes of the input, of a search step in MiB."""
    unit = "U" if rows[0]["held, U"] else "MiB"
    for place, row in enumerate(rows):
        colour = OURS if row["peer"].startswith("srnas_fast") else OTHERS
        peak, held = float(row[f"peak, {unit}"]), float(row[f"held, {unit}"])
        axes.barh(place, peak, color=colour, alpha=PALE)
        axes.barh(place, held, color=colour, height=0.4)
        axes.text(peak, place, f" {text(held)} / {text(peak)}", va="center", fontsize=7)
    return "sizes of the input" if unit == "U" else "MiB"


def speed_panel(axes: Axes, rows: Read) -> str:
    """The forward pass and, on its right, the backward pass; where only the whole was timed, the whole."""
    for place, row in enumerate(rows):
        colour = OURS if row["peer"].startswith("srnas_fast") else OTHERS
        forward, total = float(row["forward, ms"] or 0), float(row["total, ms"])
        axes.barh(place, forward, color=colour, alpha=PALE)
        axes.barh(place, total - forward, left=forward, color=colour)
        axes.text(total, place, f" {text(total)}", va="center", fontsize=7)
    return "ms"


def draw(file: Path, title: str, panel) -> None:
    """One panel per case, under a title that says what the bars are and where they were measured."""
    cases = newest(read(file))
    if not cases:
        print(f"{file} holds no figures")
        return
    lines = -(-len(cases) // 2)
    figure = Figure((11, 0.8 + 2.9 * lines), layout="constrained")
    grid = iter(figure.subplots(lines, 2, squeeze=False).flat)
    for case, rows in cases.items():
        axes = next(grid)
        unit = panel(axes, rows)
        axes.set_title(case, fontsize=10)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_yticks(range(len(rows)), [f"{row['peer']}, {row['layout']}" for row in rows], fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid:  # a place that no case took
        axes.set_axis_off()
    save(figure, file, title, [row for rows in cases.values() for row in rows])


def draw_sparsity(file: Path) -> None:
    """Lines over the share of the candidates that are alive, one for each peer and layout."""
    rows = comparable(read(file))
    figure = Figure((11, 8), layout="constrained")
    for axes, (case, what, label) in zip(figure.subplots(2, 2).flat, SPARSE_PANELS, strict=True):
        newest = {(row["peer"], row["layout"], row["weights"]): row for row in rows if row["case"] == case}
        for peer, layout in dict.fromkeys(key[:2] for key in newest):
            line = [row for key, row in newest.items() if key[:2] == (peer, layout)]
            points = sorted((float(row["live"]), float(row[what])) for row in line)
            colour = OURS if peer.startswith("srnas_fast") else OTHERS
            style = "--" if layout == "channels_last" or peer == ITSELF else "-"
            axes.plot(
                *zip(*points, strict=True), style, color=colour, marker=".", label=f"{peer}, {layout}".rstrip(", ")
            )
        axes.set_title(case, fontsize=10)
        axes.set_xlabel("share of the candidates that are alive", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, 1.02)
        if case == "simplex":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0)
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, file, "What is left to compute and to hold where few candidates are alive", rows)


def save(figure: Figure, file: Path, title: str, rows: Read) -> None:
    """Beside the figures' file, under a title that says where they were measured."""
    [device], [threads], versions, commits = (
        sorted({row[name] for row in rows}) for name in ("device", "threads", "torch", "commit")
    )
    machine = f"{device}, {threads} threads, torch {', '.join(versions)}, commit {', '.join(commits)}"
    figure.suptitle(f"{title}\n{machine}", fontsize=11)
    figure.savefig(file.with_suffix(".png"), dpi=90)
    print(file.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; default: bench/results")
    folder = parser.parse_args().out
    charts = {
        "memory.csv": partial(draw, title=MEMORY, panel=memory_panel),
        "speed.csv": partial(draw, title=SPEED, panel=speed_panel),
        "sparsity.csv": draw_sparsity,
    }
    there = [name for name in charts if (folder / name).exists()]
    if not there:
        raise SystemExit(f"{folder} holds none of {', '.join(charts)}; measure first")
    for name in there:
        charts[name](folder / name)


if __name__ == "__main__":
    main()
