import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import srnas_fast
from srnas_fast.backends import report, triton
from srnas_fast.backends.build import Build
from srnas_fast.backends.toolchain import Unavailable

AMPERE_BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def test_sections_and_rows():
    sections = report.environment()
    assert list(sections)[:5] == ["versions", "machine", "compilers", "devices", "backends"]
    for rows in sections.values():
        assert rows
        assert all(isinstance(name, str) and isinstance(value, str) and value for name, value in rows)
    versions = dict(sections["versions"])
    assert versions["torch"].startswith(torch.__version__.split("+")[0])
    assert versions["srnas-fast"] == srnas_fast.__version__
    assert dict(sections["machine"])["torch threads"].startswith(str(torch.get_num_threads()))


def backends(**options):
    return dict(report.environment(**options)["backends"])


@pytest.fixture
def never_built(monkeypatch):
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(report.cpu, "outcome", lambda: pytest.fail("nothing is to be built"))


def test_backends_without_building(never_built):
    rows = backends()
    assert list(rows) == ["reference", "cpu", "triton", "cuda"]
    assert rows["reference"] == "available: plain torch, on any device"
    assert rows["cpu"].startswith("built at first use (found here: ")
    if not torch.cuda.is_available():
        assert rows["triton"].startswith("not available: there is no CUDA device; use a machine with one (found here: ")
        assert rows["cuda"] == "not available: there is no CUDA device; use a machine with one"


@pytest.fixture
def card(monkeypatch, never_built):
    """A GPU, as far as torch tells, of an old kind or of a new one."""

    def of(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
        monkeypatch.setattr(report, "_devices", lambda: ([], []))
        monkeypatch.setattr(report.triton, "_trial", lambda device: None)
        monkeypatch.setattr(report.cuda, "find_nvcc", lambda: ("nvcc", "12.6"))
        monkeypatch.setattr(report.cuda, "target", lambda capability: "")
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(report.cuda, "_outcomes", {})

    caches = triton._why_not_on, report.cuda._capability
    for cache in caches:
        cache.cache_clear()
    yield of
    for cache in caches:
        cache.cache_clear()


def test_an_old_card(card, monkeypatch):
    card((6, 1))
    rows = backends()
    assert rows["triton"].startswith(
        "not available: Some Card has compute capability 6.1, and Triton needs 7.0; use a n"
    )
    assert rows["cuda"] == "built at first use (found here: nvcc of CUDA 12.6)"
    table = dict(report.environment()["primitives"])
    assert table["separable_sum"] == "CPU: cpu, GPU 0: cuda" and table["pool"] == "CPU: cpu, GPU 0: reference"
    monkeypatch.setattr(report.cuda, "build", lambda recipe: Build(None, Path("/cache/b"), None))
    monkeypatch.setattr(report.cuda, "recipe", lambda capability: None)
    monkeypatch.setattr(report.cpu, "outcome", lambda: Build(None, Path("/cache/a"), None))
    assert backends(build=True)["cuda"] == "available: CUDA C++ for float32 on the GPU, from the cache (/cache/b)"
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    assert set(dict(report.environment()["primitives"]).values()) == {"CPU: reference, GPU 0: reference"}


def test_a_new_card(card, monkeypatch):
    card((7, 0))
    rows = backends()
    assert rows["triton"].startswith("available: float32, bfloat16 and float16 on the GPU (triton")
    assert rows["cuda"] == "not needed: Triton serves this GPU; on request (SRNAS_FAST_BACKEND=cuda)"
    assert dict(report.environment()["primitives"])["separable_sum"] == "CPU: cpu, GPU 0: triton"
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    assert dict(report.environment()["primitives"])["separable_sum"] == "CPU: reference, GPU 0: cuda"


def test_a_card_and_an_nvcc_that_do_not_go_together(card, monkeypatch):
    card((6, 1))
    monkeypatch.setattr(report.cuda, "find_nvcc", lambda: ("nvcc", "13.0"))
    assert backends()["cuda"].startswith("not available: nvcc is of CUDA 13.0, torch of CUDA 12.6; install a CUDA 12")
    assert dict(report.environment()["primitives"])["separable_sum"] == "CPU: cpu, GPU 0: reference"


def test_primitives_are_all_there_are():
    files = {path.stem for path in (Path(report.__file__).parents[1] / "primitives").glob("*.py")}
    sums = {"separable_moments", "separable_gradient"}  # of separable_sum, served like it
    assert set(report.PRIMITIVES) == files - sums - {"__init__", "direct", "flops", "images"}


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (
            Build(None, Path("/cache/a"), 7.2),
            "available: C++ for float32 and float64 on the CPU, built in 7 s just now",
        ),
        (Build(None, Path("/cache/a"), None), "available: C++ for float32 and float64 on the CPU, from the cache"),
        (Unavailable("there is no compiler", "install one"), "not available: there is no compiler; install one"),
    ],
)
def test_backends_after_building(monkeypatch, outcome, shown):
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(report.cpu, "outcome", lambda: outcome)
    assert backends(build=True)["cpu"].startswith(shown)


def test_a_forced_backend_is_marked(monkeypatch, never_built):
    for name in ("reference", "triton", "cuda"):
        monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
        rows = backends(build=True)
        assert [row for row in rows if rows[row].endswith("; forced by SRNAS_FAST_BACKEND")] == [name]
        assert rows["cpu"] == f"switched off by SRNAS_FAST_BACKEND={name}"


def test_a_forced_backend_that_is_none_is_a_warning(monkeypatch, never_built):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "gpu")
    [(name, warning)] = report.environment()["warnings"]
    assert name == "SRNAS_FAST_BACKEND" and "accepted are reference, cpu, triton, cuda" in warning


def test_text_holds_every_row():
    text = report.describe()
    for section in ("versions", "machine", "compilers", "devices", "backends"):
        assert f"\n{section}\n" in f"\n{text}"
    assert f"python            {report.platform.python_version()}" in text


@pytest.mark.parametrize(
    ("built_for", "capability", "runs"),
    [
        (["sm_60"], (6, 1), True),  # same major, higher minor
        (["sm_61"], (6, 0), False),
        (["sm_60"], (7, 0), False),  # machine code does not cross the major number
        (["compute_60"], (9, 0), True),  # PTX does
        (["compute_90"], (8, 9), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["compute_100f"], (12, 0), False),
        (["sm_120"], (12, 1), True),  # two digits of major number
        (["gfx90a"], (9, 0), False),
        ([], (8, 0), False),
    ],
)
def test_which_build_runs_on_which_card(built_for, capability, runs):
    assert (report.card_warning("card", capability, built_for) is None) == runs


def test_old_card_is_sent_to_the_last_wheels_with_code_for_it():
    message = report.card_warning("GTX 1080 Ti", (6, 1), AMPERE_BUILD)
    assert "GTX 1080 Ti (compute capability 6.1)" in message
    assert "cu126" in message and "2.14" in message


def test_new_card_is_sent_to_a_newer_torch():
    message = report.card_warning("card of tomorrow", (13, 0), AMPERE_BUILD)
    assert "newer build of torch" in message and "cu126" not in message


def test_devices_lists_cards_and_warns(monkeypatch):
    card = SimpleNamespace(name="GTX 1080 Ti", major=6, minor=1, total_memory=11 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: AMPERE_BUILD)
    sections = report.environment()
    assert ("GPU 0", "GTX 1080 Ti, compute capability 6.1, 11.0 GiB") in sections["devices"]
    [(name, warning)] = sections["warnings"]
    assert name == "GPU 0" and "cu126" in warning


def test_devices_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert report.environment()["devices"] == [("GPU", "none: this torch is a CPU build")]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    sections = report.environment()
    assert "built for CUDA 13.0 but finds no device" in sections["devices"][0][1]
    assert "warnings" not in sections


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_compilers_are_found_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path / "clang++", "echo 'clang version 99.1'; echo 'more'")
    script(tmp_path / "nvcc", "echo 'copyright'; echo 'Cuda compilation tools, release 13.0, V13.0.1'")
    script(tmp_path / "g++", "exit 3")
    assert report._compiler("clang++") == f"clang version 99.1 ({tmp_path}/clang++)"
    assert report._compiler("nvcc") == f"Cuda compilation tools, release 13.0, V13.0.1 ({tmp_path}/nvcc)"
    assert report._compiler("g++") == f"found but does not run ({tmp_path}/g++: exit status 3)"
    assert report._compiler("no-such-compiler") is None


def test_compiler_in_the_cuda_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.6, V12.6.2'")
    assert "release 12.6" in report._compiler("nvcc")


def test_a_compiler_that_hangs_is_reported(monkeypatch, tmp_path):
    script(tmp_path / "g++", "true")
    monkeypatch.setenv("PATH", str(tmp_path))

    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert report._compiler("g++").startswith("found but does not run")
