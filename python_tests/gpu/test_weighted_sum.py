"""Weighted sums and their gradients on Triton, against the reference in float64."""

import pytest
import torch

from srnas_fast.primitives import weighted_sum, weighted_sum_, weighted_sum_backward
from srnas_fast.primitives.images import dense_format
from srnas_fast.primitives.weighted_sum import weighted_sum_reference

KERNELS = ["weighted_sum", "weighted_sum_backward"]
LAYOUTS = ["NCHW", "channels_last", "slice of channels", "every second column"]
EVERY = range(4)  # weights, zs, shift, centres


@pytest.fixture
def some(randn, image):
    """A function: weights, zs, shift and centres; the centres are far from 0, as are the z around them."""

    def some(shape, layout="NCHW", count=2, dtype=torch.float32):
        channels, parameters = shape[1], torch.promote_types(dtype, torch.float32)
        zs = [image(shape, layout, dtype) + 3 for _ in range(count)]
        return (
            randn(count, channels, dtype=parameters),
            zs,
            randn(channels, dtype=parameters),
            randn(count, channels, dtype=parameters) + 3,
        )

    return some


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (1, 20, 3, 4)])
def test_layouts(agree, some, shape, layout):
    arguments = some(shape, layout)
    (y,) = agree(weighted_sum, weighted_sum_reference, arguments, KERNELS, EVERY)
    assert y.is_contiguous(memory_format=dense_format(arguments[1][0]))


def test_layouts_that_differ(agree, some, image):
    weights, _, shift, centres = some((2, 3, 5, 7), count=len(LAYOUTS))
    zs = [image((2, 3, 5, 7), layout) for layout in LAYOUTS]
    agree(weighted_sum, weighted_sum_reference, (weights, zs, shift, centres), KERNELS, EVERY)


@pytest.mark.parametrize("shifted, centred", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_is_given(agree, some, per_channel, shifted, centred):
    weights, zs, shift, centres = some((2, 3, 5, 7))
    arguments = weights if per_channel else weights[:, 0], zs, shift if shifted else None, centres if centred else None
    agree(weighted_sum, weighted_sum_reference, arguments, KERNELS, EVERY)


def test_tensors_of_one_dimension(agree, randn):
    arguments = randn(2), [randn(7), randn(7)]
    agree(weighted_sum, weighted_sum_reference, arguments, KERNELS, [0, 1])


@pytest.mark.parametrize("wanted", [(), *((k,) for k in EVERY)])
def test_each_gradient(agree, some, wanted):
    kernels = KERNELS if wanted else KERNELS[:1]
    agree(weighted_sum, weighted_sum_reference, some((2, 3, 5, 7), count=9), kernels, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(agree, some, image, layout):
    def added(y, *arguments):
        y = torch.empty_strided(y.shape, y.stride(), device=y.device).copy_(y)
        assert weighted_sum_(y, *arguments) is y
        return y

    def reference(y, *arguments):
        return y + weighted_sum_reference(*arguments)

    arguments = some((2, 3, 5, 7), "channels_last" if layout == "channels_last" else "NCHW")
    agree(added, reference, (image((2, 3, 5, 7), layout), *arguments), ["weighted_sum"])


@pytest.mark.parametrize("dy_layout", LAYOUTS)
def test_backward(agree, some, image, dy_layout):
    weights, zs, _, centres = some((2, 3, 5, 7))
    dy = image((2, 3, 5, 7), dy_layout)
    for arguments in [
        (dy, weights, zs, centres),
        (dy, weights[:, 0], zs, None, True, [True, False]),
        (dy, weights, zs, centres, True, [False, False]),
        (dy, weights, [], None, False, [False, True]),
    ]:
        agree(weighted_sum_backward, weighted_sum_backward, arguments, KERNELS[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(agree, some, dtype):
    arguments = some((2, 3, 5, 7), "channels_last", dtype=dtype)
    (y,) = agree(weighted_sum, weighted_sum_reference, arguments, [] if dtype is torch.float64 else KERNELS, EVERY)
    assert y.dtype is dtype


def test_no_images(agree, some):
    agree(weighted_sum, weighted_sum_reference, some((0, 3, 5, 7)), KERNELS, EVERY)
