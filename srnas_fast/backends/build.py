"""Builds a C++ module once per machine and finds it again: the cache holds a folder per set of build parameters."""

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from srnas_fast.backends.toolchain import (
    Unavailable,
    find_compiler,
    link_flags,
    path_with_ninja,
    processor_features,
    pybind11_headers,
    pybind11_version,
)

CACHE = "SRNAS_FAST_CACHE"
# Not -ffast-math: NaN and infinities must behave.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
PATIENCE = 900  # seconds; a compiler that takes longer hangs
RECORD = "build_params.json"

# Its own process: torch's builder cannot be interrupted, keeps state per name, needs ninja on PATH, and imports what it
# has built, which had better crash there than here.
CHILD = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job.pop("path")
from torch.utils.cpp_extension import load
load(**job)
"""


@dataclass(frozen=True)
class Build:
    """A loaded module, the folder it lies in, and the seconds that building took (None: it was in the cache)."""

    module: ModuleType
    folder: Path
    seconds: float | None


def build(name: str, sources: Path, flags: tuple[str, ...] = FLAGS) -> Build:
    """Load a module from the cache, where it is built first if need be.

    Args:
        name: of the pybind11 module.
        sources: folder with ``bindings.cpp``, ``cpu/*.cpp`` and ``cpu/*.h``.
        flags: for the compiler.

    Processes that need the same module at the same time wait for one build. A build that is killed leaves nothing that
    could be taken for a module, and a module that is not as it was built is built again.

    Raises:
        Unavailable: no compiler, no ninja, an error of the compiler, no room.
    """
    try:
        return _cached_or_built(name, sources, flags)
    except (OSError, RuntimeError) as error:  # the latter: there is no home folder
        raise Unavailable(f"building them failed ({error})", f"name a folder with room for them in {CACHE}") from error


def _cached_or_built(name: str, sources: Path, flags: tuple[str, ...]) -> Build:
    if sys.platform != "linux":
        raise Unavailable("the C++ kernels are built on Linux only in this version", "use Linux")
    compiler, compiler_version = find_compiler()
    parameters = {
        "sources": _digests(sources),
        "flags": list(flags),
        "link flags": link_flags(compiler_version),
        "torch": torch.__version__,
        "pybind11": pybind11_version(),
        "python": sysconfig.get_config_var("SOABI") or platform.python_version(),
        "compiler": compiler_version,
        "processor": processor_features(),
    }
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    folder = _cache() / f"{name.strip('_')}-{key}"
    module = _load(name, folder)
    if module:
        return Build(module, folder, None)
    cache, folder = folder.parent, _writable(folder)
    with _locked(folder.with_suffix(".lock")) as waited:
        module = _load(name, folder)  # another process may have built it in the meantime
        if module:
            return Build(module, folder, None)
        if waited and _log(folder).exists() and time.time() - _log(folder).stat().st_mtime < waited:
            raise _failed(folder)  # so has the process we waited for
        seconds = _build(name, sources, folder, parameters, compiler)
    module = _load(name, folder)
    if not module:
        raise Unavailable(f"the module just built in {folder} does not load", f"delete {folder} and report it")
    if folder.parent != cache:
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    return Build(module, folder, seconds)


def _build(name: str, sources: Path, folder: Path, parameters: dict[str, Any], compiler: str) -> float:
    """Build in a temporary folder, move it into place, return the seconds. The caller holds the lock."""
    for orphan in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(orphan, ignore_errors=True)  # its process was killed: it would hold the lock
    if reason := _reason(folder, parameters):
        print(f"srnas_fast: the CPU kernels in the cache do not serve here: {reason}", file=sys.stderr)
    began = time.monotonic()
    workspace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        made = workspace / "build"
        made.mkdir()
        job = {
            "path": [os.path.abspath(entry) for entry in sys.path],
            "name": name,
            "sources": [str(path) for path in _files(sources) if path.suffix == ".cpp"],
            "extra_cflags": parameters["flags"],
            "extra_ldflags": parameters["link flags"],
            "extra_include_paths": pybind11_headers(),
            "build_directory": str(made),
            "verbose": True,
            "with_cuda": False,
        }
        library = made / f"{name}.so"
        with open(made / "build.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                cwd=made,
                env={**os.environ, "CXX": compiler, "PATH": path_with_ninja()},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _watch(process, json.dumps(job).encode())
        if process.returncode or not library.is_file():
            end = f"error: the builder ended with status {process.returncode} after {time.monotonic() - began:.0f} s"
            _log(folder).write_bytes((made / "build.log").read_bytes() + f"\n{end}\n".encode())
            raise _failed(folder)
        if _digests(sources) != parameters["sources"]:  # the cache would hold the one under the name of the other
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


def _watch(process: subprocess.Popen, job: bytes) -> None:
    """Hand a process its job and wait for its end, with running seconds on a terminal; kill what outlives this call."""
    title = "srnas_fast: building the CPU kernels, once for this machine ..."
    live, began = sys.stderr.isatty(), time.monotonic()
    print(title, file=sys.stderr, end="" if live else "\n", flush=True)
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # it died at once: its log says of what
            stdin.write(job)
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
    error = next((line for line in lines if "error:" in line or "Error:" in line), "no error in its log")
    return Unavailable(f"building them failed ({error.strip()[:200]})", f"mend what {_log(folder)} shows")


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
        spec = importlib.util.spec_from_file_location(name, library)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (OSError, ValueError, LookupError, TypeError, ImportError):
        return None


def _fingerprint(library: Path) -> dict[str, Any]:
    return {"bytes": library.stat().st_size, "sha256": _digest(library)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(sources: Path) -> dict[str, str]:
    return {path.relative_to(sources).as_posix(): _digest(path) for path in _files(sources)}


def _files(sources: Path) -> list[Path]:
    """What the module is built from: sources and headers."""
    cpu = sources / "cpu"
    return sorted([*sources.glob("*.cpp"), *cpu.glob("*.cpp"), *cpu.glob("*.h")])


def _cache() -> Path:
    """The folder for all builds: SRNAS_FAST_CACHE, or in torch's folder for extensions, or in the user's cache."""
    given, torch_extensions = os.environ.get(CACHE), os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given).absolute()
    if torch_extensions:
        return Path(torch_extensions).absolute() / "srnas_fast"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "srnas_fast"


def _writable(folder: Path) -> Path:
    """The folder, or one of the same name in a temporary place if nothing can be written beside it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as probe:
            probe.write(b"0")
        return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="srnas_fast-"))
        print(
            f"srnas_fast: the cache {folder.parent} cannot be written ({error.strerror}): the CPU kernels are built "
            f"for this process alone. Remedy: name a folder that can be written in {CACHE}",
            file=sys.stderr,
        )
        return temporary / folder.name


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[float]:
    """Hold a lock that ends with its process, however that ends; yields the seconds spent waiting for it."""
    import fcntl  # not on Windows

    with open(path, "a", encoding="utf-8") as file:
        began = time.monotonic()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = 0.0
        except BlockingIOError:
            print("srnas_fast: waiting for another process that builds the CPU kernels ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = time.monotonic() - began
        except OSError:
            waited = 0.0  # a file system without locks: each builds its own, and the last one to finish stays
        yield waited
