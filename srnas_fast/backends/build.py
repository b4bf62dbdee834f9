"""Builds a compiled module once per machine and finds it again: the cache holds a folder per set of parameters."""

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from srnas_fast.backends.toolchain import Unavailable, path_with_ninja

CACHE = "SRNAS_FAST_CACHE"
PATIENCE = 900  # seconds; a compiler that takes longer hangs
RECORD = "build_params.json"


@dataclass(frozen=True)
class Job:
    """A command that leaves a library in the folder it runs in, as NAME.so, and what it reads from its stdin."""

    command: list[str]
    environment: dict[str, str]
    stdin: bytes = b""


@dataclass(frozen=True)
class Recipe:
    """How a module is made.

    Args:
        name: of the pybind11 module.
        kernels: what is in it, for messages.
        root: the folder that the sources are named from.
        files: sources and headers.
        parameters: what else decides over the result: flags, compilers, versions.
        job: of the folder to build in.
    """

    name: str
    kernels: str
    root: Path
    files: list[Path]
    parameters: dict[str, Any]
    job: Callable[[Path], Job]


@dataclass(frozen=True)
class Build:
    """A loaded module, the folder it lies in, and the seconds that building took (None: it was in the cache)."""

    module: ModuleType
    folder: Path
    seconds: float | None


def build(recipe: Recipe) -> Build:
    """Load a module from the cache, where it is built first if need be.

    Processes that need the same module at the same time wait for one build. A build that is killed leaves nothing that
    could be taken for a module, and a module that is not as it was built is built again.

    Raises:
        Unavailable: an error of the compiler, no room.
    """
    try:
        return _cached_or_built(recipe)
    except (OSError, RuntimeError) as error:  # the latter: there is no home folder
        raise Unavailable(f"building them failed ({error})", f"name a folder with room for them in {CACHE}") from error


def _cached_or_built(recipe: Recipe) -> Build:
    parameters = {"sources": _digests(recipe), **recipe.parameters}
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    name = recipe.name
    folder = cache_folder() / f"{name.strip('_')}-{key}"
    module = _load(name, folder)
    if module:
        return Build(module, folder, None)
    cache, folder = folder.parent, _writable(folder, recipe.kernels)
    with _locked(folder.with_suffix(".lock"), recipe.kernels) as waited:
        module = _load(name, folder)  # another process may have built it in the meantime
        if module:
            return Build(module, folder, None)
        if waited and _log(folder).exists() and time.time() - _log(folder).stat().st_mtime < waited:
            raise _failed(folder)  # so has the process we waited for
        seconds = _build(recipe, folder, parameters)
    module = _load(name, folder)
    if not module:
        raise Unavailable(f"the module just built in {folder} does not load", f"delete {folder} and report it")
    if folder.parent != cache:
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    return Build(module, folder, seconds)


def _build(recipe: Recipe, folder: Path, parameters: dict[str, Any]) -> float:
    """Build in a temporary folder, move it into place, return the seconds. The caller holds the lock."""
    for orphan in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(orphan, ignore_errors=True)  # its process was killed: it would hold the lock
    if reason := _reason(folder, parameters):
        print(f"srnas_fast: the {recipe.kernels} in the cache do not serve here: {reason}", file=sys.stderr)
    began = time.monotonic()
    workspace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        made = workspace / "build"
        made.mkdir()
        job = recipe.job(made)
        library = made / f"{recipe.name}.so"
        with open(made / "build.log", "wb") as log:
            process = subprocess.Popen(
                job.command,
                cwd=made,
                env={**os.environ, "PATH": path_with_ninja(), **job.environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _watch(process, job.stdin, recipe.kernels)
        if process.returncode or not library.is_file():
            end = f"error: the builder ended with status {process.returncode} after {time.monotonic() - began:.0f} s"
            _log(folder).write_bytes((made / "build.log").read_bytes() + f"\n{end}\n".encode())
            raise _failed(folder)
        if _digests(recipe) != parameters["sources"]:  # the cache would hold the one under the name of the other
            raise Unavailable("their sources changed while they were compiled", "run it again")
        seconds = time.monotonic() - began
        record = {**parameters, "library": _fingerprint(library), "seconds": round(seconds, 1)}
        (made / RECORD).write_text(json.dumps(record, indent=2), "utf-8")
        if folder.exists():
            folder.rename(workspace / "damaged")
        made.rename(folder)
        _log(folder).unlink(missing_ok=True)
        return seconds
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _watch(process: subprocess.Popen, given: bytes, kernels: str) -> None:
    """Hand a process its stdin and wait for its end, with running seconds on a terminal; kill what outlives this."""
    title = f"srnas_fast: building the {kernels}, once for this machine ..."
    live, began = sys.stderr.isatty(), time.monotonic()
    print(title, file=sys.stderr, end="" if live else "\n", flush=True)
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # it died at once: its log says of what
            stdin.write(given)
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            if live:
                print(f"\r{title} {time.monotonic() - began:.0f} s", file=sys.stderr, end="", flush=True)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # ninja and the compilers, too
            process.wait()
        if live:
            print(file=sys.stderr)
    if process.returncode == 0 and not live:
        print(f"srnas_fast: built in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _reason(folder: Path, parameters: dict[str, Any]) -> str:
    """Why the cache did not serve: damage, or what changed since the last build in it; "" if it holds none."""
    if folder.exists():
        return "they are damaged"
    records = list(folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/{RECORD}"))
    if not records:
        return ""
    try:
        before = json.loads(max(records, key=lambda path: path.stat().st_mtime).read_text("utf-8"))
        changes = [_change(name, before[name], now) for name, now in parameters.items() if before[name] != now]
    except (ValueError, LookupError, TypeError, AttributeError):  # damaged, or of another version of this file
        return "they are built otherwise"
    return f"changed since the last build: {', '.join(changes)}"


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(now, dict):
        return f"{name} ({' '.join(key for key in before | now if before.get(key) != now.get(key))})"
    if isinstance(now, list) or name == "processor":  # long: only what came and went
        before, now = (set(value.split() if isinstance(value, str) else value) for value in (before, now))
        changes = [f"without {old}" for old in sorted(before - now)] + [f"with {new}" for new in sorted(now - before)]
        return f"{name} ({' '.join(changes)})"
    return f"{name} ({before} -> {now})"


def _failed(folder: Path) -> Unavailable:
    lines = _log(folder).read_text("utf-8", errors="replace").splitlines()
    signs = ("error:", "Error:")
    error = next((line.strip() for line in lines if any(sign in line for sign in signs)), "no error in its log")
    if len(error) > 200:
        error = error[max(error.find("error:"), 0) :][:200]  # without the place, which may be long
    return Unavailable(f"building them failed ({error})", f"mend what {_log(folder)} shows")


def _log(folder: Path) -> Path:
    """Where the log of a failed build is kept."""
    return folder.with_suffix(".log")


def _load(name: str, folder: Path) -> ModuleType | None:
    """The module in a folder of the cache; None if there is none, or it is not what was built."""
    library = folder / f"{name}.so"
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if record["library"] != _fingerprint(library):  # loading a cut-off library may kill the process
            return None
        # By a name of its own: pybind11 hands out the module that it has made before under the same one.
        spec = importlib.util.spec_from_file_location(f"{folder.name}.{name}", library)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (OSError, ValueError, LookupError, TypeError, ImportError):
        return None


def _fingerprint(library: Path) -> dict[str, Any]:
    return {"bytes": library.stat().st_size, "sha256": _digest(library)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(recipe: Recipe) -> dict[str, str]:
    return {path.relative_to(recipe.root).as_posix(): _digest(path) for path in sorted(recipe.files)}


def cache_folder() -> Path:
    """The folder for all builds: SRNAS_FAST_CACHE, or in torch's folder for extensions, or in the user's cache."""
    given, torch_extensions = os.environ.get(CACHE), os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given).absolute()
    if torch_extensions:
        return Path(torch_extensions).absolute() / "srnas_fast"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "srnas_fast"


def _writable(folder: Path, kernels: str) -> Path:
    """The folder, or one of the same name in a temporary place if nothing can be written beside it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as probe:
            probe.write(b"0")
        return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="srnas_fast-"))
        print(
            f"srnas_fast: the cache {folder.parent} cannot be written ({error.strerror}): the {kernels} are built "
            f"for this process alone. Remedy: name a folder that can be written in {CACHE}",
            file=sys.stderr,
        )
        return temporary / folder.name


@contextlib.contextmanager
def _locked(path: Path, kernels: str) -> Iterator[float]:
    """Hold a lock that ends with its process, however that ends; yields the seconds spent waiting for it."""
    import fcntl  # not on Windows

    with open(path, "a", encoding="utf-8") as file:
        began = time.monotonic()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = 0.0
        except BlockingIOError:
            print(f"srnas_fast: waiting for another process that builds the {kernels} ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = time.monotonic() - began
        except OSError:
            waited = 0.0  # a file system without locks: each builds its own, and the last one to finish stays
        yield waited
