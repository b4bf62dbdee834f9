"""`import srnas_fast` is light, and its public names are there."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import srnas_fast

HEAVY = {
    "matplotlib",
    "skimage",
    "lightning",
    "lightning_fabric",
    "rich",
    "jsonargparse",
    "tensorboard",
    "triton",
}

# Times the import after torch's own, and counts the processes started by it (a compiler would be one).
MEASURE = """
import json, sys, time
import torch
before = set(sys.modules)
started = []
sys.addaudithook(lambda event, _: event in EVENTS and started.append(event))
EVENTS = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty"}
start = time.perf_counter()
STATEMENT
seconds = time.perf_counter() - start
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"seconds": seconds, "started": started, "new": new}))
"""


@pytest.mark.parametrize("statement", ["import srnas_fast", "from srnas_fast import MixedOp"])
def test_import_is_light(statement, tmp_path):
    code = MEASURE.replace("STATEMENT", statement)
    here = os.environ | {"PYTHONPATH": str(Path(srnas_fast.__file__).parents[1])}  # the package under test
    command = [sys.executable, "-c", code]
    runs = [
        json.loads(subprocess.run(command, cwd=tmp_path, env=here, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(3)
    ]
    assert statistics.median(run["seconds"] for run in runs) < 0.3
    assert not runs[0]["started"]
    assert "srnas_fast" in runs[0]["new"]
    assert not HEAVY & set(runs[0]["new"])


def test_public_names():
    from srnas_fast.mixed import MixedOp

    assert srnas_fast.MixedOp is MixedOp
    assert {"MixedOp", "__version__"} <= set(dir(srnas_fast))
    assert all(hasattr(srnas_fast, name) for name in srnas_fast.__all__)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'NoSuchThing'"):
        srnas_fast.NoSuchThing  # noqa: B018
