"""What the tests of this room share."""

import os

import pytest
from torch import nn

from srnas_fast.mixed import program

from ..gpu_programs.emulator import serve_cpu

# Everything here is computed by programs where they serve; with this variable set, by the branches beside them ...
BRANCHES = "SRNAS_FAST_TEST_BRANCHES"
# ... or by the programs of a GPU, emulated.
EMULATED = "SRNAS_FAST_TEST_EMULATED"


@pytest.fixture(autouse=True)
def engine(monkeypatch, tmp_path_factory):
    """Which of the three ways to compute a mixed operation the tests look at."""
    if os.environ.get(BRANCHES):
        monkeypatch.setattr(program, "enabled", False)
    elif os.environ.get(EMULATED):
        serve_cpu(monkeypatch, tmp_path_factory.getbasetemp())


@pytest.fixture
def on_cpu():
    """For tests of what programs of the CPU alone do: look at numbers, merge kernels, reach far."""
    if os.environ.get(EMULATED):
        pytest.skip("programs of a GPU do not do this")


@pytest.fixture
def branches(monkeypatch):
    """For tests of how the branches compute, whatever the others look at."""
    monkeypatch.setattr(program, "enabled", False)


@pytest.fixture
def replicated():
    """A function of a module: its copy as nn.DataParallel makes one for each GPU; it has no parameters of its own."""

    def replicate(module: nn.Module) -> nn.Module:
        copies = {part: part._replicate_for_data_parallel() for part in module.modules()}
        for part, copied in copies.items():
            for name, child in part._modules.items():
                copied._modules[name] = copies[child]
            for name, parameter in part._parameters.items():
                # The result of an operation, which brings gradients home.
                setattr(copied, name, parameter if parameter is None else 1 * parameter)
        return copies[module]

    return replicate
