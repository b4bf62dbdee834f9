"""The run folder where something is in the way: another run, a full or read-only disk, damaged files."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srnas_fast.cli import main
from srnas_fast.errors import InputError
from srnas_fast.search import RunConfig, RunFolder, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["search", "hinas-denoise", "--preset", "smoke", "--search.steps", "4", "--threads", "1"]
NAMES = {"architecture.png", "checkpoint.pt", "config.yaml", "genotype.json", "log.jsonl", "result.json", "weights.png"}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def refused(capsys, *arguments):
    """The one line on the standard error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main([*SMOKE, "--data.root", str(images), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def fill(disk, leave):
    """Fill a disk up to so many bytes."""
    free = os.statvfs(disk)
    (disk / "filling").write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


def test_the_folder_of_a_run(run, images):
    names = {path.name for path in run.iterdir()}
    assert names > NAMES and [name.split(".")[0] for name in names - NAMES] == ["events"]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["epoch"] for record in records] == [1] * 4 + [2] * 4 + [3] * 4
    assert [("loss_architecture" in record) for record in records] == [False] * 4 + [True] * 8
    losses = EventAccumulator(str(run)).Reload().Scalars("loss_weights")
    assert [event.value for event in losses] == pytest.approx([record["loss_weights"] for record in records])
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 12 and result["skipped_images"] == 0 and 0 < result["ssim"] < 1
    assert result["score"] == pytest.approx(result["ssim"] + result["psnr"] / 100)
    assert all(0 <= entropy <= 1 for entropy in result["entropy"].values())


def test_a_config_can_be_used_again(run, images, tmp_path):
    out = tmp_path / "again"
    assert main(["search", "hinas-denoise", "--config", str(run / "config.yaml"), "--out", str(out)]) == 0
    assert (out / "genotype.json").read_bytes() == (run / "genotype.json").read_bytes()
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["supernet"] for folder in (run, out))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_that_holds_a_run_is_left_alone(run, images, capsys):
    before = contents(run)
    error = refused(capsys, *SMOKE, "--data.root", images, "--out", run)
    assert "holds a run already" in error and "--resume" in error
    assert contents(run) == before


@pytest.mark.parametrize(
    "option",
    ["filters 4", "layers 1", "nodes 2", "activation relu", "weights sparsemax"],
)
def test_a_resumed_search_cannot_become_another(run, capsys, option):
    before = contents(run)
    error = refused(capsys, "search", "hinas-denoise", "--resume", "--out", run, *f"--supernet.{option}".split())
    assert f"has supernet.{option.split()[0]} " in error and "a resumed run keeps" in error and contents(run) == before


def test_a_state_that_does_not_fit_leaves_the_folder_as_it_was(run, tmp_path):
    config = read_checkpoint(run, "search")["config"]
    before = contents(run)
    settings = RunConfig(out=str(run), resume=True)
    fabric, folder = settings.fabric(), RunFolder(settings, "search", config)
    with pytest.raises(InputError, match="state of supernet"):
        folder.restore(fabric, {"supernet": torch.nn.Linear(2, 2)}, {})
    with pytest.raises(InputError, match="state of moon"):
        folder.restore(fabric, {"moon": torch.nn.Linear(2, 2)}, {})
    assert contents(run) == before


def test_a_run_of_an_older_version_resumes_with_the_defaults_of_what_is_new(run, tmp_path, capsys):
    out = tmp_path / "old"
    shutil.copytree(run, out)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    del state["config"]["supernet"]["candidates"], state["best"]["genotype"]["layer2_reads"]
    torch.save(state, out / "checkpoint.pt")
    settings = yaml.safe_load((out / "config.yaml").read_text())
    del settings["supernet"]["candidates"]
    (out / "config.yaml").write_text("# srnas_fast search hinas-denoise\n" + yaml.safe_dump(settings))
    chosen = ["--supernet.candidates", "con_c_3x3", "skip_connect"]
    error = refused(capsys, "search", "hinas-denoise", "--resume", "--out", out, *chosen)
    assert "has supernet.candidates ['con_c_3x3', 'sep_c_3x3'," in error
    assert main(["search", "hinas-denoise", "--resume", "--out", str(out)]) == 0
    assert (out / "genotype.json").read_bytes() == (run / "genotype.json").read_bytes()
    assert "layer2_reads" not in capsys.readouterr().err  # no network was trained yet: it is as published


def test_a_resumed_run_notices_other_images(run, images, tmp_path, capsys):
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.new("L", (48, 40), 7).save(tmp_path / "0.png")
    before = contents(run)
    error = refused(capsys, "search", "hinas-denoise", "--resume", "--out", run, "--data.root", tmp_path)
    assert "has images 8 images, " in error and contents(run) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl on Windows")
def test_two_processes_cannot_run_in_one_folder(run, images, tmp_path, capsys):
    out = tmp_path / "run"
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print('', flush=True); input()"
    )
    out.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out / "log.jsonl")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        error = refused(capsys, *SMOKE, "--data.root", images, "--out", out)
        assert f"another process is running in {out}" in error and contents(out) == {"log.jsonl": b""}
        other.communicate(b"\n")
    assert main([*SMOKE, "--data.root", str(images), "--out", str(out)]) == 0


def test_a_moved_run_goes_on_where_it_is(run, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    before = contents(run)
    assert main(["search", "hinas-denoise", "--resume", "--out", str(moved)]) == 0
    assert contents(run) == before and read_checkpoint(moved, "search")["step"] == 12


def test_damaged_checkpoints_are_named(run, tmp_path):
    whole = (run / "checkpoint.pt").read_bytes()
    middle = len(whole) // 2
    damaged = [b"", b"\x80\x02M", b"\x80\x02}q\x00}}s.", whole[: middle // 3], whole[:4985], whole[:middle], whole[1:]]
    for data in damaged:
        (tmp_path / "checkpoint.pt").write_bytes(data)
        with pytest.raises(InputError, match=f"^{tmp_path}/checkpoint.pt is damaged or no PyTorch checkpoint"):
            read_checkpoint(tmp_path, "search")


def test_a_diverged_run_is_told_and_keeps_its_log(images, tmp_path, capsys):
    out = tmp_path / "run"
    error = refused(capsys, *SMOKE, "--data.root", images, "--out", out, "--search.learning_rate", "1e30")
    assert "diverged" in error and "loss weights is nan" in error
    assert (out / "log.jsonl").read_text().count("\n") >= 1


def test_a_full_disk_while_a_checkpoint_is_written_loses_nothing(images, disk, tmp_path, capsys):
    out, whole = disk / "run", tmp_path / "whole"
    arguments = [*SMOKE, "--data.root", images, "--checkpoint_every", 1, "--out"]
    fill(disk, 400_000)  # one checkpoint fits, the second beside it does not
    error = refused(capsys, *arguments, out)
    assert "No space left on device" in error
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 1 and not list(out.glob(".*"))

    error = refused(capsys, "search", "hinas-denoise", "--resume", "--out", out)  # still full
    assert "No space left on device" in error
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 1

    (disk / "filling").unlink()
    assert main(["search", "hinas-denoise", "--resume", "--out", str(out)]) == 0
    assert main([str(argument) for argument in [*arguments, whole]]) == 0
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True)["supernet"] for folder in (out, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("pages", [0, 1, 2, 3])
def test_a_disk_with_no_room_for_the_log_or_the_events(images, disk, capsys, pages):
    fill(disk, pages * os.sysconf("SC_PAGE_SIZE"))
    error = refused(capsys, *SMOKE, "--data.root", images, "--search.steps", 20, "--out", disk / "run")
    assert "No space left on device" in error
    assert not list(disk.glob("run/.*")) and not list(disk.glob("run/checkpoint.pt"))


def test_a_full_disk_is_one_line_to_the_very_end_of_the_process(images, tmp_path):
    """No thread and no destructor adds a traceback: here no file may grow beyond 2000 bytes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [sys.executable, "-m", "srnas_fast", *SMOKE, "--data.root", str(images), "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 27] File too large\n"


def test_a_read_only_folder(images, disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    error = refused(capsys, *SMOKE, "--data.root", images, "--out", disk / "run")
    assert error == f"error: {disk / 'run'}: Read-only file system\n"


@pytest.mark.parametrize("device", ["gpu", "", "cuda:0"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(InputError, match="give auto, cpu or cuda"):
        RunConfig(device=device)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 2**32}, {"threads": -1}, {"checkpoint_every": 0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="whole number from"):
        RunConfig(**settings)
