"""The denoising loss from its two terms."""

import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.losses import DenoisingLoss


def test_the_formula_on_constant_images():
    restored, clean = (
        torch.full((2, 1, 11, 15), 0.2, dtype=torch.float64),
        torch.full((2, 1, 11, 15), 0.6, dtype=torch.float64),
    )
    similarity = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    mse, s = 0.16, -math.log10(similarity)
    assert DenoisingLoss()(restored, clean).item() == pytest.approx((mse + 0.5 * s) / 2, abs=1e-12)
    assert DenoisingLoss(1, 0.6)(restored, clean).item() == pytest.approx((mse + 0.6 * s) / 2, abs=1e-12)
    assert DenoisingLoss(mse=0.0, log_ssim=2.0)(restored, clean).item() == pytest.approx(s, abs=1e-12)


def test_equal_images_cost_nothing():
    clean = torch.rand(1, 3, 16, 16)
    assert DenoisingLoss()(clean, clean).item() == pytest.approx(0, abs=1e-6)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 1, 12, 12, generator=generator, dtype=torch.float64)
    restored = clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: DenoisingLoss()(x, clean), restored.requires_grad_())


def test_without_ssim_small_images_are_fine():
    assert DenoisingLoss(log_ssim=0)(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item() == 0.5
    with pytest.raises(InputError, match="11 pixels"):
        DenoisingLoss()(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


def test_shapes_must_match():
    with pytest.raises(InputError, match="equal shapes"):
        DenoisingLoss()(torch.ones(2, 1, 16, 16), torch.ones(1, 1, 16, 16))  # would broadcast


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights(weight):
    with pytest.raises(InputError, match="log_ssim"):
        DenoisingLoss(log_ssim=weight)
