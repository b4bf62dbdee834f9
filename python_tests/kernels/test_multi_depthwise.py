"""Depthwise convolutions by Triton against the reference in float64."""

import pytest
import torch

pytest.importorskip("triton")

from srnas_fast.kernels.multi_depthwise import multi_depthwise, multi_depthwise_backward
from srnas_fast.primitives.multi_depthwise import multi_depthwise_reference


def image(device, layout, channels, size=(5, 7), dtype=torch.float32):
    """A random x (2, channels, *size) of the layout."""
    if layout == "channel slice":
        return torch.randn(2, channels + 2, *size, device=device).to(dtype)[:, 1 : 1 + channels]
    if layout == "column slice":
        return torch.randn(2, channels, size[0], 2 * size[1], device=device).to(dtype)[..., ::2]
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.randn(2, channels, *size, device=device).to(dtype).contiguous(memory_format=form)


def assert_near(result, expected, tolerance=1e-5):
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-3)
    )


def empty_outputs(x, count, stride):
    size = (x.shape[0], x.shape[1], (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1)
    form = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    return [torch.full(size, torch.nan, dtype=x.dtype, device=x.device).to(memory_format=form) for _ in range(count)]


def check(x, sizes, dilations, stride):
    """Outputs and all gradients against float64, and the same bits in a second run."""
    kernels = [torch.randn(x.shape[1], 1, size, size, device=x.device) for size in sizes]
    outputs, again = empty_outputs(x, len(sizes), stride), empty_outputs(x, len(sizes), stride)
    multi_depthwise(outputs, x, kernels, dilations, stride)
    multi_depthwise(again, x, kernels, dilations, stride)
    wide_x, *wide_kernels = (t.double().requires_grad_() for t in (x, *kernels))
    expected = multi_depthwise_reference(wide_x, wide_kernels, dilations, stride)
    dys = [torch.randn_like(out) for out in outputs]
    dys[0] = dys[0].new_ones(()).expand_as(dys[0])  # of no strides at all, as sum() gives it
    gradients = torch.autograd.grad(expected, [wide_x, *wide_kernels], [dy.double() for dy in dys])
    results = []
    for _ in range(2):
        dx, dkernels = torch.full_like(x, torch.nan), [torch.full_like(kernel, torch.nan) for kernel in kernels]
        multi_depthwise_backward(dx, dkernels, dys, x, kernels, dilations, stride)
        results.append([dx, *dkernels])
    for out, second, reference in zip(outputs, again, expected, strict=True):
        assert_near(out, reference.detach())
        assert torch.equal(out, second)
    for gradient, second, reference in zip(*results, gradients, strict=True):
        assert_near(gradient, reference)
        assert torch.equal(gradient, second)


@pytest.mark.parametrize("channels, stride", [(1, 2), (3, 1), (3, 2), (20, 1)])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "channel slice", "column slice"])
def test_layouts(device, layout, channels, stride):
    size = (3, 5) if channels == 20 else (5, 7)
    check(image(device, layout, channels, size), [3, 3], [1, 2], stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_and_dilations(device, stride):
    check(image(device, "NCHW", 1, (9, 6)), [7, 1, 5, 3], [1, 3, 2, 4], stride)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_one_pixel(device, stride):
    check(image(device, "NCHW", 3, (1, 1)), [3, 5], [1, 2], stride)


def test_more_tiles_than_programs(device, monkeypatch):
    monkeypatch.setattr("srnas_fast.kernels.multi_depthwise.PROGRAMS", 3)
    check(image(device, "NCHW", 1, (23, 24)), [3], [1], 1)


@pytest.mark.parametrize("want_x, want_kernels", [(True, False), (False, True)])
def test_wanted_gradients(device, want_x, want_kernels):
    x, kernels = image(device, "NCHW", 3), [torch.randn(3, 1, 3, 3, device=device)]
    dys = [torch.randn_like(x)]
    both = torch.empty_like(x), [torch.empty_like(kernels[0])]
    multi_depthwise_backward(*both, dys, x, kernels, [1], 1)
    dx, dkernels = torch.empty_like(x) if want_x else None, [torch.empty_like(kernels[0])] if want_kernels else None
    multi_depthwise_backward(dx, dkernels, dys, x, kernels, [1], 1)
    if want_x:
        assert torch.equal(dx, both[0])
    if want_kernels:
        assert torch.equal(dkernels[0], both[1][0])


def test_no_images(device):
    x, kernels = torch.empty(0, 2, 5, 7, device=device), [torch.randn(2, 1, 3, 3, device=device)]
    dkernels = [torch.ones_like(kernels[0])]
    multi_depthwise([torch.empty_like(x)], x, kernels, [1], 1)
    multi_depthwise_backward(torch.empty_like(x), dkernels, [torch.empty_like(x)], x, kernels, [1], 1)
    assert not dkernels[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(device, dtype):
    x = image(device, "channels_last", 3, dtype=dtype)
    kernels = [torch.randn(3, 1, 3, 3, device=device).to(dtype)]
    (out,), dx, dkernels = empty_outputs(x, 1, 1), torch.empty_like(x), [torch.empty_like(kernels[0])]
    dys = [torch.randn_like(out)]
    multi_depthwise([out], x, kernels, [1], 1)
    multi_depthwise_backward(dx, dkernels, dys, x, kernels, [1], 1)
    wide_x, kernel = x.float().requires_grad_(), kernels[0].float().requires_grad_()
    (expected,) = multi_depthwise_reference(wide_x, [kernel], [1], 1)
    gradients = torch.autograd.grad(expected, [wide_x, kernel], dys[0].float())
    tolerance = 2 * torch.finfo(dtype).eps
    for result, reference in zip([out, dx, *dkernels], [expected.detach(), *gradients], strict=True):
        torch.testing.assert_close(result.float(), reference.to(dtype).float(), rtol=tolerance, atol=1e-5)
