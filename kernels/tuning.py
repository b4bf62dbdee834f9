"""Tiles by measurement, for those who ask for it: the fastest of a handful, timed once per card and kept in a file.

Where ``folder`` is None, which is the default, each launcher's first tile holds, the one of its documented rule:
nothing is timed and no file is read, so that results on a card repeat to the bit from run to run.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import TritonError

Tile = dict[str, int]  # the launch options of one candidate: block sizes and num_warps
FILE = "triton_tiles.json"

folder: Path | None = None  # where measured tiles are kept; None: the rules hold


def tuned(kernel: str, tiles: Sequence[Tile], launch: Callable[[Tile], Any], *key: Any) -> Tile:
    """The fastest of the tiles: measured where it is not known yet, and the first one while a CUDA graph is captured.

    Args:
        kernel: its name.
        tiles: candidates, the rule's first; others may be too large for the card.
        launch: runs the kernel with one of them as it will be run, but so that it changes no tensor that is read.
        key: what the choice depends on: values, and tensors by their type, their layout and about their size.
    """
    card = _card() if folder else None
    if not card:
        return tiles[0]
    file = folder / FILE
    name = "; ".join([kernel, *map(_kind, key), card, f"Triton {triton.__version__}"])
    known = _memory(file).get(name)
    if known in tiles:  # what a damaged file or one of another version holds is none of them
        return known
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return tiles[0]
    times = [_milliseconds(lambda tile=tile: launch(tile)) for tile in tiles]
    fastest = tiles[times.index(min(times))]
    if min(times) < math.inf:
        _memory(file)[name] = fastest
        _write(file)
    return fastest


def _card() -> str | None:
    """The GPU in use; None where kernels are interpreted."""
    if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


def _kind(value: Any) -> str:
    """Of a tensor, what decides about speed: its type, which neighbours are near, and its sizes to a power of two."""
    if not isinstance(value, torch.Tensor):
        return str(value)
    near = "channels_last" if value.stride(1) == 1 else "NCHW"
    return f"{value.dtype} {near} {[triton.next_power_of_2(size) for size in value.shape]}"


def _milliseconds(launch: Callable[[], Any]) -> float:
    try:
        return triton.testing.do_bench(launch, warmup=5, rep=20, return_mode="median")
    except (TritonError, RuntimeError):  # more registers, shared memory or scratch than there is, or no code for it
        return math.inf


def _read(file: Path) -> dict[str, Any]:
    try:
        tiles = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # not there, or damaged
        return {}
    return tiles if isinstance(tiles, dict) else {}


_memory = cache(_read)  # the file as it was when first asked for, and what was measured since


def _write(file: Path) -> None:
    """Beside the file and renamed: another process reads the old one or the new one. What it has added meanwhile stays.

    A folder that cannot be written costs the next process its measurements, no more.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}-{os.getpid()}")
        beside.write_text(json.dumps(_read(file) | _memory(file), indent=1), "utf-8")
        beside.replace(file)
