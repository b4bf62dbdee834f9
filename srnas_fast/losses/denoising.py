"""The loss of the denoising search and of its retraining."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from srnas_fast.errors import InputError
from srnas_fast.losses.ssim import log_ssim


@dataclass
class DenoisingLoss:
    """``(mse * MSE + log_ssim * S) / 2`` with ``S = -log10(mean SSIM)``, on images of the [0, 1] scale.

    HiNAS (arXiv 2012.13212) searches with weights 1 and 0.5 and retrains with 1 and 0.6.

    Args:
        mse: weight of the mean squared error, a number from 0 up (no unit; the error is on the [0, 1] scale).
        log_ssim: weight of the negative decimal logarithm of the mean SSIM, a number from 0 up (no unit).

    Raises:
        InputError: a weight is negative or not finite, or both are 0; when called, shapes differ or, with ``log_ssim``
            above 0, images are under 11 pixels a side.

    >>> import torch
    >>> clean = torch.full((1, 1, 16, 16), 0.5)
    >>> loss = DenoisingLoss(mse=1.0, log_ssim=0.0)
    >>> round(loss(clean + 0.1, clean).item(), 6)
    0.005
    """

    mse: float = 1.0
    log_ssim: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mse", "log_ssim"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"loss weight {name} is {weight}; give a finite number from 0 up")
        if not (self.mse or self.log_ssim):
            raise InputError("both loss weights are 0: nothing would be learnt; give mse or log_ssim a number above 0")

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        """The loss of (N, C, H, W) tensors, a scalar tensor."""
        if restored.shape != clean.shape:
            raise InputError(f"restored is {tuple(restored.shape)}, clean {tuple(clean.shape)}; give equal shapes")
        loss = self.mse * F.mse_loss(restored, clean)
        if self.log_ssim:
            loss = loss + self.log_ssim * log_ssim(restored, clean)
        return loss / 2
