import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.simplex import masked_softmax, softmax


def test_values_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0), 100.0]], dtype=torch.float64)
    weights = masked_softmax(logits, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64))
    assert weights[0, 2].item() == 0.0


@pytest.mark.parametrize("shape", [(7,), (1, 1), (3, 14, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_mask_is_softmax(shape, dtype):
    logits = torch.randn(shape, dtype=dtype)
    weights = masked_softmax(logits)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, logits.exp() / logits.exp().sum(-1, keepdim=True))


def test_large_logits_do_not_overflow():
    weights = masked_softmax(torch.tensor([1000.0, 1000.0, -1000.0]))
    assert weights.tolist() == [0.5, 0.5, 0.0]


def test_illegal_entries_get_exact_zeros_and_change_nothing():
    legal = torch.tensor([[True, True, False], [False, True, False]])
    logits = torch.randn(2, 3, requires_grad=True)
    other = torch.where(legal, logits.detach(), torch.tensor(1e30))
    weights = masked_softmax(logits, legal)
    assert (weights[~legal] == 0).all()
    assert weights[1].tolist() == [0.0, 1.0, 0.0]
    assert torch.equal(weights, masked_softmax(other, legal))
    (gradient,) = torch.autograd.grad((weights * torch.randn(2, 3)).sum(), logits)
    assert (gradient[~legal] == 0).all()
    assert (gradient[0, :2] != 0).all()


def test_minus_infinity_is_illegal():
    logits = torch.tensor([0.0, -math.inf, 0.0], requires_grad=True)
    weights = masked_softmax(logits)
    assert weights.tolist() == [0.5, 0.0, 0.5]
    weights[0].backward()
    assert logits.grad.tolist() == [0.25, 0.0, -0.25]


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked):
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    legal = torch.tensor([True, False, True, True]) if masked else None
    assert torch.autograd.gradcheck(masked_softmax, (logits, legal))
    assert torch.autograd.gradgradcheck(masked_softmax, (logits, legal))


def test_rows_of_length_one_and_no_rows():
    assert masked_softmax(torch.tensor([[3.0], [-9.0]])).tolist() == [[1.0], [1.0]]
    assert masked_softmax(torch.empty(0, 7)).shape == (0, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits_name_the_row(value):
    logits = torch.zeros(3, 14, 7)
    logits[2, 5, 1] = value
    with pytest.raises(InputError, match=r"row \(2, 5\).*NaN or \+inf"):
        masked_softmax(logits)


def test_row_with_nothing_legal_is_named():
    legal = torch.ones(6, 3, dtype=torch.bool)
    legal[4] = False
    with pytest.raises(InputError, match=r"row \(4,\).*no legal entry"):
        masked_softmax(torch.zeros(6, 3), legal)
    with pytest.raises(InputError, match="no legal entry"):
        masked_softmax(torch.full((2,), -math.inf))
    with pytest.raises(InputError, match="no legal entry"):
        masked_softmax(torch.empty(3, 0))


@pytest.mark.parametrize("legal", [torch.ones(2, 3), torch.ones(4, dtype=torch.bool)])
def test_wrong_mask(legal):
    with pytest.raises(InputError, match=r"give booleans.*\(2, 3\)"):
        masked_softmax(torch.zeros(2, 3), legal)


@pytest.mark.parametrize("logits", [torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1.0)])
@pytest.mark.parametrize("function", [softmax, masked_softmax])
def test_wrong_logits(logits, function):
    with pytest.raises(InputError, match="give floating rows"):
        function(logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_support_is_what_is_not_zero(dtype):
    logits = torch.tensor([[0.5, -math.inf, 0.25], [0.0, -6e4, 0.0]], dtype=dtype, requires_grad=True)
    weights, support = softmax(logits, return_support=True)
    torch.testing.assert_close(weights, logits.double().softmax(-1).to(dtype))
    assert support.tolist() == [[True, False, True]] * 2
    (dlogits,) = torch.autograd.grad((weights * torch.tensor([1.0, 2, 3], dtype=dtype)).sum(), logits)
    assert torch.equal(dlogits != 0, support)
    assert torch.equal(masked_softmax(logits), weights)
