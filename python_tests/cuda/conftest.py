"""The CUDA kernels on a GPU or, emulated, on the CPU."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srnas_fast.backends.compiled import stream
from srnas_fast.backends.cuda import outcome
from srnas_fast.backends.toolchain import Unavailable


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("slow")  # emulated
            if "cuda" in item.fixturenames:
                item.add_marker("gpu")  # `pytest -m gpu` runs them there


@pytest.fixture(scope="session")
def built(request):
    """The module as it is on this machine: built for its GPU, or emulated."""
    if not torch.cuda.is_available():
        return request.getfixturevalue("emulated")
    result = outcome(torch.device("cuda", torch.cuda.current_device()))
    if isinstance(result, Unavailable):
        pytest.skip(result.reason)
    return result.module


@pytest.fixture
def cuda(built):
    """The kernels for float32, and in ``float64`` the others; new tensors are where they run.

    A kernel that reads what nobody has written to its scratch finds NaN.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def scratch(elements):
        return torch.full((elements,), torch.nan)

    def ready(part):
        functions = {name: function for name, function in vars(part).items() if not name.startswith("_")}
        return {name: partial(function, stream(device), scratch) for name, function in functions.items()}

    with device:
        yield SimpleNamespace(**ready(built.float32), float64=SimpleNamespace(**ready(built.float64)))


@pytest.fixture
def assert_same():
    """Compares float32 results with exact ones: 1e-5 of the largest entry, that of sums that cancel taken as 1."""

    def compare(ours, exact):
        for values, expected in zip(ours, exact, strict=True):
            largest = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
            torch.testing.assert_close(values.double(), expected.double(), rtol=0, atol=1e-5 * largest)

    return compare
