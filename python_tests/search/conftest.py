import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def leave_the_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Eight smooth gray images of 40x48 pixels."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(8):
        coarse = Image.fromarray(random.integers(0, 256, (6, 7), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder
