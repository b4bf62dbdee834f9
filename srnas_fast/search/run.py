"""The folder of a search or a training: what was asked, what happened, and where it can go on."""

import io
import json
import os
import socket
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.plugins import TorchCheckpointIO
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from srnas_fast.errors import InputError, require_whole
from srnas_fast.files import replacing

FORMAT = "srnas_fast run 1"
HEADING = "# srnas_fast"  # of config.yaml
INPUTS = ("space", "genotype", "images")  # what of a run's config is no option of its command
# The settings that a resumed run may change: they say where it computes and finds its images, not what.
FREE = (
    *("out", "device", "threads", "cuda_graphs", "checkpoint_every"),
    *("data.root", "data.workers", "data.memory", "data.cache"),
)


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
        cuda_graphs: in a search on a GPU, whether each step's forward and backward pass is captured once as a CUDA
            graph and then replayed, which spares the launches of its kernels; where that cannot be, a line says why.
        checkpoint_every: steps between two checkpoints; a killed run repeats at most so many.
    """

    out: str = "runs/run"
    resume: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    threads: int = 0
    cuda_graphs: bool = True
    checkpoint_every: int = 50

    def __post_init__(self):
        choose_device(self.device)
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise InputError(f"precision is {self.precision!r}; give 32-true, bf16-mixed or 16-mixed")
        if self.precision == "16-mixed" and choose_device(self.device).type == "cpu":
            raise InputError("precision 16-mixed is for GPUs; give bf16-mixed or 32-true on the CPU")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give a whole number from 0 to {2**32 - 1}")
        require_whole(self, "", threads=0, checkpoint_every=1)

    def fabric(self) -> Fabric:
        """Lightning Fabric on that device, with the random state of the seed."""
        if self.threads:
            torch.set_num_threads(self.threads)
        fabric = Fabric(
            accelerator=choose_device(self.device).type, devices=1, precision=self.precision, plugins=[_WholeFile()]
        )
        fabric.seed_everything(self.seed, verbose=False)
        return fabric


def choose_device(device: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no GPU here; `srnas-fast doctor` says why")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def run_settings(run: RunConfig) -> dict[str, Any]:
    """What of it belongs into ``config.yaml``: everything but whether this process resumes."""
    return {name: value for name, value in asdict(run).items() if name != "resume"}


def flat(settings: dict[str, Any], joint: str = ".") -> dict[str, Any]:
    """Nested settings as option names.

    >>> flat({"seed": 1, "data": {"patch": 32}})
    {'seed': 1, 'data.patch': 32}
    """
    result = {}
    for name, value in settings.items():
        nested = flat(value, joint) if isinstance(value, dict) else None
        result |= {name: value} if nested is None else {f"{name}{joint}{key}": v for key, v in nested.items()}
    return result


def to_device(fabric: Fabric, *batch: Tensor) -> list[Tensor]:
    """The tensors of a batch on the device of the run, in the layout that its network has there."""
    return [fabric.to_device(part).contiguous(memory_format=memory_format(fabric.device)) for part in batch]


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
        elif self._holds_other_files():
            raise InputError(f"{self.path} holds a config.yaml or log.jsonl of something else; choose another --out")
        else:
            self._open()

    def _holds_other_files(self) -> bool:
        """Whether the folder has files of the names we write, but not from a run that ended before a checkpoint."""
        config, log = self.path / "config.yaml", self.path / "log.jsonl"
        try:
            return not config.read_bytes().startswith(HEADING.encode())
        except FileNotFoundError:
            return log.exists() and log.stat().st_size > 0
        except OSError:
            return config.exists()

    def _open(self) -> None:
        """From here on the folder is written to."""
        log_bytes = self.checkpoint["log_bytes"] if self.checkpoint else 0
        log = self.path / "log.jsonl"
        if log_bytes and (not log.exists() or log.stat().st_size < log_bytes):
            raise InputError(f"{log} has lost what was logged before the checkpoint; start anew in another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        self._log = open(log, "ab")  # noqa: SIM115 open as long as the run
        _lock(self._log, self.path)
        for half in self.path.glob(".checkpoint-*.pt"):  # the process was killed while it wrote
            half.unlink()
        with replacing(self.path / "config.yaml") as temporary:
            settings = {name: value for name, value in self.config.items() if name not in INPUTS}
            again = f"srnas-fast {self.kind} ... --config {self.path}/config.yaml"
            heading = f"{HEADING} {self.kind} {self.config['space']}; to use it again: {again}"
            temporary.write_text(heading + "\n" + yaml.safe_dump(settings, sort_keys=False))
        self._log.truncate(log_bytes)  # what was logged after the checkpoint will be done, and logged, again
        self._events = _Events(self.path, self.step + 1)

    @property
    def step(self) -> int:
        """Steps done when the checkpoint was written."""
        return self.checkpoint["step"] if self.checkpoint else 0

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the log and its numbers to TensorBoard."""
        self._log.write(json.dumps(record).encode() + b"\n")
        self._log.flush()
        numbers = flat({name: value for name, value in record.items() if name != "genotype"}, "/")
        self._events.add(record["step"], {name: value for name, value in numbers.items() if isinstance(value, float)})

    def records(self) -> list[dict[str, Any]]:
        """Everything logged so far."""
        return [json.loads(line) for line in (self.path / "log.jsonl").read_text().splitlines()]

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write the checkpoint, beside the old one and then over it."""
        header = {"format": FORMAT, "kind": self.kind, "config": self.config, "log_bytes": self._log.tell()}
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        os.fsync(self._log.fileno())  # the checkpoint counts on what is logged
        precision = fabric.strategy.precision.state_dict()  # the scale of 16-mixed
        fabric.save(self.path / "checkpoint.pt", header | {"random": random, "precision": precision} | state)

    def restore(self, fabric: Fabric, parts: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Load the checkpoint's states into modules and optimisers, and the random states; the run can go on.

        ``defaults``: of all settings: a run that an older version began lacks those that are new, and had no other.

        Raises:
            InputError: the checkpoint belongs to other settings, or a state does not fit; the folder is as it was.
        """
        new = flat(self.config)
        old = {name: value for name, value in flat(defaults).items() if name in new} | flat(self.checkpoint["config"])
        for name in sorted((old.keys() | new.keys()) - set(FREE)):
            if old.get(name) != new.get(name):
                raise InputError(
                    f"the run in {self.path} has {name} {old.get(name)}, not {new.get(name)}, and a resumed run "
                    "keeps what decides over its result; leave that out, or start anew in another --out"
                )
        for name, part in parts.items():
            try:
                part.load_state_dict(self.checkpoint[name])
            except (KeyError, RuntimeError, TypeError, ValueError):
                raise InputError(
                    f"the state of {name} in {self.path}/checkpoint.pt does not fit these settings; resume with those "
                    "of its config.yaml"
                ) from None
        fabric.strategy.precision.load_state_dict(self.checkpoint["precision"])
        torch.set_rng_state(self.checkpoint["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in self.checkpoint["random"]:
            torch.cuda.set_rng_state(self.checkpoint["random"]["cuda"])
        self._open()

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, the figures at the end."""
        with replacing(self.path / "result.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")

    def close(self) -> None:
        with self._log:  # closed also where the disk is full
            self._events.close()


def _lock(log: IO[bytes], folder: Path) -> None:
    """Keep other processes out of the folder until this one closes the log or ends, in whatever way."""
    if fcntl is None:
        return
    try:
        # Not flock: workers forked from this process would go on holding it for a while after a SIGKILL.
        fcntl.lockf(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        log.close()
        raise InputError(f"another process is running in {folder}; wait for it, or choose another --out") from None
    except OSError:  # a file system that knows no locks
        return


class _WholeFile(TorchCheckpointIO):
    """Fabric's checkpoints: the old one or the whole new one, on the run's own disk from the start."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch.save to a file would make a RuntimeError of a full disk
        torch.save(checkpoint, content)
        with replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())


class _Events:
    """TensorBoard's file of numbers, written by this thread: SummaryWriter's own meets a full disk with a traceback."""

    def __init__(self, folder: Path, first_step: int):
        # TensorBoard reads a folder's files by name: finer than seconds, or a run resumed at once comes first.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")  # noqa: SIM115 open as long as the run
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # TensorBoard forgets what an interrupted run wrote from this step on.
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, numbers: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()


def read_checkpoint(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """The checkpoint of a run folder, or of the file itself.

    Raises:
        InputError: there is none; it is damaged; it is not ours or of another kind of run.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        path = path / "checkpoint.pt"
    if not path.exists():
        raise InputError(f"no checkpoint at {path}; give the folder of a run that has saved one, or start it anew")
    try:
        with warnings.catch_warnings():  # of formats that are not ours
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, IsADirectoryError):
        raise
    except Exception:  # damaged bytes meet the unpickler in all sorts of ways
        raise InputError(f"{path} is damaged or no PyTorch checkpoint; give the checkpoint.pt of a run") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of srnas_fast ({FORMAT!r}); give the checkpoint.pt of a run")
    if not state.keys() >= {"kind", "config", "log_bytes", "random", "precision", "step"}:
        raise InputError(f"{path} lacks parts of a checkpoint; give one that srnas_fast wrote")
    if state["kind"] != kind:
        raise InputError(f"{path} belongs to a {state['kind']} run; a {kind} run was asked for")
    return state
