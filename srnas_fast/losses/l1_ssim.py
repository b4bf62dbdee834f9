"""The loss of the super-resolution search of HiNAS and of its retraining."""

from dataclasses import dataclass

from torch.nn import functional as F

from srnas_fast.losses.similarity import SimilarityLoss


@dataclass
class L1SSIMLoss(SimilarityLoss):
    """``(l1 * L1 + log_ssim * S) / 2`` with ``S = -log10(mean SSIM)``, on images of the [0, 1] scale.

    HiNAS (arXiv 2012.13212) takes weights 1 and 0.6 for super-resolution, on RGB.

    Args:
        l1: weight of the mean absolute error, a number from 0 up (no unit; the error is on the [0, 1] scale).
        log_ssim: weight of the negative decimal logarithm of the mean SSIM, a number from 0 up (no unit).

    Raises:
        InputError: a weight is negative or not finite, or both are 0; when called, shapes differ or, with ``log_ssim``
            above 0, images are under 11 pixels a side.

    >>> import torch
    >>> clean = torch.full((1, 3, 16, 16), 0.5)
    >>> loss = L1SSIMLoss(l1=1.0, log_ssim=0.0)
    >>> round(loss(clean + 0.1, clean).item(), 6)
    0.05
    """

    l1: float = 1.0
    log_ssim: float = 0.6

    error = staticmethod(F.l1_loss)
