import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.simplex import linear_radius, radius_of, sparsestmax


def test_linear_from_the_first_step_to_the_last():
    assert [linear_radius(step, 6) for step in range(-2, 8)] == [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    assert linear_radius(-1, 1) == 0 and linear_radius(0, 1) == 1


@pytest.mark.parametrize("choices", [2, 3, 7, 55])
def test_sparsity_0_forces_none_out_and_1_all_but_one(choices):
    lowest = torch.zeros(choices, dtype=torch.float64)
    lowest[0] = -1e-3  # the first to go
    assert (sparsestmax(lowest, radius_of(0, choices) * (1 - 1e-6)) > 0).all()
    assert (sparsestmax(lowest, radius_of(0, choices) * (1 + 1e-6))[0] == 0).all()
    logits = torch.randn(20, choices)
    assert (sparsestmax(logits, radius_of(1, choices)).amax(-1) == 1).all()
    assert radius_of(0.25, choices) == pytest.approx(0.75 * radius_of(0, choices) + 0.25 * radius_of(1, choices))


def test_one_choice_needs_no_radius():
    assert radius_of(0.5, 1) == 0


@pytest.mark.parametrize("sparsity, choices", [(-0.1, 3), (1.1, 3), (math.nan, 3), (0.5, 0)])
def test_out_of_range(sparsity, choices):
    with pytest.raises(InputError, match="sparsity is"):
        radius_of(sparsity, choices)


def test_no_steps():
    with pytest.raises(InputError, match="steps are 0"):
        linear_radius(0, 0)
