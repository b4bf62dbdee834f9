"""Triton kernels are checked on a GPU, or on the CPU by Triton's interpreter in a process of its own."""

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "device" in item.fixturenames:
            item.add_marker("gpu")  # `pytest -m gpu` runs them there


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
