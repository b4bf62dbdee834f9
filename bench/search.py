"""A HiNAS denoising search at the paper's settings, cut to a few minutes: python bench/search.py --out FOLDER

Supernet, batch and patches are the paper's. What is cut are the steps, to what fits into --seconds, in the paper's
proportions: the first fifth of the epochs warms the weights up, the genotypes of the last two fifths are validated. A
pilot of a few steps, which also compiles what there is to compile, tells what a step takes. TF32 is as torch has it by
default, as in every search. The run, `srnas-fast search` itself, lies in FOLDER/hinas-denoise; one from before is
replaced.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path

import yaml

from machine import RUN, cap, options
from srnas_fast.cli import main as srnas_fast

EPOCHS = 5
PILOT_STEPS = 10  # of an epoch of warm-up, and of one of search


def search(out: Path, preset: str, root: str | None, epochs: int, steps: int) -> None:
    """``srnas-fast search`` of so many epochs, of so many steps each."""
    command = ["search", "hinas-denoise", "--preset", preset, "--out", str(out), "--data.workers", "2"]
    command += ["--data.root", root] if root else []
    schedule = {"epochs": epochs, "warmup_epochs": max(1, epochs // 5), "steps": steps}
    schedule["validate_from"] = 1 + epochs * 3 // 5
    for name, value in schedule.items():
        command += [f"--search.{name}", str(value)]
    if status := srnas_fast(command):
        raise SystemExit(status)


def figures(run: Path) -> dict[str, float]:
    """Of the steps that move architecture and weights, one batch each: how many, the median of their seconds, the
    images of both batches a second; and the peak that the run's log tells."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    both = [record["seconds"] for record in records if "loss_architecture" in record]
    if not both:
        return {}
    batch = yaml.safe_load((run / "config.yaml").read_text())["data"]["batch"]
    seconds = statistics.median(both)
    peak = max(record["memory_peak"] for record in records)
    return {"steps": len(both), "step, s": seconds, "images/s": 2 * batch / seconds, "peak, MiB": peak / 2**20}


def steps_of_epoch(limit: float, seconds: float) -> int:
    """How many steps each of the epochs may have."""
    return max(1, int(limit / seconds / EPOCHS))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for the search after the pilot; default: 30")
    parser.add_argument("--root", help="folder of images; default: the photographs of scikit-image")
    parser.add_argument("--preset", default="paper", help="of the settings; default: paper")
    arguments = parser.parse_args()
    cap(parser, arguments.gib)
    run = arguments.out / RUN
    shutil.rmtree(run, ignore_errors=True)  # first of all: if anything fails now, the old one is not taken for the new
    with tempfile.TemporaryDirectory() as folder:
        pilot = Path(folder) / "pilot"
        search(pilot, arguments.preset, arguments.root, 2, PILOT_STEPS)
        seconds = figures(pilot)["step, s"]
    search(run, arguments.preset, arguments.root, EPOCHS, steps_of_epoch(arguments.seconds, seconds))
    print(", ".join(f"{name} {value:,.4g}" for name, value in figures(run).items()))


if __name__ == "__main__":
    main()
