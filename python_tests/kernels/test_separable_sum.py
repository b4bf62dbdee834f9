"""Sums of separable convolutions by Triton, and their moments, against the reference in float64."""

import pytest
import torch

pytest.importorskip("triton")

from srnas_fast.kernels.separable_sum import separable_moments, separable_sum
from srnas_fast.primitives.separable_moments import separable_moments_reference
from srnas_fast.primitives.separable_sum import separable_sum_reference


def image(device, layout, channels, size=(5, 7), dtype=torch.float32):
    """A random x (2, channels, *size) of the layout."""
    if layout == "channel slice":
        return torch.randn(2, channels + 2, *size, device=device).to(dtype)[:, 1 : 1 + channels]
    if layout == "column slice":
        return torch.randn(2, channels, size[0], 2 * size[1], device=device).to(dtype)[..., ::2]
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.randn(2, channels, *size, device=device).to(dtype).contiguous(memory_format=form)


def parameters(device, channels, outputs, sizes):
    """Random depthwise kernels, pointwise matrices, shift and centres."""
    depthwise = [torch.randn(channels, 1, size, size, device=device) for size in sizes]
    pointwise = [torch.randn(outputs, channels, device=device) for _ in sizes]
    shift, centres = torch.randn(outputs, device=device), torch.randn(len(sizes), channels, device=device)
    return depthwise, pointwise, shift, centres


def widened(value):
    """The same in float64."""
    if isinstance(value, list):
        return [widened(item) for item in value]
    return None if value is None else value.double()


def assert_near(result, expected, tolerance=1e-5):
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-3)
    )


def check_sum(x, outputs, sizes, dilations, stride, accumulate, with_shift=True, with_centres=True):
    """The sum against float64, written into a y of an odd layout, and the same bits in a second run."""
    depthwise, pointwise, shift, centres = parameters(x.device, x.shape[1], outputs, sizes)
    rest = (depthwise, pointwise, shift if with_shift else None, centres if with_centres else None)
    expected = separable_sum_reference(x.double(), *(widened(value) for value in rest), dilations, stride)
    n, o, h, w = expected.shape
    before = torch.randn(n, o, h, w, device=x.device) if accumulate else torch.full((n, o, h, w), torch.nan)
    ys = []
    for _ in range(2):
        whole = torch.zeros(n, h, o + 2, w, device=x.device)
        y = whole[:, :, 1:-1].transpose(1, 2)
        y.copy_(before)
        separable_sum(y, accumulate, x, *rest, dilations, stride)
        assert not whole[:, :, 0].any() and not whole[:, :, -1].any()
        ys.append(y)
    assert_near(ys[0], expected + before.double() if accumulate else expected)
    assert torch.equal(*ys)


def check_moments(x, sizes, dilations, stride):
    """Means and covariances against float64, and the same bits in a second run."""
    depthwise = [torch.randn(x.shape[1], 1, size, size, device=x.device) for size in sizes]
    results = []
    for _ in range(2):
        means = torch.full((len(sizes), x.shape[1]), torch.nan, device=x.device)
        covariances = torch.full((len(sizes), x.shape[1], x.shape[1]), torch.nan, device=x.device)
        separable_moments(means, covariances, x, depthwise, dilations, stride)
        results.append((means, covariances))
    expected = separable_moments_reference(x.double(), widened(depthwise), dilations, stride)
    for result, again, reference in zip(*results, expected, strict=True):
        assert_near(result, reference)
        assert torch.equal(result, again)
    assert torch.equal(results[0][1], results[0][1].transpose(1, 2))


@pytest.mark.parametrize("channels, outputs, stride", [(1, 3, 2), (3, 1, 1), (20, 17, 2)])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "channel slice", "column slice"])
def test_layouts(device, layout, channels, outputs, stride):
    x = image(device, layout, channels)
    check_sum(x, outputs, [3, 3], [1, 2], stride, accumulate=stride == 1)
    check_moments(x, [3, 3], [1, 2], stride)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("with_shift, with_centres", [(False, False), (True, False), (False, True)])
def test_optional_arguments(device, accumulate, with_shift, with_centres):
    check_sum(image(device, "NCHW", 3), 4, [3, 1], [1, 1], 1, accumulate, with_shift, with_centres)


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_and_dilations(device, stride):
    x = image(device, "NCHW", 2, (9, 6))
    check_sum(x, 2, [7, 1, 5, 3], [1, 3, 2, 4], stride, False)
    check_moments(x, [7, 1, 5, 3], [1, 3, 2, 4], stride)


@pytest.mark.parametrize("stride", [1, 3])
def test_one_pixel(device, stride):
    x = image(device, "NCHW", 3, (1, 1))
    check_sum(x, 2, [3, 5], [1, 2], stride, True)
    check_moments(x, [3, 5], [1, 2], stride)


def test_many_channels(device):
    """More outputs and channels than one tile holds."""
    x = image(device, "NCHW", 70, (3, 5))
    check_sum(x, 70, [3], [1], 1, False)
    check_moments(x, [3], [1], 1)


def test_more_tiles_than_programs(device, monkeypatch):
    monkeypatch.setattr("srnas_fast.kernels.separable_sum.PROGRAMS", 3)
    check_moments(image(device, "NCHW", 20, (11, 12)), [3], [1], 1)


def test_centres_are_subtracted_first(device):
    """An input far from zero loses nothing in y and in the covariances, whose sums are centred."""
    x = image(device, "NCHW", 3) * 0.01 + 1000
    depthwise, pointwise = [torch.ones(3, 1, 1, 1, device=device)], [torch.randn(4, 3, device=device)]
    means, covariances = torch.empty(1, 3, device=device), torch.empty(1, 3, 3, device=device)
    separable_moments(means, covariances, x, depthwise, [1], 1)
    assert_near(covariances, separable_moments_reference(x.double(), widened(depthwise), [1], 1)[1], 1e-4)
    y = torch.empty(2, 4, 5, 7, device=device)
    separable_sum(y, False, x, depthwise, pointwise, None, means, [1], 1)
    rest = (widened(depthwise), widened(pointwise), None, means.double())
    assert_near(y, separable_sum_reference(x.double(), *rest, [1], 1))


def test_no_images(device):
    depthwise, pointwise, shift, centres = parameters(device, 2, 3, [3])
    x, y = torch.empty(0, 2, 5, 7, device=device), torch.empty(0, 3, 5, 7, device=device)
    separable_sum(y, False, x, depthwise, pointwise, shift, centres, [1], 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(device, dtype):
    x = image(device, "channels_last", 3, dtype=dtype)
    depthwise, pointwise, shift, centres = parameters(device, 3, 4, [3])
    rest = (depthwise, pointwise, shift, centres, [1], 1)
    y = torch.empty(2, 4, 5, 7, dtype=dtype, device=device)
    separable_sum(y, False, x, *rest)
    expected = separable_sum_reference(x.float(), *rest)
    torch.testing.assert_close(y.float(), expected.to(dtype).float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    means, covariances = torch.empty(1, 3, device=device), torch.empty(1, 3, 3, device=device)
    separable_moments(means, covariances, x, depthwise, [1], 1)
    for result, reference in zip(
        (means, covariances), separable_moments_reference(x.double(), widened(depthwise), [1], 1), strict=True
    ):
        assert_near(result, reference)
