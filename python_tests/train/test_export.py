import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from srnas_fast.cli import main
from srnas_fast.errors import InputError
from srnas_fast.train import export, load
from srnas_fast.train.load import NETWORK

module = sys.modules["srnas_fast.train.export"]  # the package's attribute of this name is the function

SIZES = [(15, 16), (33, 47), (64, 51)]


@pytest.fixture(params=["denoising", "super-resolution"])
def network(request, trained, make_upscaler, tmp_path_factory):
    """The folder of a training, and the file of a network that enlarges."""
    if request.param == "denoising":
        return trained
    made = make_upscaler(scale=3)
    config = {"genotype": asdict(made.genotype), "network": asdict(made.config)}
    file = tmp_path_factory.mktemp("small") / "small.safetensors"
    metadata = {"format": NETWORK, "space": "dlsr-x2"} | {key: json.dumps(value) for key, value in config.items()}
    save_file(made.state_dict(), file, metadata)
    return file


def channels(trained):
    return 1 if trained.space.name == "hinas-denoise" else 3


def test_safetensors_hold_the_very_network(network, tmp_path):
    file = tmp_path / "deep" / "net.safetensors"
    assert main(["export", str(network), str(file)]) == 0
    assert [path.name for path in file.parent.iterdir()] == ["net.safetensors"]
    before, after = load(network), load(file)
    with safe_open(file, "pt") as opened:
        assert set(opened.metadata()) == {"format", "space", "genotype", "network"}
    for size in SIZES:
        x = torch.rand(1, channels(before), *size)
        with torch.no_grad():
            assert torch.equal(before.network(x), after.network(x))


def test_onnx_of_any_size(network, tmp_path, capsys):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    assert main(["export", str(network), str(file)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"written: {file}, ") and "from PyTorch" in told.out and not told.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    trained, session = load(network), runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["space"] == trained.space.name
    for size in SIZES:
        x = torch.rand(1, channels(trained), *size)
        with torch.no_grad():
            expected = trained.network(x)
        (found,) = session.run(["restored"], {"image": x.numpy()})
        assert torch.allclose(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_onnx_that_computes_something_else_is_not_written(trained, tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    (tmp_path / "net.onnx").write_text("the older one")
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differ by .*nothing is written"):
        export(trained, tmp_path / "net.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the older one"]


def test_onnx_without_its_packages_tells_what_to_install(upscaler, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime, or 'srnas-fast.onnx.'"):
        export(upscaler, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["net.pth", "net", "onnx"])
def test_another_suffix_is_refused(upscaler, tmp_path, name):
    with pytest.raises(InputError, match="ends in .onnx or .safetensors"):
        export(upscaler, tmp_path / name)


def test_a_network_that_cannot_be_read_leaves_nothing(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "net.safetensors")]) == 2
    assert "none: no such file or folder; give" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_file(upscaler, tmp_path, monkeypatch, capsys):
    file = tmp_path / "net.safetensors"
    file.write_text("older")

    def full(self, content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["export", str(upscaler), str(file)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert file.read_text() == "older" and list(tmp_path.iterdir()) == [file]


def test_a_folder_is_refused(upscaler, tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(InputError, match="net.onnx is a folder; give the name of a file"):
        export(upscaler, tmp_path / "net.onnx")
