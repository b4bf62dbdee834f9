"""The benches run in processes of their own, since bench/ is no package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def pytest_collection_modifyitems(items):
    if not BENCH.is_dir():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="the tests do not lie in a source checkout"))


# Reads jobs, a line each, and forks for each of them: torch and what else takes seconds to import is there already,
# nothing of bench/ is. Its own threads would not survive the fork: it starts none.
SERVER = """
import json, os, sys, traceback
import lightning_fabric, matplotlib.pyplot, skimage, srnas_fast.spaces, srnas_fast.train, torch.utils.data
for line in sys.stdin:
    job = json.loads(line)
    if os.fork():
        os.wait()
        print(flush=True)
        continue
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[:0] = [job["bench"]]
    for stream in (1, 2):
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    try:
        exec(job["code"], names := {"__name__": "__main__", "json": json})
        with open(job["result"], "w") as file:
            json.dump(names["result"], file)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture(scope="session")
def server():
    path = os.pathsep.join(filter(None, [str(BENCH), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture
def bench(server, tmp_path_factory):
    """A function: runs code where the files of bench/ can be imported; what it calls ``result`` comes back."""
    path = os.pathsep.join(filter(None, [str(BENCH), os.environ.get("PYTHONPATH")]))

    def run(code: str):
        folder = tmp_path_factory.mktemp("bench")
        places = {
            "folder": os.getcwd(),
            "bench": str(BENCH),
            "output": f"{folder}/output",
            "result": f"{folder}/result",
        }
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        server.stdin.write(json.dumps({"code": code, "environment": environment, **places}) + "\n")
        server.stdin.flush()
        server.stdout.readline()
        result = Path(places["result"])
        assert result.exists(), Path(places["output"]).read_text()
        return json.loads(result.read_text())

    return run
