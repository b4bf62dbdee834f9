import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import srnas_fast
from srnas_fast.backends import nvrtc, report, triton
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


class Compiler(nvrtc.Nvrtc):
    """As much of NVRTC as the report looks at."""

    def __init__(self, architectures=(50, 61, 120)):
        self.version, self.architectures, self.path = (12, 9), list(architectures), "/lib/libnvrtc.so.12"


@pytest.fixture
def card(monkeypatch, never_built):
    """A GPU, as far as torch tells, of an old kind or of a new one, and all that programs need."""

    def of(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
        monkeypatch.setattr(report, "_devices", lambda: ([], []))
        monkeypatch.setattr(report.triton, "_trial", lambda device: None)
        monkeypatch.setattr(report.gpu, "_trial", lambda device: None)
        monkeypatch.setattr(report.nvrtc, "find", lambda: Compiler())
        monkeypatch.setattr(report.driver, "find", lambda: SimpleNamespace(version=(12, 8)))

    caches = triton._why_not_on, report.gpu._missing_on, report.gpu._why_not_on
    for cache in caches:
        cache.cache_clear()
    yield of
    for cache in caches:
        cache.cache_clear()


def programs(**options):
    return dict(report.environment(**options)["programs on a GPU"])


def test_programs_without_a_gpu(never_built, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert programs()["mixed operations"] == "on no GPU: there is none that torch can use"
    monkeypatch.setattr(report.nvrtc, "find", lambda: Compiler())
    assert programs()["NVRTC"] == "12.9, for compute capability 5.0 6.1 12.0 (/lib/libnvrtc.so.12)"

    def fail():
        raise Unavailable("it is on holiday", "wait")

    for module, row in ((report.nvrtc, "NVRTC"), (report.driver, "driver")):
        monkeypatch.setattr(module, "find", fail)
        assert programs()[row] == "not available: it is on holiday; wait"


def test_an_old_card(card, monkeypatch):
    card((6, 1))
    none = "not available: Some Card has compute capability 6.1, and Triton needs 7.0; use a newer card (found"
    rows = backends()
    assert rows["triton"].startswith(none)
    served = "programs for mixed operations of float32, bfloat16 and float16 on the GPU"
    assert rows["cuda"] == f"compiled at first use: {served}"
    table = programs()
    assert table["driver"] == "of CUDA 12.8"
    assert table["mixed operations"] == "on GPU 0: programs, and branches for what they do not serve"
    assert table["primitives"].startswith(f"on GPU 0: plain torch, since triton is {none}")
    assert set(dict(report.environment()["primitives"]).values()) == {"CPU: cpu, GPU 0: reference"}
    monkeypatch.setattr(report.cpu, "outcome", lambda: Build(None, Path("/cache/a"), None))
    assert backends(build=True)["cuda"] == f"available: {served}"
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    assert set(dict(report.environment()["primitives"]).values()) == {"CPU: reference, GPU 0: reference"}
    off = "switched off by SRNAS_FAST_BACKEND=reference"
    assert programs()["mixed operations"] == f"on GPU 0: branches, since cuda is {off}"
    assert programs()["primitives"] == f"on GPU 0: plain torch, since triton is {off}"


def test_a_new_card(card, monkeypatch):
    card((7, 0))
    rows = backends()
    assert rows["triton"].startswith("available: float32, bfloat16 and float16 on the GPU (triton")
    assert rows["cuda"].startswith("compiled at first use: programs for mixed operations")
    assert programs()["primitives"] == "on GPU 0: Triton"
    table = dict(report.environment()["primitives"])
    assert table["separable_sum"] == "CPU: cpu, GPU 0: triton" and table["pool"] == "CPU: cpu, GPU 0: reference"
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    assert backends()["cuda"].endswith("on the GPU; forced by SRNAS_FAST_BACKEND")
    assert programs()["mixed operations"].startswith("on GPU 0: programs")
    assert dict(report.environment()["primitives"])["separable_sum"] == "CPU: reference, GPU 0: reference"


def test_what_keeps_programs_from_a_card_is_told(card, monkeypatch):
    card((6, 1))
    monkeypatch.setattr(report.nvrtc, "find", lambda: Compiler([75, 90]))
    reason = "not available: NVRTC 12.9 compiles for compute capability 7.5 and up, and this card has 6.1; install a"
    assert backends()["cuda"].startswith(reason)
    assert programs()["mixed operations"].startswith(f"on GPU 0: branches, since cuda is {reason}")


def test_a_trial_that_fails_is_told_after_building_only(card, monkeypatch):
    card((8, 6))
    monkeypatch.setattr(report.gpu, "_trial", lambda device: Unavailable("the driver is old", "take a new one"))
    assert backends()["cuda"].startswith("compiled at first use")
    monkeypatch.setattr(report.cpu, "outcome", lambda: Build(None, Path("/cache/a"), None))
    assert backends(build=True)["cuda"] == "not available: the driver is old; take a new one"


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
    script(tmp_path / "g++", "exit 3")
    assert report._compiler("clang++") == f"clang version 99.1 ({tmp_path}/clang++)"
    assert report._compiler("g++") == f"found but does not run ({tmp_path}/g++: exit status 3)"
    assert report._compiler("no-such-compiler") is None


def test_a_compiler_that_hangs_is_reported(monkeypatch, tmp_path):
    script(tmp_path / "g++", "true")
    monkeypatch.setenv("PATH", str(tmp_path))

    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert report._compiler("g++").startswith("found but does not run")
