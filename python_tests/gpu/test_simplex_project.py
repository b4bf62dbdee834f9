"""Rows of logits to weights and back on Triton, against the reference in float64."""

import pytest
import torch

from srnas_fast.primitives import simplex_project
from srnas_fast.primitives.simplex_project import simplex_project_reference

KERNELS = ["simplex_project", "simplex_project_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choices", [1, 3, 20])
def test_rows(agree, randn, choices, dtype):
    logits = randn(4, choices, dtype=dtype) * randn(4, 1, dtype=dtype).exp()
    of_rows = torch.tensor([0.0, 0.3, 0.7, 1.5], device=logits.device)
    for radius, as_published in [(0.5, True), (of_rows, False)]:
        agree(simplex_project, simplex_project_reference, (logits, radius, as_published), KERNELS, [0])
