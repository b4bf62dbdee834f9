"""Triton kernels, one file per primitive: arrays in, arrays out. Importing this package imports no Triton."""
