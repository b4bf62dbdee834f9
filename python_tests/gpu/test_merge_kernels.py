"""Merged kernels and their gradients on Triton, against the reference in float64."""

import pytest
import torch

from srnas_fast.primitives import merge_kernels
from srnas_fast.primitives.merge_kernels import merge_kernels_reference

KERNELS = ["merge_kernels", "merge_kernels_backward"]
EVERY = range(2)  # weights, kernels


def some(randn, outputs, channels, sizes, dilations, dtype=torch.float32):
    kernels = [randn(outputs, channels, size, size, dtype=dtype) for size in sizes]
    return randn(len(sizes), dtype=torch.promote_types(dtype, torch.float32)), kernels, dilations


@pytest.mark.parametrize("outputs, channels", [(1, 1), (3, 2), (4, 20)])
@pytest.mark.parametrize("sizes, dilations", [([3], [1]), ([3, 1, 5], [2, 1, 1]), ([3, 1] * 9, [1, 4] * 9)])
def test_sizes(agree, randn, outputs, channels, sizes, dilations):
    (merged,) = agree(
        merge_kernels, merge_kernels_reference, some(randn, outputs, channels, sizes, dilations), KERNELS, EVERY
    )
    assert merged.is_contiguous()


def test_layouts(agree, randn):
    weights, kernels, dilations = some(randn, 3, 4, [3, 3, 3], [1, 2, 1])
    kernels[0] = kernels[0].contiguous(memory_format=torch.channels_last)
    kernels[1] = kernels[1].mT
    kernels[2] = randn(3, 8, 3, 3)[:, 1::2]
    agree(merge_kernels, merge_kernels_reference, (weights, kernels, dilations), KERNELS, EVERY)


@pytest.mark.parametrize("wanted", [(), (0,), (1,)])
def test_each_gradient(agree, randn, wanted):
    kernels = KERNELS if wanted else KERNELS[:1]
    agree(merge_kernels, merge_kernels_reference, some(randn, 3, 2, [3, 1], [2, 1]), kernels, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(agree, randn, dtype):
    kernels = [] if dtype is torch.float64 else KERNELS
    arguments = some(randn, 3, 2, [3, 1], [2, 1], dtype)
    (merged,) = agree(merge_kernels, merge_kernels_reference, arguments, kernels, EVERY)
    assert merged.dtype is dtype
