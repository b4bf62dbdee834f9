import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.simplex import gumbel_softmax


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hard_weights_are_drawn_with_the_probabilities_of_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    weights = gumbel_softmax(probabilities.log().expand(20_000, 4), hard=True, generator=seeded())
    assert set(weights.unique().tolist()) == {0.0, 1.0} and (weights.sum(-1) == 1).all()
    torch.testing.assert_close(weights.mean(0), probabilities, rtol=0, atol=0.015)


def test_a_low_temperature_hardens():
    logits = torch.randn(500, 5)
    warm, cold = (gumbel_softmax(logits, t, generator=seeded()) for t in (1.0, 0.05))
    assert torch.equal(warm.argmax(-1), cold.argmax(-1))  # of the same noise
    assert warm.amax(-1).mean() < 0.8 < 0.95 < cold.amax(-1).mean()
    torch.testing.assert_close(warm.sum(-1), torch.ones(500))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_hard_weights_have_the_gradient_of_the_soft_ones(temperature):
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    dweights = torch.randn(6, 4, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(gumbel_softmax(logits, temperature, hard, seeded()), logits, dweights)[0]
        for hard in (False, True)
    ]
    assert torch.equal(*gradients)
    assert torch.autograd.gradcheck(lambda z: gumbel_softmax(z, temperature, generator=seeded()), logits)


@pytest.mark.parametrize("hard", [False, True])
def test_the_support_is_where_gradients_are(hard):
    logits = torch.tensor([[0.3, -math.inf, 0.1, -0.2]] * 8, requires_grad=True)
    weights, support = gumbel_softmax(logits, hard=hard, generator=seeded(), return_support=True)
    assert support.tolist() == [[True, False, True, True]] * 8
    (dlogits,) = torch.autograd.grad((weights * torch.randn(8, 4)).sum(), logits)
    assert torch.equal(dlogits != 0, support)
    assert (weights[:, 1] == 0).all()


def test_the_generator_decides_and_the_default_one_is_torchs():
    logits = torch.zeros(4, 6)
    assert torch.equal(gumbel_softmax(logits, generator=seeded(3)), gumbel_softmax(logits, generator=seeded(3)))
    assert not torch.equal(gumbel_softmax(logits, generator=seeded(3)), gumbel_softmax(logits, generator=seeded(4)))
    torch.manual_seed(5)
    first = gumbel_softmax(logits)
    torch.manual_seed(5)
    assert torch.equal(gumbel_softmax(logits), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("hard", [False, True])
def test_types_and_extremes(dtype, hard):
    logits = torch.tensor([[0.0, 6e4, -6e4], [-math.inf, -math.inf, 1.0]], dtype=dtype)
    weights = gumbel_softmax(logits, 1e-4, hard)
    assert weights.dtype == dtype and weights.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert gumbel_softmax(torch.zeros(3, 1, dtype=dtype), hard=hard).tolist() == [[1]] * 3


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_above_0(temperature):
    with pytest.raises(InputError, match="temperature"):
        gumbel_softmax(torch.zeros(3), temperature)


def test_broken_logits_are_named():
    with pytest.raises(InputError, match=r"row \(1,\).*NaN"):
        gumbel_softmax(torch.tensor([[0.0], [math.nan]]))
