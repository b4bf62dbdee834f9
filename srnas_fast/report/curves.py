"""Numbers over the steps of a run, as curves side by side."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from srnas_fast.errors import InputError
from srnas_fast.files import replacing
from srnas_fast.report.colours import COLOURS

SMOOTH = 30  # points that a curve is drawn of beside its own: more are means of neighbours


def draw_curves(
    steps: Sequence[int],
    panels: Mapping[str, tuple[str, Mapping[str, Sequence[float]]]],
    file: str | os.PathLike,
    counted: str = "step",
) -> None:
    """A PNG of panels with curves; a curve of many points is pale, with the means of its neighbours over it.

    Args:
        steps: T step numbers, growing.
        panels: title -> (quantity with its unit, label -> T numbers).
        file: the picture to write; replaced whole.
        counted: what the numbers on the horizontal axis count.

    Raises:
        InputError: there is no panel or no step, or a curve of another length.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "reward.png"
    >>> draw_curves([0, 1], {"reward": ("reward", {"reward": [5.0, 6.0]})}, file)
    >>> file.stat().st_size > 5_000
    True
    """
    if not panels or not len(steps):
        raise InputError(f"curves of {len(panels)} panels at {len(steps)} steps; give at least one of each")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    for position, (title, (quantity, curves)) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, columns, position + 1)
        for k, (label, values) in enumerate(curves.items()):
            if len(values) != len(steps):
                raise InputError(f"{label} in {title} has {len(values)} numbers for {len(steps)} steps; give one each")
            _draw(axis, np.asarray(steps), np.asarray(values, dtype=np.float64), label, COLOURS[k % len(COLOURS)])
        finish(axis, title, quantity, len(curves), counted)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw(axis: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    window = len(steps) // SMOOTH
    if window < 2:
        axis.plot(steps, values, color=colour, label=label, linewidth=1.8, marker="o" if len(steps) == 1 else None)
        return
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    kernel = np.ones(window) / window
    middle = slice((window - 1) // 2, (window - 1) // 2 + len(steps) - window + 1)
    axis.plot(steps[middle], np.convolve(values, kernel, "valid"), color=colour, label=label, linewidth=1.8)


def finish(axis: Axes, title: str, quantity: str, labels: int, counted: str = "step") -> None:
    """Title, axes and legend of a panel of curves over steps."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(counted, fontsize=9)
    axis.set_ylabel(quantity, fontsize=9)
    # Not from 0: in a short search all that happens, happens within a narrow band.
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    # Below the panel: there it hides no curve.
    axis.legend(fontsize=8, frameon=False, ncols=min(4, labels), loc="upper center", bbox_to_anchor=(0.5, -0.15))
