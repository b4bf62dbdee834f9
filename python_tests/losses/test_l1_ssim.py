"""The loss of HiNAS for super-resolution from its two terms."""

import math

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.losses import L1SSIMLoss, log_ssim


def test_the_formula_on_constant_images():
    restored, clean = (torch.full((2, 3, 11, 15), value, dtype=torch.float64) for value in (0.2, 0.6))
    similarity = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    l1, s = 0.4, -math.log10(similarity)
    assert L1SSIMLoss()(restored, clean).item() == pytest.approx((l1 + 0.6 * s) / 2, abs=1e-12)
    assert L1SSIMLoss(2.0, 0.0)(restored, clean).item() == pytest.approx(l1, abs=1e-12)
    assert L1SSIMLoss(l1=0.0, log_ssim=2.0)(restored, clean).item() == pytest.approx(s, abs=1e-12)


def test_the_sum_of_its_terms_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    clean, restored = (torch.rand(1, 2, 11, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    l1 = (restored - clean).abs().mean()
    assert L1SSIMLoss()(restored, clean).item() == pytest.approx(((l1 + 0.6 * log_ssim(restored, clean)) / 2).item())
    assert torch.autograd.gradcheck(lambda x: L1SSIMLoss()(x, clean), restored.requires_grad_())


def test_bad_weights_and_shapes():
    for name in ("l1", "log_ssim"):
        for value in (-0.1, math.nan, math.inf):
            with pytest.raises(InputError, match=f"loss.{name} is"):
                L1SSIMLoss(**{name: value})
    with pytest.raises(InputError, match="give l1 or log_ssim a number above 0"):
        L1SSIMLoss(0, 0)
    with pytest.raises(InputError, match="equal shapes"):
        L1SSIMLoss()(torch.ones(2, 3, 16, 16), torch.ones(1, 3, 16, 16))  # would broadcast
