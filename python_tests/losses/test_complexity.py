"""The complexity term by hand, its gradient, and the costs it is given."""

import math

import pytest
import torch
from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.losses import ComplexityLoss
from srnas_fast.metrics.candidates import candidate_costs

DLSR = [2.5, 22.5, 62.5, 122.5, 5.9, 7.5, 9.9, 2.95, 3.75]  # thousands of parameters at 50 channels


def dense(size, channels=6):
    return nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)


def test_by_hand():
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    expected = (0.25 * 10 + 0.75 * 30 + 10 + 0.5 * 10 + 0.5 * 30) / 40
    assert ComplexityLoss([10, 30])(weights).item() == pytest.approx(expected, abs=1e-15)
    assert ComplexityLoss([10, 30], coefficient=0.3)(weights).item() == pytest.approx(0.3 * expected, abs=1e-15)
    assert ComplexityLoss([1e9, 3e9])(weights).item() == pytest.approx(expected, abs=1e-15)  # the unit does not matter
    assert ComplexityLoss([10, 30], coefficient=0)(weights).item() == 0


def test_even_weights_cost_one_over_the_candidates_at_each_position():
    weights = torch.zeros(3, 9, dtype=torch.float64).softmax(1)
    assert ComplexityLoss(DLSR)(weights).item() == pytest.approx(3 / 9)


def test_gradient():
    logits = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ComplexityLoss(DLSR, 2.0)(x.softmax(1)), logits)
    weights = logits.softmax(1).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(ComplexityLoss(DLSR, 2.0)(weights), weights)
    expected = 2 * torch.tensor(DLSR, dtype=torch.float64) / sum(DLSR)
    assert torch.allclose(gradient, expected.expand(3, 9), atol=1e-15)


def test_descent_ends_at_the_cheapest_candidate():
    """The published term is detached from the graph and would leave the logits where they are."""
    logits = torch.zeros(2, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        ComplexityLoss(DLSR)(logits.softmax(1)).backward()
        optimizer.step()
    assert logits.argmax(1).tolist() == [0, 0]
    assert ComplexityLoss(DLSR)(logits.softmax(1)) < 0.2 * 2 / 9  # of what it was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    weights = torch.tensor([[0.25, 0.75]], dtype=dtype, requires_grad=True)
    loss = ComplexityLoss([1, 2])(weights)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.25 / 3 + 1.5 / 3)
    assert torch.autograd.grad(loss, weights)[0].dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ComplexityLoss([1, 2])(weights.float()).dtype == torch.float32


def test_sliced_weights_and_one_row():
    weights = torch.rand(3, 4, dtype=torch.float64)
    assert ComplexityLoss([1, 3])(weights[:, ::2]).item() == pytest.approx(
        ((weights[:, 0] + 3 * weights[:, 2]) / 4).sum().item()
    )
    assert ComplexityLoss([1, 3])(torch.tensor([0.5, 0.5])).item() == 0.5


@pytest.mark.parametrize("costs", [[1, -1], [1, math.nan], [math.inf], [0, 0], []])
def test_bad_costs(costs):
    with pytest.raises(InputError, match="cost"):
        ComplexityLoss(costs)


@pytest.mark.parametrize("coefficient", [-1, math.nan, math.inf])
def test_bad_coefficients(coefficient):
    with pytest.raises(InputError, match="coefficient"):
        ComplexityLoss([1, 2], coefficient)


@pytest.mark.parametrize("weights", [torch.ones(2, 3), torch.ones(2, 1), torch.ones(()), torch.ones(3, 2).long()])
def test_bad_weights(weights):
    with pytest.raises(InputError, match="one per candidate"):
        ComplexityLoss([1, 2])(weights)  # some would broadcast


def separable(size, channels=6):
    depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False))


@pytest.mark.parametrize("by, pixels", [("params", 1), ("madds", 2 * 9 * 11)])
def test_costs_of_candidates_by_hand(by, pixels):
    candidates = [nn.Identity(), dense(1), dense(3), separable(5)]
    expected = [0, 36, 324, 6 * 25 + 36]
    assert candidate_costs(candidates, by, (2, 6, 9, 11)) == [pixels * cost for cost in expected]


def test_counting_leaves_the_candidates_as_they_were():
    norm = nn.Sequential(dense(3), nn.BatchNorm2d(6)).double()
    assert candidate_costs([norm], "madds", (1, 6, 5, 5)) == [324 * 25]
    assert norm[1].training and norm[1].num_batches_tracked == 0


def test_costs_that_cannot_be_counted():
    for arguments, message in [
        (([], "params"), "no candidates"),
        (([dense(1)], "flops"), "params or madds"),
        (([dense(1)], "madds"), "give its shape"),
        (([dense(1)], "madds", (1, 5, 8, 8)), "cannot take an input of shape"),
    ]:
        with pytest.raises(InputError, match=message):
            candidate_costs(*arguments)
