"""Depthwise convolutions and their gradients on Triton, against the reference in float64."""

import pytest
import torch

from srnas_fast.primitives import multi_depthwise
from srnas_fast.primitives.images import dense_format
from srnas_fast.primitives.multi_depthwise import multi_depthwise_reference

KERNELS = ["multi_depthwise", "multi_depthwise_backward"]
EVERY = range(2)  # x, kernels


def some(randn, x, sizes=(3, 1), dilations=(2, 1), stride=1):
    """The arguments for an input."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x, [randn(x.shape[1], 1, size, size, dtype=dtype) for size in sizes], list(dilations), stride


@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "slice of channels", "every second column"])
@pytest.mark.parametrize("shape, stride", [((2, 3, 3, 5), 1), ((1, 3, 6, 5), 2), ((1, 1, 1, 1), 2), ((1, 20, 2, 3), 1)])
def test_layouts(agree, randn, image, shape, stride, layout):
    arguments = some(randn, image(shape, layout), stride=stride)
    outputs = agree(multi_depthwise, multi_depthwise_reference, arguments, KERNELS, EVERY)
    assert all(z.is_contiguous(memory_format=dense_format(arguments[0])) for z in outputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_and_dilations(agree, randn, image, stride):
    arguments = some(randn, image((1, 2, 7, 5)), (7, 1, 5, 3), (1, 3, 2, 4), stride)
    agree(multi_depthwise, multi_depthwise_reference, arguments, KERNELS, EVERY)


@pytest.mark.parametrize("wanted", [(), (0,), (1,)])
def test_each_gradient(agree, randn, image, wanted):
    kernels = KERNELS if wanted else KERNELS[:1]
    agree(multi_depthwise, multi_depthwise_reference, some(randn, image((2, 3, 5, 7))), kernels, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(agree, randn, image, dtype):
    arguments = some(randn, image((2, 3, 5, 7), "channels_last", dtype))
    kernels = [] if dtype is torch.float64 else KERNELS
    outputs = agree(multi_depthwise, multi_depthwise_reference, arguments, kernels, EVERY)
    assert all(z.dtype is dtype for z in outputs)


def test_no_images(agree, randn, image):
    agree(multi_depthwise, multi_depthwise_reference, some(randn, image((0, 3, 5, 7))), KERNELS, EVERY)
