"""The super-resolution loss from its two terms."""

import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.losses import SuperResolutionLoss, hfen


def pair(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def test_the_sum_of_its_terms():
    restored, clean = pair((2, 3, 11, 15))
    l1, edges = 255 * (restored - clean).abs().mean().item(), hfen(restored, clean).item()
    assert l1 > 50 > 10 * edges > 0.1  # L1 counts gray levels
    assert SuperResolutionLoss()(restored, clean).item() == pytest.approx(l1 + 0.2 * edges, rel=1e-12)
    assert SuperResolutionLoss(2, 3)(restored, clean).item() == pytest.approx(2 * l1 + 3 * edges, rel=1e-12)
    assert SuperResolutionLoss(l1=0)(restored, clean).item() == pytest.approx(0.2 * edges, rel=1e-12)


def test_by_hand():
    """Constant images: no edges; one spot in one 7 x 7 window: L1 60 / 49, HFEN 1 against a flat image."""
    flat = torch.full((1, 3, 7, 7), 90 / 255, dtype=torch.float64)
    assert SuperResolutionLoss()(flat, flat - 8 / 255).item() == pytest.approx(8, abs=1e-9)
    dark = flat.clone()
    dark[..., 3, 3] -= 60 / 255
    assert SuperResolutionLoss()(dark, flat).item() == pytest.approx(60 / 49 + 0.2, abs=1e-9)


def test_equal_and_zero_images_cost_nothing():
    _, clean = pair((1, 3, 16, 16), torch.float32)
    assert SuperResolutionLoss()(clean, clean).item() == 0
    zero = torch.zeros(1, 3, 16, 16, requires_grad=True)
    loss = SuperResolutionLoss()(zero, torch.zeros(1, 3, 16, 16))
    assert loss.item() == 0 and torch.autograd.grad(loss, zero)[0].isfinite().all()


def test_gradcheck():
    restored, clean = pair((1, 3, 8, 9))
    assert torch.autograd.gradcheck(lambda x: SuperResolutionLoss()(x, clean), restored.requires_grad_())


def test_half_precision_and_autocast():
    restored, clean = pair((1, 3, 16, 16), torch.float32)
    expected = SuperResolutionLoss()(restored.bfloat16().float(), clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SuperResolutionLoss()(restored.bfloat16(), clean), expected)
    assert torch.equal(SuperResolutionLoss()(restored.bfloat16(), clean), expected) and expected.dtype == torch.float32


def test_without_hfen_small_images_are_fine():
    one, zero = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    assert SuperResolutionLoss(hfen=0)(one, zero).item() == 255
    with pytest.raises(InputError, match="7 pixels"):
        SuperResolutionLoss()(one, zero)


def test_shapes_must_match():
    with pytest.raises(InputError, match="equal shapes"):
        SuperResolutionLoss()(torch.ones(2, 3, 16, 16), torch.ones(1, 3, 16, 16))  # would broadcast


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["l1", "hfen"])
def test_bad_weights(name, weight):
    with pytest.raises(InputError, match=f"loss.{name} is"):
        SuperResolutionLoss(**{name: weight})


def test_two_weights_of_zero():
    with pytest.raises(InputError, match="nothing would be learnt"):
        SuperResolutionLoss(0, 0)
