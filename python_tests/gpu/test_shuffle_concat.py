"""The store of partial channels and its gradients on Triton, against the reference in float64."""

import pytest
import torch

from srnas_fast.primitives import shuffle_concat, shuffle_concat_backward
from srnas_fast.primitives.images import dense_format
from srnas_fast.primitives.shuffle_concat import shuffle_concat_reference

KERNELS = ["shuffle_concat", "shuffle_concat_backward"]
LAYOUTS = ["NCHW", "channels_last", "slice of channels", "every second column"]
EVERY = [0, 1, 3]  # y, x, scale
SHAPES = [(2, 6, 5, 7, 3, 1), (2, 6, 4, 6, 2, 2), (1, 20, 1, 1, 4, 1), (1, 3, 2, 2, 1, 2)]  # N, C, H, W, groups, stride


@pytest.fixture
def some(randn, image):
    """A function: y, x, the number of groups and a scale."""

    def some(shape, layout="NCHW", y_layout=None, dtype=torch.float32):
        n, channels, height, width, groups, stride = shape
        y = image((n, channels // groups, height // stride, width // stride), y_layout or layout, dtype)
        scale = randn(dtype=torch.promote_types(dtype, torch.float32))
        return y, image((n, channels, height, width), layout, dtype), groups, scale

    return some


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts(agree, some, shape, layout):
    arguments = some(shape, layout)
    (out,) = agree(shuffle_concat, shuffle_concat_reference, arguments, KERNELS, EVERY)
    assert out.is_contiguous(memory_format=dense_format(arguments[1]))


@pytest.mark.parametrize("layout, y_layout", [("NCHW", "channels_last"), ("channels_last", "every second column")])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_layouts_that_differ(agree, some, shape, layout, y_layout):
    agree(shuffle_concat, shuffle_concat_reference, some(shape, layout, y_layout), KERNELS, EVERY)


@pytest.mark.parametrize("wanted", [(), *((k,) for k in EVERY)])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_each_gradient(agree, some, shape, wanted):
    kernels = KERNELS if wanted else KERNELS[:1]
    agree(shuffle_concat, shuffle_concat_reference, some(shape), kernels, wanted)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_without_a_scale(agree, some, shape):
    agree(shuffle_concat, shuffle_concat_reference, some(shape)[:3], KERNELS, [0, 1])


@pytest.mark.parametrize("dout_layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_backward(agree, some, image, shape, dout_layout):
    y, x, groups, scale = some(shape)
    dout = image((*x.shape[:2], *y.shape[2:]), dout_layout)
    for wanted in [(True, True), (False, True), (False, False)]:
        arguments = dout, x, groups, scale, *wanted
        agree(shuffle_concat_backward, shuffle_concat_backward, arguments, KERNELS[1:])


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(agree, some, dtype, shape):
    kernels = [] if dtype is torch.float64 else KERNELS
    (out,) = agree(shuffle_concat, shuffle_concat_reference, some(shape, dtype=dtype), kernels, EVERY)
    assert out.dtype is dtype


def test_no_images(agree, some):
    agree(shuffle_concat, shuffle_concat_reference, some((0, 6, 5, 7, 3, 1)), KERNELS, EVERY)
