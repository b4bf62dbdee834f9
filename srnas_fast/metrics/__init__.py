"""What is measured: image quality (PSNR, SSIM), cost (parameters, Multi-Adds) and live tensor memory."""

from srnas_fast.metrics.cost import count_parameters, multi_adds
from srnas_fast.metrics.memory import LiveMemory
from srnas_fast.metrics.quality import psnr, ssim

__all__ = ["LiveMemory", "count_parameters", "multi_adds", "psnr", "ssim"]
