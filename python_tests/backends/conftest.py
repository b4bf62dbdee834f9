import os
import subprocess
import sys
from pathlib import Path

import pytest

import srnas_fast
from srnas_fast.backends import cpu

# A module without pybind11, in two files and a header, whose build takes a fraction of a second.
BINDINGS = """
#include <Python.h>
#include "cpu/answer.h"
int threads();
static PyObject* count(PyObject*, PyObject*) { return PyLong_FromLong(threads()); }
static PyMethodDef methods[] = {{"threads", count, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fake", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__fake() {
    PyObject* made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "answer", ANSWER);
    return made;
}
"""
THREADS = "#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"

# Takes the place of torch's builder, whose import takes seconds: counts the builds, waits for the file GO if
# there is to be one, compiles.
QUICK = """
import json, os, subprocess, sys, sysconfig, time
job = json.load(sys.stdin)
with open(os.environ["COUNT"], "a") as count:
    count.write(f"{os.getpid()}\\n")
deadline = time.monotonic() + 30
while os.environ.get("GO") and not os.path.exists(os.environ["GO"]) and time.monotonic() < deadline:
    time.sleep(0.02)
subprocess.check_call(
    [os.environ["CXX"], *job["sources"], "-I", sysconfig.get_path("include"), "-shared", "-fPIC"]
    + [*job["extra_cflags"], *job["extra_ldflags"], "-o", job["name"] + ".so"]
)
"""
FLAGS = ("-O0", "-fopenmp")

USE = f"""
import sys
from pathlib import Path
from srnas_fast.backends import build, cpu
cpu.CHILD = {QUICK!r}
try:
    print(build.build(cpu.recipe("_fake", Path(sys.argv[1]), {FLAGS!r})).module.answer)
except build.Unavailable as failure:
    print("unavailable:", failure.reason)
"""


@pytest.fixture
def sources(tmp_path):
    """A folder like csrc, of the module ``_fake`` with ``answer`` and ``threads()``."""
    folder = tmp_path / "sources of mine"
    (folder / "cpu").mkdir(parents=True)
    (folder / "bindings.cpp").write_text(BINDINGS)
    (folder / "cpu" / "threads.cpp").write_text(THREADS)
    (folder / "cpu" / "answer.h").write_text("#define ANSWER 42\n")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache of mine"
    monkeypatch.setenv("SRNAS_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def builds(tmp_path, monkeypatch, cache):
    """The quick builder in an empty cache; call the fixture for how often it ran."""
    count = tmp_path / "count"
    monkeypatch.setenv("COUNT", str(count))
    monkeypatch.setattr(cpu, "CHILD", QUICK)
    return lambda: len(count.read_text().split()) if count.exists() else 0


@pytest.fixture
def start():
    """Starts a Python process that sees this package; what still runs at the end is killed."""
    started = []

    def start(code, *arguments, **environment):
        variables = os.environ | {"PYTHONPATH": str(Path(srnas_fast.__file__).parents[1])} | environment
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                env={name: value for name, value in variables.items() if value is not None},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def use():
    """Code of a process that builds or loads ``_fake`` from the sources in its argument and prints its answer."""
    return USE
