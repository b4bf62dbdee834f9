import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from srnas_fast.cli import main
from srnas_fast.errors import InputError
from srnas_fast.spaces import find_space
from srnas_fast.spaces.dlsr import BETA21
from srnas_fast.train import export, load


def assert_equal(a, b):
    assert a.space.name == b.space.name and not a.network.training and not b.network.training
    x = torch.rand(1, 1 if a.space.name == "hinas-denoise" else 3, 19, 24)
    with torch.no_grad():
        assert torch.equal(a.network(x), b.network(x))


def test_a_training_s_folder_its_checkpoint_and_an_export_of_it_are_one_network(trained, tmp_path):
    run = load(trained)
    assert run.name == "run" and run.space.name == "hinas-denoise" and run.config["data"]["sigma"] == [50.0]
    assert_equal(load(str(trained / "checkpoint.pt")), run)
    exported = load(export(trained, tmp_path / "net.safetensors"))
    assert exported.name == "net" and set(exported.config) == {"space", "genotype", "network"}
    assert_equal(exported, run)
    assert_equal(load(export(tmp_path / "net.safetensors", tmp_path / "again.safetensors")), run)


def test_a_training_has_its_folder_s_name_from_within(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert load(".").name == load("checkpoint.pt").name == "run"


def test_a_published_checkpoint(upscaler):
    found = load(upscaler)
    assert (found.name, found.space.name, found.network.genotype) == ("larger", "dlsr-x2", BETA21)
    assert found.config["network"] == {"width": 8, "scale": 2}


def test_a_training_of_dlsr(upscaler, tmp_path):
    find_space("dlsr-x2").save_genotype(BETA21, tmp_path / "genotype.json")
    settings = "--preset demo --network.width 6 --data.patch 32 --data.batch 1 --train.iterations 1 --threads 1"
    command = ["train", str(tmp_path / "genotype.json"), *settings.split(), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = load(tmp_path / "run")
    assert (run.space.name, run.network.config.width) == ("dlsr-x2", 6)
    assert_equal(load(export(tmp_path / "run", tmp_path / "net.safetensors")), run)


def spoiled(exported, tmp_path, weights=lambda weights: weights, **metadata):
    """The exported file with other weights or metadata; None takes an entry away."""
    content = json.loads(exported.read_bytes()[8 : 8 + int.from_bytes(exported.read_bytes()[:8], "little")])
    told = {key: value for key, value in (content["__metadata__"] | metadata).items() if value is not None}
    save_file(weights(load_file(exported)), tmp_path / "spoiled.safetensors", told)
    return tmp_path / "spoiled.safetensors"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "is no network of srnas_fast"),
        ({"space": "mars"}, "unknown search space 'mars'"),
        ({"space": None}, "lacks or spoils its genotype"),
        ({"genotype": "{"}, "lacks or spoils its genotype"),
        ({"genotype": "{}"}, "no DLSR genotype"),
        ({"genotype": "[" * 100_000}, "lacks or spoils its genotype"),
        ({"network": "[]"}, "settings that are not known here"),
        ({"network": '{"width": 9}'}, "do not fit its own network"),
        ({"network": '{"depth": 9}'}, "settings that are not known here"),
    ],
)
def test_spoiled_metadata_is_refused(upscaler, tmp_path, metadata, message):
    exported = tmp_path / "net.safetensors"
    export(upscaler, exported)
    with pytest.raises(InputError, match=message):
        load(spoiled(exported, tmp_path, **metadata))


def test_what_holds_no_network_is_named_and_refused(upscaler, tmp_path, genotype_file):
    exported = tmp_path / "net.safetensors"
    export(upscaler, exported)
    with pytest.raises(InputError, match="do not fit its own network"):
        load(spoiled(exported, tmp_path, weights=lambda weights: dict(list(weights.items())[1:])))
    (tmp_path / "torn.safetensors").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(InputError, match="torn.safetensors is damaged or no safetensors file"):
        load(tmp_path / "torn.safetensors")
    torch.save({"state_dict": {"conv.weight": torch.ones(3)}}, tmp_path / "other.pt")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    for path, message in (
        (tmp_path / "none.safetensors", "none.safetensors: no such file or folder; give the folder of a training"),
        (tmp_path / "none.pt", "none.pt: no such file or folder; give"),
        (tmp_path / "net.onnx", "net.onnx: ONNX files are for other programs; give"),
        (tmp_path / "other.pt", "other.pt is no published checkpoint of DLSR"),
        (tmp_path / "foreign.pt", "foreign.pt is no checkpoint of srnas_fast"),
        (tmp_path, "no checkpoint at"),
        (genotype_file, "damaged or no PyTorch checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            load(path)
