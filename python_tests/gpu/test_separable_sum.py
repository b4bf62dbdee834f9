"""Sums of separable convolutions, their moments and gradients on Triton, against float64."""

from types import SimpleNamespace

import pytest
import torch

from srnas_fast.primitives import (
    separable_gradient,
    separable_gradient_,
    separable_moments,
    separable_sum,
    separable_sum_,
)
from srnas_fast.primitives.images import dense_format, output_size
from srnas_fast.primitives.separable_gradient import separable_gradient_reference
from srnas_fast.primitives.separable_moments import separable_moments_reference
from srnas_fast.primitives.separable_sum import separable_sum_reference

SUM, MOMENTS, GRADIENT = (
    ["separable_sum", "separable_gradient"],
    ["separable_moments", "separable_gradient"],
    ["separable_gradient"],
)
EVERY = range(5)  # of separable_sum: x, depthwise, pointwise, shift, centres
LAYOUTS = ["NCHW", "channels_last", "slice of channels", "every second column"]
# (N, C, H, W), O, stride
SHAPES = [((2, 3, 3, 5), 1, 1), ((1, 1, 6, 5), 3, 2), ((1, 20, 2, 3), 5, 1), ((1, 3, 1, 1), 4, 2)]
SMALL = SHAPES[1]


@pytest.fixture
def some(randn, image):
    """A function: what all the operations are given, and in ``sum``, ``moments``, ``gradient`` what each one takes."""

    def some(shape, outputs, stride, layout="NCHW", dtype=torch.float32, sizes=(3, 1), dilations=(2, 1)):
        channels, count, parameters = shape[1], len(sizes), torch.promote_types(dtype, torch.float32)

        def matrices(*shape):
            return [randn(*shape, dtype=parameters) for _ in sizes]

        x = image(shape, layout, dtype)
        depthwise = [randn(channels, 1, size, size, dtype=parameters) for size in sizes]
        centres = randn(count, channels, dtype=parameters)
        dy = image((shape[0], outputs, *output_size(x, stride)), layout, dtype)
        cross, offsets = (matrices(channels, outputs), matrices(channels, channels)), randn(count, channels)
        plan = list(dilations), stride
        return SimpleNamespace(
            sum=(x, depthwise, matrices(outputs, channels), randn(outputs, dtype=parameters), centres, *plan),
            moments=(x, depthwise, *plan),
            gradient=(x, dy, depthwise, *cross, offsets.to(parameters), centres, *plan),
        )

    return some


# ---- separable_sum


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, outputs, stride", SHAPES)
def test_sum(agree, some, shape, outputs, stride, layout):
    arguments = some(shape, outputs, stride, layout).sum
    (y,) = agree(separable_sum, separable_sum_reference, arguments, SUM, EVERY)
    assert y.is_contiguous(memory_format=dense_format(arguments[0]))


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_and_dilations(agree, some, stride):
    given = some((1, 2, 7, 5), 3, stride, sizes=(5, 1, 3), dilations=(1, 3, 2))
    agree(separable_sum, separable_sum_reference, given.sum, SUM, EVERY)


@pytest.mark.parametrize("shifted, centred", [(False, False), (True, False), (False, True)])
def test_what_is_given(agree, some, shifted, centred):
    x, depthwise, pointwise, shift, centres, *plan = some(*SMALL).sum
    arguments = x, depthwise, pointwise, shift if shifted else None, centres if centred else None, *plan
    agree(separable_sum, separable_sum_reference, arguments, SUM, EVERY)


@pytest.mark.parametrize("wanted", [(), *((k,) for k in EVERY)])
def test_each_gradient_of_the_sum(agree, some, wanted):
    agree(separable_sum, separable_sum_reference, some(*SMALL).sum, SUM if wanted else SUM[:1], wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sum_in_place(agree, some, image, layout):
    def added(y, *arguments):
        y = torch.empty_strided(y.shape, y.stride(), device=y.device).copy_(y)
        assert separable_sum_(y, *arguments) is y
        return y

    def reference(y, *arguments):
        return y + separable_sum_reference(*arguments)

    arguments = some((2, 3, 3, 5), 4, 1, "channels_last").sum
    agree(added, reference, (image((2, 4, 3, 5), layout), *arguments), SUM[:1])


# ---- separable_moments


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, outputs, stride", SHAPES)
def test_moments(agree, some, shape, outputs, stride, layout):
    arguments = some(shape, outputs, stride, layout).moments
    agree(separable_moments, separable_moments_reference, arguments, MOMENTS, [0, 1])


@pytest.mark.parametrize("wanted", [(), (0,), (1,)])
def test_each_gradient_of_the_moments(agree, some, wanted):
    kernels = MOMENTS if wanted else MOMENTS[:1]
    agree(separable_moments, separable_moments_reference, some(*SMALL).moments, kernels, wanted)


# ---- separable_gradient


@pytest.mark.parametrize("layout, dy_layout", [*zip(LAYOUTS, LAYOUTS, strict=True), ("NCHW", "channels_last")])
def test_gradient(agree, some, image, layout, dy_layout):
    x, dy, *rest = some((2, 3, 3, 5), 4, 1, layout).gradient
    arguments = x, image(dy.shape, dy_layout), *rest
    agree(separable_gradient, separable_gradient_reference, arguments, GRADIENT)


@pytest.mark.parametrize(
    "given, wanted",
    [
        (["dy", "left", "right", "offsets", "centres"], (True, False, False)),
        (["dy", "left", "right", "offsets"], (False, True, False)),
        (["dy", "left", "centres"], (False, False, True)),
        (["dy", "left"], (True, True, True)),
        (["right", "offsets", "centres"], (True, True, False)),
        (["offsets"], (False, True, False)),
    ],
)
def test_gradient_of_less(agree, some, given, wanted):
    x, dy, depthwise, left, right, offsets, centres, *plan = some(*SMALL).gradient
    values = dict(dy=dy, left=left, right=right, offsets=offsets, centres=centres)
    dy, *rest = (value if name in given else None for name, value in values.items())
    arguments = x, dy, depthwise, *rest, *plan, *wanted
    agree(separable_gradient, separable_gradient_reference, arguments, GRADIENT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_place(agree, some, image, layout):
    def added(dx, *arguments):
        dx = torch.empty_strided(dx.shape, dx.stride(), device=dx.device).copy_(dx)
        return [dx, *separable_gradient_(dx, *arguments)]

    def reference(before, *arguments):
        dx, *rest = separable_gradient_reference(*arguments)
        return [before + dx, *rest]

    shape, outputs, stride = SMALL
    agree(added, reference, (image(shape, layout), *some(*SMALL, "channels_last").gradient), GRADIENT)


# ---- all of them


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(agree, some, dtype):
    given, served = some(*SMALL, "channels_last", dtype), dtype is not torch.float64
    (y,) = agree(separable_sum, separable_sum_reference, given.sum, SUM if served else [], EVERY)
    assert y.dtype is dtype
    agree(separable_moments, separable_moments_reference, given.moments, MOMENTS if served else [], [0, 1])
    agree(separable_gradient, separable_gradient_reference, given.gradient, GRADIENT if served else [])


def test_no_images(agree, some):
    given = some((0, 3, 5, 7), 4, 1)
    agree(separable_sum, separable_sum_reference, given.sum, SUM, EVERY)
    agree(separable_gradient, separable_gradient_reference, given.gradient, GRADIENT)
