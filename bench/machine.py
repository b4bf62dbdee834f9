"""The machine of a bench: its options, how its GPU is set for a measurement, and what it is.

For a measurement TF32 is off, in convolutions (where torch's own default is on) and in products: every peer computes
the same float32. `--gib 11` caps torch's allocator, which then runs out of memory where a card of 11 GiB would.

python bench/machine.py --out FOLDER writes FOLDER/machine.json: what the GPU is and what computes on it. Where there is
no GPU it says so in one line and exits with status 1.
"""

import argparse
import json
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from rows import RESULTS, Row, where
from srnas_fast.backends.report import card_warning, describe_nvrtc, environment, installed, processor

GiB = 2**30
RUN = "hinas-denoise"  # the folder of bench/search.py's search


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every bench."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; default: bench/results")
    parser.add_argument("--gib", type=float, help="GiB that torch may take of the GPU; default: all")
    return parser


def prepare(parser: argparse.ArgumentParser, gib: float | None) -> Row:
    """Set the machine for a measurement; where it is measured, for the rows."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    capped = cap(parser, gib)
    place = where()
    return place | {"device": f"{place['device']} ({gib:g} GiB of it)"} if capped else place


def cap(parser: argparse.ArgumentParser, gib: float | None) -> bool:
    """Let torch's allocator take no more than that from the GPU; whether that is less than there is."""
    if gib is None:
        return False
    if gib <= 0:
        parser.error(f"--gib is {gib:g}; give the GiB that torch may take of the GPU, such as 11")
    if not torch.cuda.is_available():
        parser.error(f"--gib {gib:g} caps the memory of a GPU, and PyTorch sees none here; leave it out")
    share = gib * GiB / torch.cuda.get_device_properties(0).total_memory
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    return share < 1


def why_not() -> str | None:
    """What keeps the bench from a GPU, in a few words; None if nothing does."""
    if not torch.cuda.is_available():
        return dict(environment()["devices"])["GPU"].removeprefix("none: ")
    return card_warning(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_arch_list())


def facts() -> dict[str, str]:
    """The GPU, and what computes on it."""
    card, place = torch.cuda.get_device_properties(0), where()
    return {
        "device": card.name,
        "memory": f"{card.total_memory / GiB:.1f} GiB",
        "compute capability": f"{card.major}.{card.minor}",
        "driver": driver(),
        "processor": processor(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "cuDNN": str(torch.backends.cudnn.version()),
        "triton": installed("triton"),
        "NVRTC": describe_nvrtc(),
        "srnas_fast": f"{place['srnas_fast']}, {place['backend']} backend",
        "commit": place["commit"],
        "time": place["time"],
    }


def forget(folder: Path, device: str) -> None:
    """Remove what another GPU has left in the folder and does not carry its name: its tests and its search."""
    if device != known_device(folder):
        (folder / "tests.xml").unlink(missing_ok=True)
        shutil.rmtree(folder / RUN, ignore_errors=True)


def known_device(folder: Path) -> str | None:
    """The GPU that the folder's machine.json names."""
    try:
        return json.loads((folder / "machine.json").read_text())["device"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def driver() -> str:
    """The version of the GPU's driver."""
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown: nvidia-smi does not answer"
    return answer.stdout.partition("\n")[0].strip() or "unknown: nvidia-smi does not tell"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"no GPU to measure: {reason}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = facts()
    forget(arguments.out, found["device"])
    (arguments.out / "machine.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
