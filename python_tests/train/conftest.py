import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.spaces.hinas import DerivedNetwork, Genotype, NetworkConfig

CELL = [("con_c_3x3", 0), ("sep_c_5x5", 1), ("dil_c_3x3", 1), ("skip_connect", 2)]


@pytest.fixture(autouse=True)
def leave_the_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def smooth(height, width, channels=1, seed=0):
    """(H, W, C) pixels of 8 bits."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in np.moveaxis(coarse, 2, 0)
    ]
    return np.stack(planes, axis=2)


@pytest.fixture(scope="session")
def pixels():
    return smooth


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Four gray images of 40x48 pixels."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(4):
        Image.fromarray(smooth(40, 48, seed=i)[..., 0]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def make_network():
    """A network whose every layer counts, as after a training: the last convolution and the statistics are not idle."""

    def make(genotype=None, pyramid=False, seed=0):
        torch.manual_seed(seed)
        genotype = genotype or Genotype([CELL, CELL], [0, 1])
        net = DerivedNetwork(genotype, NetworkConfig(filters=4, pyramid=pyramid))
        with torch.no_grad():
            net.head[-1].weight.normal_(0, 0.2)
            net.head[-1].bias.normal_()
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 2)
                    if module.affine:
                        module.weight.uniform_(0.5, 1.5)
                        module.bias.normal_(0, 0.1)
        return net.eval()

    return make


@pytest.fixture(scope="session")
def genotype_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("genotype") / "genotype.json"
    Genotype([CELL, CELL], [0, 1]).save(path)
    return path


@pytest.fixture(scope="session")
def trained(genotype_file, images, tmp_path_factory, make_network):
    """The folder of a training of few steps; then its weights are replaced by ones of which every layer counts."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = ["--preset", "smoke", "--threads", "1", "--data.root", str(images), "--out", str(folder)]
    assert main(["train", str(genotype_file), *settings]) == 0
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    checkpoint["network"] = make_network().state_dict()
    torch.save(checkpoint, folder / "checkpoint.pt")
    return folder
