import sys
import timeit

import pytest
import torch

from srnas_fast.backends import build, choice, compiled_kernel, cpu, cpu_kernels
from srnas_fast.backends.openmp import loaded_by_torch
from srnas_fast.backends.toolchain import Unavailable
from srnas_fast.errors import InputError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux only")

LOAD = """
import torch
from srnas_fast.backends import cpu_kernels
print([cpu_kernels() is None for _ in range(3)])
"""


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)


@pytest.fixture
def untried(monkeypatch):
    """As in a process that has not asked for the kernels yet."""
    for name in ("_module", "_outcome"):
        monkeypatch.setattr(cpu, name, None)
    monkeypatch.setattr(choice, "_told", set())


@linux
def test_the_kernels_serve_one_floating_type_on_the_cpu():
    single, double = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    kernels = cpu_kernels()
    assert kernels.__name__.endswith("._srnas_fast_cpu")
    for given in ([single], [double, double], [single, single, single]):
        kernel = compiled_kernel("weighted_sum", *given)
        assert kernel.func.__qualname__ and kernel.args[0] == torch.get_num_threads()
        assert kernel.args[1](3).dtype == given[0].dtype
    assert compiled_kernel("weighted_sum", single, double) is None
    assert compiled_kernel("weighted_sum", single.half()) is None
    assert compiled_kernel("weighted_sum", single.bfloat16()) is None
    assert compiled_kernel("weighted_sum", single.int()) is None
    assert compiled_kernel("weighted_sum", single.to("meta")) is None


@linux
def test_asking_again_is_cheap():
    x = torch.zeros(2)
    assert compiled_kernel("weighted_sum", x)
    times = timeit.repeat(lambda: compiled_kernel("weighted_sum", x, x, x), number=1000, repeat=5)
    assert min(times) / 1000 < 10e-6


@linux
def test_one_openmp_library_and_it_is_torchs(start):
    code = (
        "import torch; from srnas_fast.backends import cpu_kernels; assert cpu_kernels(); "
        "paths = {line.split()[-1] for line in open('/proc/self/maps')}; "
        "print(*[path for path in paths if 'libgomp' in path or 'libomp' in path or 'libiomp' in path], sep=chr(10))"
    )
    out, err = start(code).communicate(timeout=300)
    assert out.splitlines() == [loaded_by_torch()], err


def test_forced_reference(monkeypatch, untried):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    monkeypatch.setattr(cpu, "build", lambda *_: pytest.fail("nothing is to be built"))
    assert cpu_kernels() is None


@linux
def test_the_variable_is_looked_at_anew(monkeypatch):
    x = torch.zeros(2)
    assert cpu_kernels() is not None
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    assert cpu_kernels() is None
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cpu")
    assert cpu_kernels() is not None
    assert compiled_kernel("weighted_sum", x.half()) is None  # computed in plain torch all the same
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "")
    assert cpu_kernels() is not None


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu,reference"])
def test_an_unknown_backend_is_refused(monkeypatch, name):
    monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
    with pytest.raises(InputError, match=f"{name}.*reference, cpu, triton, cuda"):
        cpu_kernels()


def test_a_failure_is_told_once_and_not_tried_again(monkeypatch, untried, capsys):
    tries = []

    def fail(*arguments):
        tries.append(arguments)
        raise Unavailable("the compiler is on holiday", "wait")

    monkeypatch.setattr(cpu, "build", fail)
    assert [cpu_kernels() for _ in range(3)] == [None] * 3
    assert len(tries) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the compiler is on holiday. Plain PyTorch is used: slower, same results. Remedy: wait" in line
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cpu")
    with pytest.raises(InputError, match="is 'cpu', but the compiler is on holiday; wait"):
        cpu_kernels()
    assert capsys.readouterr().err == "" and len(tries) == 1


def test_without_a_compiler_one_line_and_the_reference(start, tmp_path):
    out, err = start(LOAD, PATH=str(tmp_path), CXX=None, SRNAS_FAST_CACHE=str(tmp_path / "c")).communicate(timeout=60)
    assert out == "[True, True, True]\n"
    [line] = err.splitlines()
    assert "no C++ compiler on PATH" in line and "slower, same results" in line and "install g++" in line


@linux
def test_with_a_broken_compiler_one_try_and_the_reference(start, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$1" in -*version) echo 13;; *) echo "x.cpp:1: error: broken" >&2; exit 1;; esac'
    )
    compiler.chmod(0o755)
    process = start(LOAD, CXX=str(compiler), SRNAS_FAST_CACHE=str(tmp_path / "c"))
    out, err = process.communicate(timeout=120)
    assert out == "[True, True, True]\n"
    started, line = err.splitlines()
    assert "building the CPU kernels" in started
    assert "x.cpp:1: error: broken" in line and "slower, same results" in line
    [log] = (tmp_path / "c").glob("*.log")
    assert str(log) in line and "error: broken" in log.read_text()


def test_elsewhere_than_on_linux_there_are_no_kernels_yet(monkeypatch, untried, capsys):
    monkeypatch.setattr(build.sys, "platform", "darwin")
    assert cpu_kernels() is None
    assert "built on Linux only" in capsys.readouterr().err
