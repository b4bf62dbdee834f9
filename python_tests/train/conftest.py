import numpy as np
import pytest
import torch
from PIL import Image

from srnas_fast.cli import main
from srnas_fast.spaces import dlsr, find_space
from srnas_fast.spaces.dlsr.published import _published_name
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
    find_space("hinas-denoise").save_genotype(Genotype([CELL, CELL], [0, 1]), path)
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


@pytest.fixture(scope="session")
def make_upscaler():
    """A small DLSR network, in evaluation mode."""

    def make(scale=2, seed=0):
        torch.manual_seed(seed)
        genotype = dlsr.Genotype(["conv_3x3", "sep_conv_5x5", "dil_conv_3x3"], [(1, 2)])
        return dlsr.DerivedNetwork(genotype, dlsr.NetworkConfig(width=8, scale=scale)).eval()

    return make


@pytest.fixture(scope="session")
def upscaler(make_upscaler, tmp_path_factory):
    """A small DLSR network in the authors' format: its weights under their names; the genotype must be a known one."""
    torch.manual_seed(0)
    network = dlsr.DerivedNetwork(dlsr.BETA21, dlsr.NetworkConfig(width=8))
    path = tmp_path_factory.mktemp("published") / "larger.pt"
    torch.save({"state_dict": {_published_name(name): value for name, value in network.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="session")
def test_sets(tmp_path_factory):
    """Set5 and Set14 with images of odd sizes; their low-resolution images are still to be made."""
    root = tmp_path_factory.mktemp("sets")
    for name, size in (("Set5/HR/a", (50, 43)), ("Set5/HR/b", (41, 60)), ("Set14/HR/c", (37, 48))):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(*size, 3)).save(path)
    return root
