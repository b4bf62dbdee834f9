"""What the tests of this room share."""

import os

import pytest
from torch import nn

from srnas_fast.mixed import program

# Everything here is computed by programs where they serve; with this variable set, by the branches beside them.
BRANCHES = "SRNAS_FAST_TEST_BRANCHES"


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Which of the two ways to compute a mixed operation the tests look at."""
    if os.environ.get(BRANCHES):
        monkeypatch.setattr(program, "enabled", False)


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
