"""What a search and a training minimise: the losses of images, and what an architecture would cost."""

from srnas_fast.losses.complexity import ComplexityLoss
from srnas_fast.losses.denoising import DenoisingLoss
from srnas_fast.losses.hfen import hfen
from srnas_fast.losses.l1_ssim import L1SSIMLoss
from srnas_fast.losses.ssim import log_ssim, ssim
from srnas_fast.losses.super_resolution import SuperResolutionLoss

__all__ = ["ComplexityLoss", "DenoisingLoss", "L1SSIMLoss", "SuperResolutionLoss", "hfen", "log_ssim", "ssim"]
