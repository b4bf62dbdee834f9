"""What this machine can do: versions, compilers, devices, backends and programs, as rows of text."""

import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch

from srnas_fast import __version__
from srnas_fast.backends import cpu, driver, gpu, nvrtc, triton
from srnas_fast.backends.build import Build
from srnas_fast.backends.choice import VARIABLE, forced
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pillow",
    "scikit-image",
    "lightning-fabric",
    "jsonargparse",
    "matplotlib",
    "tensorboard",
    "rich",
    "safetensors",
    "pybind11",
    "ninja",
)
PRIMITIVES = (
    *("simplex_project", "merge_kernels", "multi_depthwise", "separable_sum", "weighted_sum", "shuffle_concat"),
    *("narrow_convolution", "pool", "channel_moments"),
)
COMPILERS = ("c++", "g++", "clang++", "ninja")

Rows = list[tuple[str, str]]


def environment(build: bool = False) -> dict[str, Rows]:
    """Sections of (name, value) rows: versions, machine, compilers, devices, backends, programs on a GPU, primitives,
    maybe warnings.

    Args:
        build: find out whether the compiled kernels work, which builds them if no build is in the cache (a minute at
            most), and on a GPU whether a small one is compiled and loaded; otherwise say only what a build would find
            here. Triton is tried on a GPU in any case.

    >>> sections = environment()
    >>> list(sections)[:7]
    ['versions', 'machine', 'compilers', 'devices', 'backends', 'programs on a GPU', 'primitives']
    >>> dict(sections["backends"])["reference"]
    'available: plain torch, on any device'
    """
    compilers = {name: _compiler(name) for name in COMPILERS}
    devices, cautions = _devices()
    backends, misnamed = _backends(compilers, build)
    sections = {
        "versions": _versions(),
        "machine": _machine(),
        "compilers": [(name, found or "not found") for name, found in compilers.items()],
        "devices": devices,
        "backends": backends,
        "programs on a GPU": _programs(dict(backends)),
        "primitives": _primitives(dict(backends)),
    }
    if cautions + misnamed:
        sections["warnings"] = cautions + misnamed
    return sections


def describe() -> str:
    """The report as plain text, to print or to paste into a bug report; builds the compiled kernels if there are none.

    >>> print(describe().splitlines()[0])
    versions
    """
    lines = []
    for section, rows in environment(build=True).items():
        width = max(len(name) for name, _ in rows)
        lines += [section, *(f"  {name:<{width}}  {value}" for name, value in rows), ""]
    return "\n".join(lines)


def card_warning(name: str, capability: tuple[int, int], built_for: list[str]) -> str | None:
    """Why this build of torch cannot run on a card and what to install; None if it can.

    Args:
        name: the card's name, for the message.
        capability: its compute capability, e.g. (6, 1).
        built_for: what torch holds code for, as ``torch.cuda.get_arch_list()`` gives it: ``sm_XY`` runs on
            cards of the same major and an equal or higher minor number, ``compute_XY`` on all from X.Y on;
            a trailing ``a`` means exactly this card and ``f`` this major number.

    >>> card_warning("GTX 1080 Ti", (6, 1), ["sm_50", "sm_60", "sm_70"])
    >>> print(card_warning("GTX 1080 Ti", (6, 1), ["sm_75", "sm_80"]))
    GTX 1080 Ti (compute capability 6.1): this torch holds code for sm_75 sm_80 only; install a cu126 build...
    """
    if any(_runs(built, capability) for built in built_for):
        return None
    major, minor = capability
    if capability < (7, 5):
        remedy = (
            "install a cu126 build of torch, up to 2.14: "
            "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"
        )
    else:
        remedy = "install a newer build of torch, see https://pytorch.org/get-started"
    return (
        f"{name} (compute capability {major}.{minor}): this torch holds code for "
        f"{' '.join(built_for) or 'no card'} only; {remedy}"
    )


def _runs(built: str, capability: tuple[int, int]) -> bool:
    parsed = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if not parsed:
        return False
    kind, major, minor, only = parsed[1], int(parsed[2]), int(parsed[3]), parsed[4]
    if only == "a":
        return capability == (major, minor)
    if kind == "compute" and not only:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


def _versions() -> Rows:
    ours = [("srnas-fast", __version__), ("python", platform.python_version())]
    return ours + [(package, installed(package)) for package in PACKAGES]


def installed(package: str) -> str:
    """The version of a package, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> Rows:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("system", platform.platform()),
        ("processor", processor()),
        ("cores", f"{os.cpu_count()}, of which this process may use {usable}"),
        ("torch threads", f"{torch.get_num_threads()} ({torch.backends.cpu.get_cpu_capability()})"),
        ("memory", _memory()),
    ]


def processor() -> str:
    """The name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not every system tells
        return "unknown"
    return f"{total:.1f} GiB, {free:.1f} GiB of it free"


def _compiler(name: str) -> str | None:
    """Version and place of a compiler, or None; sought in PATH and beside Python."""
    places = [os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if not found:
        return None
    try:
        shown = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"found but does not run ({found}: {error})"
    lines = [line.strip() for line in shown.stdout.splitlines() if line.strip()]
    if shown.returncode or not lines:
        return f"found but does not run ({found}: exit status {shown.returncode})"
    return f"{lines[0]} ({found})"


def _devices() -> tuple[Rows, Rows]:
    """The GPUs that torch sees, and a warning for each that it cannot use."""
    built = torch.version.cuda or torch.version.hip
    if not built:
        return [("GPU", "none: this torch is a CPU build")], []
    if not torch.cuda.is_available():
        driver = "nvidia-smi finds a driver" if shutil.which("nvidia-smi") else "there is no nvidia-smi either"
        return [("GPU", f"none: torch is built for CUDA {built} but finds no device; {driver}")], []
    rows, cautions = [("CUDA of torch", f"{built}, code for {' '.join(torch.cuda.get_arch_list())}")], []
    for index in range(torch.cuda.device_count()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own word on old cards; ours says what to install
            card = torch.cuda.get_device_properties(index)
        capability, memory = (card.major, card.minor), f"{card.total_memory / 2**30:.1f} GiB"
        rows.append((f"GPU {index}", f"{card.name}, compute capability {card.major}.{card.minor}, {memory}"))
        caution = None
        if torch.version.cuda:
            caution = card_warning(card.name, capability, torch.cuda.get_arch_list())
        if caution:
            cautions.append((f"GPU {index}", caution))
    return rows, cautions


def _backends(compilers: dict[str, str | None], build: bool) -> tuple[Rows, Rows]:
    """Which backends compute here, why the others do not, which one is forced; and a warning if that is not one."""
    try:
        choice, cautions = forced(), []
    except InputError as error:
        choice, cautions = None, [(VARIABLE, str(error))]
    rows = {
        "reference": "available: plain torch, on any device",
        "cpu": _cpu(choice, compilers, build),
        "triton": _triton(choice),
        "cuda": _cuda(choice, build),
    }
    if choice:
        rows[choice] += f"; forced by {VARIABLE}"
    return list(rows.items()), cautions


def _cpu(choice: str | None, compilers: dict[str, str | None], build: bool) -> str:
    """Whether the C++ kernels serve, which only a build can tell."""
    if choice not in (None, "cpu"):
        return f"switched off by {VARIABLE}={choice}"
    if not build:
        host = next((name for name in ("c++", "g++", "clang++") if compilers[name]), "no C++ compiler")
        return f"built at first use (found here: {host}, {'ninja' if compilers['ninja'] else 'no ninja'})"
    return _built(cpu.outcome(), "C++ for float32 and float64 on the CPU")


def _triton(choice: str | None) -> str:
    """Whether the Triton kernels serve the GPU there is."""
    if choice not in (None, "triton"):
        return f"switched off by {VARIABLE}={choice}"
    failure = triton.why_not(_device())
    found = f"triton {installed('triton')}"
    if failure:
        return f"not available: {failure} (found here: {found})"
    return f"available: float32, bfloat16 and float16 on the GPU ({found})"


def _cuda(choice: str | None, build: bool) -> str:
    """Whether programs serve the GPU there is."""
    if choice not in (None, "cuda"):
        return f"switched off by {VARIABLE}={choice}"
    failure = gpu.why_not(_device()) if build else gpu.look(_device())
    if failure:
        return f"not available: {failure}"
    ready = "available" if build else "compiled at first use"
    return f"{ready}: programs for mixed operations of float32, bfloat16 and float16 on the GPU"


def _device() -> torch.device:
    """The GPU that a search takes, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _built(outcome: Build | Unavailable, what: str) -> str:
    if isinstance(outcome, Unavailable):
        return f"not available: {outcome}"
    origin = "from the cache" if outcome.seconds is None else f"built in {outcome.seconds:.0f} s just now"
    return f"available: {what}, {origin} ({outcome.folder})"


def _primitives(backends: dict[str, str]) -> Rows:
    """Which backend computes each primitive in float32, on the CPU and on the first GPU if there is one."""
    rows = []
    for primitive in PRIMITIVES:
        chosen = f"CPU: {'cpu' if _serves(backends['cpu']) else 'reference'}"
        if torch.cuda.is_available():
            able = _serves(backends["triton"]) and primitive in triton.FILES.values()
            chosen += f", GPU 0: {'triton' if able else 'reference'}"
        rows.append((primitive, chosen))
    return rows


def _serves(row: str) -> bool:
    """Whether a backend computes, by its row."""
    return row.startswith(("available", "built", "compiled"))


def _programs(backends: dict[str, str]) -> Rows:
    """What compiles programs for a GPU and loads them, and who computes what on the first GPU."""
    rows = [("NVRTC", describe_nvrtc()), ("driver", _driver())]
    if not torch.cuda.is_available():
        return [*rows, ("mixed operations", "on no GPU: there is none that torch can use")]
    for name, backend, ours, instead in (
        ("mixed operations", "cuda", "programs, and branches for what they do not serve", "branches"),
        ("primitives", "triton", "Triton", "plain torch"),
    ):
        row = backends[backend]
        rows.append((name, f"on GPU 0: {ours}" if _serves(row) else f"on GPU 0: {instead}, since {backend} is {row}"))
    return rows


def describe_nvrtc() -> str:
    """NVIDIA's compiler as a library: its version, what it compiles for, where it is."""
    try:
        found = nvrtc.find()
    except Unavailable as failure:
        return f"not available: {failure}"
    known = " ".join(f"{number // 10}.{number % 10}" for number in found.architectures)
    return f"{'.'.join(map(str, found.version))}, for compute capability {known} ({found.path})"


def _driver() -> str:
    """The newest CUDA that the driver knows."""
    try:
        return f"of CUDA {'.'.join(map(str, driver.find().version))}"
    except Unavailable as failure:
        return f"not available: {failure}"
