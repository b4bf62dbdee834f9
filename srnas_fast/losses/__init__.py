"""What a search and a training minimise: differentiable SSIM and the losses built on it."""

from srnas_fast.losses.denoising import DenoisingLoss
from srnas_fast.losses.ssim import log_ssim, ssim

__all__ = ["DenoisingLoss", "log_ssim", "ssim"]
