"""What is measured: image quality (PSNR, SSIM), cost (parameters, Multi-Adds) and live tensor memory."""

from srnas_fast.metrics.cost import count_parameters, multi_adds
from srnas_fast.metrics.memory import LiveMemory
from srnas_fast.metrics.quality import psnr, ssim
from srnas_fast.metrics.super_resolution import compared_part, super_resolution_quality

__all__ = [
    "LiveMemory",
    "compared_part",
    "count_parameters",
    "multi_adds",
    "psnr",
    "ssim",
    "super_resolution_quality",
]
