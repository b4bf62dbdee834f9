"""The CUDA kernels, for GPUs that Triton does not serve: built by nvcc for the card at hand, loaded at first use."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from srnas_fast.backends.build import Build, Job, Recipe, build
from srnas_fast.backends.choice import forced, missing, require_card
from srnas_fast.backends.toolchain import Unavailable, find_compiler, pybind11_headers, pybind11_version

NAME = "_srnas_fast_cuda"
SOURCES = Path(__file__).resolve().parents[1] / "csrc"
LEAST = (6, 1)  # compute capability
FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC")  # not --use_fast_math: NaN and infinities must behave
SETTINGS = ("NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")  # environment variables that nvcc itself reads
# What there is, by the type of the tensors.
KERNELS = {
    torch.float32: (
        *("simplex_project", "simplex_project_backward", "merge_kernels", "merge_kernels_backward"),
        *("weighted_sum", "weighted_sum_backward", "shuffle_concat", "shuffle_concat_backward"),
        *("multi_depthwise", "multi_depthwise_backward"),
        *("separable_sum", "separable_moments", "separable_gradient"),
    ),
    torch.float64: ("simplex_project", "simplex_project_backward"),
}

_outcomes: dict[tuple[int, int], Build | Unavailable] = {}  # of the one attempt per compute capability
_attempt = threading.Lock()


def cuda_kernels(name: str, dtype: torch.dtype, device: torch.device) -> ModuleType | None:
    """The compiled module for a GPU if it has a kernel of that name for tensors of that type, else None.

    The first call for a compute capability builds it if this machine has not done so before (a minute). A build that
    cannot be had is told in one line on stderr, once, and not tried again in this process.

    Raises:
        InputError: SRNAS_FAST_BACKEND names no backend, or this one where there is none.
    """
    choice = forced()
    if choice not in (None, "cuda") or device.type not in ("cuda", "cpu") or name not in KERNELS[dtype]:
        return None
    if device.type == "cpu" and (choice is None or torch.cuda.is_available()):
        return None  # what is on the CPU is not asked of a GPU, unless that is forced where there is none
    result = outcome(device)
    if isinstance(result, Build):
        return result.module
    missing("cuda", "CUDA kernels", result, expected=not torch.version.hip)
    return None


def outcome(device: torch.device) -> Build | Unavailable:
    """What came of the one attempt to load the kernels for a GPU, which this call makes if none was made yet."""
    if device.type != "cuda":
        return Unavailable("there is no CUDA device", "use a machine with one")
    capability = _capability(device.index or 0)
    with _attempt:
        if capability not in _outcomes:
            try:
                require(device)
                _outcomes[capability] = build(recipe(capability))
            except Unavailable as failure:
                _outcomes[capability] = failure
        return _outcomes[capability]


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def require(device: torch.device) -> None:
    """That a card, torch's CUDA and nvcc go together, which can be known before a build.

    Raises:
        Unavailable: they do not.
    """
    require_card(device.index or 0, LEAST, "they need")
    _, release = find_nvcc()
    theirs, ours = torch.version.cuda.split(".")[0], release.split(".")[0]
    if theirs != ours:
        raise Unavailable(
            f"nvcc is of CUDA {release}, torch of CUDA {torch.version.cuda}",
            f"install a CUDA {theirs} toolkit and name its folder in CUDA_HOME",
        )
    target(_capability(device.index or 0))


def find_nvcc() -> tuple[str, str]:
    """nvcc's command and its release, such as 12.6: in CUDA_HOME or CUDA_PATH, on PATH, in /usr/local/cuda.

    Raises:
        Unavailable: there is none, or it does not run.
    """
    homes = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*homes, os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if not nvcc:
        raise Unavailable(
            "there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda",
            "install the CUDA toolkit of torch's version",
        )
    found = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if not found:
        raise Unavailable(f"nvcc does not tell its version ({nvcc})", "install the CUDA toolkit of torch's version")
    return nvcc, found[1]


def _output(nvcc: str, option: str) -> str:
    try:
        command = [nvcc, option]
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"nvcc does not run ({error})", "install the CUDA toolkit of torch's version") from error
    return shown.stdout


def target(capability: tuple[int, int]) -> str:
    """nvcc's option for a card: code for it, or of the nearest older kind, which the driver compiles for it.

    Raises:
        Unavailable: this nvcc no longer knows so old a card.
    """
    nvcc, release = find_nvcc()
    known = [int(number) for number in re.findall(r"compute_(\d+)\b", _output(nvcc, "--list-gpu-arch"))]
    wanted = 10 * capability[0] + capability[1]
    nearest = max((number for number in known if number <= wanted), default=None)
    if nearest is None:
        shown, least = (f"{number // 10}.{number % 10}" for number in (wanted, min(known, default=0)))
        raise Unavailable(
            f"nvcc of CUDA {release} compiles for compute capability {least} and up, and this card has {shown}",
            "install a build of torch for CUDA 12.6 and a CUDA toolkit up to 12.9, and name its folder in CUDA_HOME",
        )
    kind = "sm" if nearest == wanted else "compute"
    return f"-gencode=arch=compute_{nearest},code={kind}_{nearest}"


def recipe(capability: tuple[int, int], sources: Path = SOURCES) -> Recipe:
    """How nvcc makes the module for cards of a compute capability.

    Raises:
        Unavailable: no nvcc for it, no C++ compiler, no ninja.
    """
    nvcc, release = find_nvcc()
    _, compiler_version = find_compiler()
    # nvcc finds its host compiler itself, also by NVCC_CCBIN; it takes no options with it.
    host = [f"-ccbin={shutil.which(shlex.split(os.environ['CXX'])[0])}"] if os.environ.get("CXX", "").strip() else []
    folder = sources / "cuda"
    includes = [*pybind11_headers(), os.path.join(os.path.dirname(torch.__file__), "include")]
    includes.append(sysconfig.get_path("include"))
    flags = [*FLAGS, target(capability)]

    def job(made: Path) -> Job:
        command = [nvcc, *host, *flags]
        compile_command = _in_ninja(shlex.join([*command, *(f"-I{include}" for include in includes)]))
        objects = {f"{source.name}.o": source for source in [*folder.glob("*.cu"), *folder.glob("*.cpp")]}
        lines = [
            f"rule compile\n  command = {compile_command} -c $in -o $out",
            f"rule link\n  command = {_in_ninja(shlex.join(command))} -shared $in -o $out",
            *(f"build {made_of}: compile {_path_in_ninja(source)}" for made_of, source in objects.items()),
            f"build {NAME}.so: link {' '.join(objects)}",
        ]
        (made / "build.ninja").write_text("\n".join(lines) + "\n", "utf-8")
        jobs = os.environ.get("MAX_JOBS")  # as torch's builder of the C++ kernels reads it
        return Job(["ninja", "-v", *(["-j", jobs] if jobs else [])], {})

    return Recipe(
        name=NAME,
        kernels="CUDA kernels",
        root=sources,
        files=[*sources.glob("*.h"), *(path for path in folder.iterdir() if path.suffix in (".cu", ".cpp", ".h"))],
        parameters={
            "flags": flags,
            "nvcc": f"{os.path.realpath(nvcc)}: {release}",
            "pybind11": pybind11_version(),
            "python": sysconfig.get_config_var("SOABI") or platform.python_version(),
            "compiler": compiler_version,
            "nvcc's settings": [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)],
            "processor": platform.machine(),
        },
        job=job,
    )


def _in_ninja(text: str) -> str:
    return text.replace("$", "$$")


def _path_in_ninja(path: Path) -> str:
    return _in_ninja(str(path)).replace(" ", "$ ").replace(":", "$:")
