"""Architecture weights over the time of a search, as curves."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from srnas_fast.errors import InputError
from srnas_fast.files import replacing
from srnas_fast.report.colours import COLOURS
from srnas_fast.report.curves import finish


def normalised_entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of weights along the last axis over its largest value, log K: 1 undecided, 0 decided.

    Args:
        weights: (..., K) weights that sum to 1 along the last axis; exact zeros add nothing (0 log 0 = 0).

    Returns:
        (...) numbers from 0 to 1; 0 where K = 1.

    >>> normalised_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape[-1] == 1:
        return np.zeros(weights.shape[:-1])
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = -(weights * logs).sum(-1) / math.log(weights.shape[-1])
    return entropy.clip(0, 1) + 0.0  # rounding, and no negative zero


def draw_weights(
    steps: Sequence[int], groups: Mapping[str, tuple[Sequence[str], np.ndarray]], file: str | os.PathLike
) -> None:
    """A PNG of weights over time: per group mean and range over its rows, then the entropy of all groups.

    Args:
        steps: T step numbers, growing.
        groups: title -> (K labels, weights of shape (T, rows, K)), e.g. one group per layer, a row per edge.
            Rows may hold exact zeros.
        file: the picture to write; replaced whole.

    Raises:
        InputError: there is no group or no step, or a shape fits neither ``steps`` nor the labels.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "weights.png"
    >>> draw_weights([0, 10], {"layer 1": (["conv", "skip"], np.full((2, 3, 2), 0.5))}, file)
    >>> file.stat().st_size > 10_000
    True
    """
    if not groups or not len(steps):
        raise InputError(f"weights of {len(groups)} groups at {len(steps)} steps; give at least one of each")
    for title, (labels, weights) in groups.items():
        if np.ndim(weights) != 3 or np.shape(weights)[0] != len(steps) or np.shape(weights)[2] != len(labels):
            raise InputError(
                f"group {title}: weights of shape {np.shape(weights)} for {len(steps)} steps and"
                f" {len(labels)} labels; give (steps, rows, labels)"
            )

    panels = len(groups) + 1
    columns = min(panels, 2 if panels in (2, 4) else 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, position + 1) for position in range(panels)]
    marker = "o" if len(steps) == 1 else None  # a single point has no line

    for axis, (title, (labels, weights)) in zip(axes, groups.items(), strict=False):
        weights = np.asarray(weights, dtype=np.float64)
        for k, label in enumerate(labels):
            colour = COLOURS[k % len(COLOURS)]
            values = weights[:, :, k]
            axis.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.09, linewidth=0)
            axis.plot(steps, values.mean(1), color=colour, label=label, linewidth=1.8, marker=marker)
        count = weights.shape[1]
        finish(axis, f"{title}: mean and range of {count} rows" if count > 1 else title, "weight", len(labels))

    for position, (title, (_, weights)) in enumerate(groups.items()):
        entropy = normalised_entropy(weights).mean(1)
        axes[-1].plot(steps, entropy, color=COLOURS[position % len(COLOURS)], label=title, linewidth=1.8, marker=marker)
    finish(axes[-1], "entropy / log K: 1 undecided, 0 decided", "normalised entropy", len(groups))

    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
