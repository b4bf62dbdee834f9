"""The loop over the steps of a run: shows it, logs it, saves it, and stops when asked to."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_fabric import Fabric

from srnas_fast.errors import InputError
from srnas_fast.report import Progress
from srnas_fast.search.run import RunFolder


def run_steps(
    folder: RunFolder,
    fabric: Fabric,
    title: str,
    total: int,
    checkpoint_every: int,
    do_step: Callable[[int], tuple[dict[str, Any], str]],
    state: Callable[[], dict[str, Any]],
    resume_command: str,
) -> None:
    """Do the steps from the folder's checkpoint to ``total``.

    Args:
        do_step: takes the step's number (from 0) and returns a record for the log, with "epoch" and losses (keys
            that begin with "loss"), and a line of text for the live view.
        state: what the checkpoint has to hold beside the step.
        resume_command: shown when the user stops the run.

    Raises:
        InputError: a loss is no longer finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and a checkpoint written before.
    """

    def save(done: int) -> None:
        folder.save(fabric, {"step": done} | state())

    with _stop_requests() as stop, Progress(title, total, folder.step) as progress:
        for step in range(folder.step, total):
            started = time.perf_counter()
            record, note = do_step(step)
            losses = {name: value for name, value in record.items() if name.startswith("loss")}
            for name, value in losses.items():
                if not math.isfinite(value):
                    raise InputError(
                        f"{name.replace('_', ' ')} is {value} at step {step + 1}; the run diverged: lower the learning "
                        f"rates and start again, or look at {folder.path}/log.jsonl"
                    )
            memory = progress.memory()
            folder.log(
                {"step": step + 1, **record, "seconds": time.perf_counter() - started}
                | {f"memory_{name}": float(value) for name, value in memory.items()}
            )
            progress.update(step + 1, record["epoch"], losses, note)
            if stop.is_set():
                save(step + 1)
                raise KeyboardInterrupt(f"stopped and saved after step {step + 1}; go on with: {resume_command}")
            if (step + 1) % checkpoint_every == 0 or step + 1 == total:
                save(step + 1)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event set by the first Ctrl-C or SIGTERM; the second one acts as it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can listen
        yield stop
        return

    def listen(number, frame):
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, listen) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
