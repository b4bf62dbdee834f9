"""Finds, builds and loads compiled code (``cpu_kernels``, ``triton_kernel``); ``report`` tells what is there."""

from srnas_fast.backends.cpu import cpu_kernels
from srnas_fast.backends.triton import triton_kernel

__all__ = ["cpu_kernels", "triton_kernel"]
