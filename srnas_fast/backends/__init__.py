"""Finds, builds and loads compiled code (``cpu_kernels``); ``backends.report`` tells what this machine can do."""

from srnas_fast.backends.cpu import cpu_kernels

__all__ = ["cpu_kernels"]
