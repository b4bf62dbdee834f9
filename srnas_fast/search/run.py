"""The folder of a search or a training: what was asked, what happened, and where it can go on."""

import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from srnas_fast.errors import InputError
from srnas_fast.files import replacing

FORMAT = "srnas_fast run 1"


@dataclass
class RunConfig:
    """Where a run leaves its results and on what it computes.

    Args:
        out: the run's folder, made if it does not exist.
        resume: go on from the folder's last checkpoint, with the folder's own settings.
        seed: of initial weights, patches and noise; the same seed on the same machine gives the same result.
        device: auto, cpu or cuda (auto: a GPU if there is one).
        precision: of the computation: 32-true, bf16-mixed or 16-mixed.
        threads: CPU threads; 0 leaves PyTorch's own choice.
        checkpoint_every: steps between two checkpoints; a killed run repeats at most so many.
    """

    out: str = "runs/run"
    resume: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    threads: int = 0
    checkpoint_every: int = 50

    def __post_init__(self):
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device is {self.device!r}; give auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, but PyTorch sees no GPU here; `srnas-fast doctor` says why")
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise InputError(f"precision is {self.precision!r}; give 32-true, bf16-mixed or 16-mixed")
        for name, least in (("threads", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give a whole number from {least} up")

    def fabric(self) -> Fabric:
        """Lightning Fabric on that device, with the random state of the seed."""
        if self.threads:
            torch.set_num_threads(self.threads)
        fabric = Fabric(accelerator=self.device, devices=1, precision=self.precision)
        fabric.seed_everything(self.seed, verbose=False)
        return fabric


def run_settings(run: RunConfig) -> dict[str, Any]:
    """What of it belongs into ``config.yaml``: everything but whether this process resumes."""
    return {name: value for name, value in asdict(run).items() if name != "resume"}


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout that is faster on a device: on CPUs the depthwise convolutions' backward gains most by channels_last,
    while float32 on older GPUs loses by it."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


class RunFolder:
    """``config.yaml``, ``log.jsonl``, TensorBoard events and ``checkpoint.pt`` of one run.

    Args:
        run: its folder and whether to go on with what is there.
        kind: "search" or "train"; a run resumes only what it is itself.
        config: all settings, as plain data; what the command line takes of it is written to ``config.yaml``.

    Raises:
        InputError: the folder holds a run and ``resume`` was not asked for, or nothing to resume; a checkpoint that
            is damaged or another program's.
        OSError: the folder cannot be written.
    """

    def __init__(self, run: RunConfig, kind: str, config: dict[str, Any]):
        self.path, self.kind, self.config = Path(run.out), kind, config
        self.checkpoint: dict[str, Any] | None = None
        if run.resume:
            self.checkpoint = read_checkpoint(self.path, kind)
        elif (self.path / "checkpoint.pt").exists():
            raise InputError(f"{self.path} holds a run already; go on with it by --resume, or choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.path / "config.yaml") as temporary:
            settings = {name: value for name, value in config.items() if name not in ("space", "genotype")}
            heading = (
                f"# {kind} {config['space']}; to use it again: srnas-fast {kind} ... --config {self.path}/config.yaml"
            )
            temporary.write_text(heading + "\n" + yaml.safe_dump(settings, sort_keys=False))
        self._log = open(self.path / "log.jsonl", "ab")  # noqa: SIM115 open as long as the run
        # What was logged after the checkpoint will be done, and logged, again.
        self._log.truncate(self.checkpoint["log_bytes"] if self.checkpoint else 0)
        self._events = SummaryWriter(str(self.path), purge_step=self.step + 1)

    @property
    def step(self) -> int:
        """Steps done when the checkpoint was written."""
        return self.checkpoint["step"] if self.checkpoint else 0

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the log and its numbers to TensorBoard."""
        self._log.write(json.dumps(record).encode() + b"\n")
        self._log.flush()
        for name, value in record.items():
            if isinstance(value, float):
                self._events.add_scalar(name, value, record["step"])

    def records(self) -> list[dict[str, Any]]:
        """Everything logged so far."""
        return [json.loads(line) for line in (self.path / "log.jsonl").read_text().splitlines()]

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write the checkpoint, beside the old one and then over it."""
        header = {"format": FORMAT, "kind": self.kind, "config": self.config, "log_bytes": self._log.tell()}
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state_all()
        with replacing(self.path / "checkpoint.pt") as temporary:
            fabric.save(temporary, header | {"random": random} | state)

    def restore(self, parts: dict[str, Any]) -> None:
        """Load the checkpoint's states into modules and optimisers, and the random states.

        Raises:
            InputError: a state does not fit, since the checkpoint belongs to other settings.
        """
        for name, part in parts.items():
            try:
                part.load_state_dict(self.checkpoint[name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"{self.path}/checkpoint.pt does not fit these settings ({name}: {reason}); resume with the "
                    "settings of its config.yaml"
                ) from None
        torch.set_rng_state(self.checkpoint["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in self.checkpoint["random"]:
            torch.cuda.set_rng_state_all(self.checkpoint["random"]["cuda"])

    def close(self) -> None:
        self._events.close()
        self._log.close()


def read_checkpoint(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The checkpoint of a run folder, or of the file itself.

    Raises:
        InputError: there is none; it is damaged; it is not ours or of another kind of run.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        path = path / "checkpoint.pt"
    if not path.exists():
        raise InputError(f"no checkpoint at {path}; give the folder of a run that has saved one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, IndexError):
        raise InputError(f"{path} is damaged or no PyTorch checkpoint; give the checkpoint.pt of a run") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of srnas_fast ({FORMAT!r}); give the checkpoint.pt of a run")
    if state["kind"] != kind:
        raise InputError(f"{path} belongs to a {state['kind']} run; a {kind} run was asked for")
    return state


def load_weights(module: nn.Module, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Load a state dict from ``path`` into a module; raises InputError where they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit its network: {str(error).splitlines()[0]}") from None
