"""Finds, builds and loads compiled code (``triton_kernel``, ``compiled_kernel``); ``report`` tells what is there."""

from srnas_fast.backends.compiled import compiled_kernel
from srnas_fast.backends.cpu import cpu_kernels
from srnas_fast.backends.triton import triton_kernel

__all__ = ["compiled_kernel", "cpu_kernels", "triton_kernel"]
