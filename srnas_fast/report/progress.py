"""The live view of a search or a training."""

import sys
import time
from collections.abc import Mapping

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


class Progress:
    """Shows epoch, step, time left, losses, memory and a note while the block runs.

    On a terminal a view that redraws itself; elsewhere (a log file, a pipe) one plain line at most every 10
    seconds and one at the end. The time left comes from this process's own speed, so a resumed run is not
    credited with the steps of the run before it.

    Args:
        title: what runs, e.g. "search hinas-denoise".
        total: number of steps of the whole run.
        first: number of steps done before this process started (a resumed run).
        console: where to show it; the standard output by default.

    >>> import io
    >>> from rich.console import Console
    >>> out = io.StringIO()
    >>> with Progress("search", total=100, console=Console(file=out, force_terminal=False)) as progress:
    ...     progress.update(step=1, epoch=0, losses={"weights": 0.25}, note="best: skip")
    >>> line = out.getvalue().splitlines()[0]
    >>> line.startswith("search · epoch 0 · step 1/100 · "), line.endswith("best: skip")
    (True, True)
    """

    def __init__(self, title: str, total: int, first: int = 0, console: Console | None = None) -> None:
        self.title = title
        self.total = total
        self.first = first
        self.step = first
        self.epoch = 0
        self.losses: dict[str, float] = {}
        self.note = ""
        self._console = console or Console()
        self._live: Live | None = None
        self._started = self._updated = time.monotonic()
        self._printed = -float("inf")  # when the last plain line went out
        self._shown = first  # the step it told

    def __enter__(self) -> "Progress":
        self._started = self._updated = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._shown != self.step:
            self._print()

    def update(self, step: int, epoch: int, losses: Mapping[str, float], note: str = "") -> None:
        """Show the state after ``step`` steps; cheap enough to be called at every step.

        Args:
            step: steps done, counted over the whole run.
            epoch: the current epoch.
            losses: name -> value; values as Python floats (reading a GPU tensor makes it wait).
            note: a line of free text, e.g. the currently best genotype.
        """
        self.step, self.epoch, self.losses, self.note = step, epoch, dict(losses), note
        self._updated = time.monotonic()
        if self._live is None and self._updated - self._printed >= PLAIN_SECONDS:
            self._print()

    def memory(self) -> dict[str, int]:
        """Bytes ``now`` and at the ``peak``: of tensors on the GPU once it is used, else of the process."""
        if _on_gpu():
            return {"now": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
        return _process_memory()

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; None before the first step of this process."""
        done = self.step - self.first
        return (self._updated - self._started) / done * (self.total - self.step) if done > 0 else None

    def _memory_text(self) -> str:
        memory = self.memory()
        where = "GPU" if _on_gpu() else "process"
        return f"{where} memory {_size(memory['now'])}, peak {_size(memory['peak'])}"

    def _print(self) -> None:
        self._printed, self._shown = self._updated, self.step
        parts = [self.title, f"epoch {self.epoch}", f"step {self.step}/{self.total}", f"{self._left()} left"]
        parts += [f"{name} {value:.4f}" for name, value in self.losses.items()]
        parts += [self._memory_text()] + ([self.note] if self.note else [])
        self._console.print(" · ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        left = self.seconds_left()
        return "–" if left is None else _duration(left)

    def _view(self) -> Group:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(1, self.total), completed=self.step, width=30),
            Text(f"step {self.step}/{self.total}", style="cyan"),
            Text(f"epoch {self.epoch}"),
            Text(f"{self._left()} left", style="green"),
        )
        figures = Text("   ").join(
            [Text.assemble((f"{name} ", "dim"), f"{value:.4f}") for name, value in self.losses.items()]
            + [Text(self._memory_text(), style="dim")]
        )
        return Group(head, figures, *([Text(self.note, style="magenta")] if self.note else []))


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _process_memory() -> dict[str, int]:
    """The resident set of this process, as the system counts it; 0 where the system does not tell."""
    try:
        # Not getrusage on Linux: its peak is inherited from the program that started this one.
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        now, peak = 0, _peak_of_rusage()
    return {"now": now or peak, "peak": max(now, peak)}


def _peak_of_rusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    """At most two units: 2 d 03 h, 1 h 05 min, 4 min 09 s, 7 s."""
    seconds = max(0, round(seconds))
    for size, unit, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller:02d} {below}"
    return f"{seconds} s"
