"""Triton kernels are checked on a GPU, or on the CPU by Triton's interpreter in a process of its own."""

import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from srnas_fast.backends.triton import why_not


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "device" in item.fixturenames:
            item.add_marker("gpu")  # `pytest -m gpu` runs them there


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    if torch.cuda.is_available():
        found = torch.device("cuda", torch.cuda.current_device())
        if failure := why_not(found):
            pytest.skip(failure.reason)
        return found
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1")


class Created(TorchDispatchMode):
    """Counts the bytes of all tensors that torch operations make; views of others and results written into are none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if any(declared.alias_info for declared in function._schema.returns):
            return result
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes += tensor.nbytes
        return result


class Idle:
    """A kernel that does not run: under the interpreter it would itself consist of torch operations."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@pytest.fixture
def idle():
    """What a kernel is replaced by where only its launcher is looked at."""
    return Idle()


@pytest.fixture
def bytes_created(monkeypatch, idle):
    """A function: the bytes of what a launcher makes beside its outputs, while the kernels of its file stand still."""

    def count(launch, kernels: list[str], *arguments) -> int:
        for name in kernels:
            monkeypatch.setattr(f"{launch.__module__}.{name}", idle)
        with Created() as created:
            launch(*arguments)
        return created.bytes

    return count
