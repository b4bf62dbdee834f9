import pytest
import torch

from srnas_fast.primitives.merge_kernels import merge_kernels_reference, taps_of

pytest.importorskip("triton", exc_type=ImportError)
from srnas_fast.kernels import merge_kernels as kernels  # noqa: E402

CASES = [  # outputs, inputs, sizes, dilations
    (1, 1, [1], [1]),
    (3, 20, [3], [2]),
    (20, 3, [3, 5, 7, 1], [1, 1, 1, 1]),
    (5, 4, [3, 3, 5, 7], [1, 3, 2, 1]),
    (2, 3, [3, 1, 5, 3, 3, 7, 3, 1, 3, 5, 3], [1, 4, 2, 2, 3, 1, 1, 1, 4, 1, 2]),  # more than go into one launch
]


def some_kernels(outputs, inputs, sizes, dtype=torch.float32):
    random = torch.Generator().manual_seed(3)
    made = [torch.randn(outputs, inputs, size, size, generator=random) for size in sizes]
    return torch.randn(len(sizes), generator=random), [kernel.to(dtype) for kernel in made]


def size_of(sizes, dilations):
    return max(dilation * (size - 1) + 1 for size, dilation in zip(sizes, dilations, strict=True))


def merge(weights, parts, dilations, device):
    size = size_of([part.shape[-1] for part in parts], dilations)
    merged = torch.full((*parts[0].shape[:2], size, size), torch.nan, dtype=parts[0].dtype, device=device)
    kernels.merge_kernels(merged, weights.to(device), [part.to(device) for part in parts], dilations)
    return merged.cpu()


def backward(dmerged, weights, parts, dilations, device):
    parts = [part.to(device) for part in parts]
    dweights, dparts = (
        torch.full_like(weights, torch.nan, device=device),
        [torch.full_like(part, torch.nan) for part in parts],
    )
    kernels.merge_kernels_backward(dweights, dparts, dmerged.to(device), weights.to(device), parts, dilations)
    return [dweights.cpu(), *(dpart.cpu() for dpart in dparts)]


def close(found, expected, dtype=torch.float32):
    """To 1e-5 of the largest entry, or to the rounding of a half type."""
    relative = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    expected = expected.double()
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=relative * expected.abs().max().item())


@pytest.mark.parametrize("outputs, inputs, sizes, dilations", CASES)
def test_merge(outputs, inputs, sizes, dilations, device):
    weights, parts = some_kernels(outputs, inputs, sizes)
    expected = merge_kernels_reference(weights.double(), [part.double() for part in parts], dilations)
    close(merge(weights, parts, dilations, device), expected)


def gradients(dmerged, weights, parts, dilations):
    """By autograd through the reference, in float64."""
    weights, parts = weights.double().requires_grad_(), [part.double().requires_grad_() for part in parts]
    merged = merge_kernels_reference(weights, parts, dilations)
    return torch.autograd.grad(merged, [weights, *parts], dmerged.double())


@pytest.mark.parametrize("outputs, inputs, sizes, dilations", CASES)
def test_backward(outputs, inputs, sizes, dilations, device):
    weights, parts = some_kernels(outputs, inputs, sizes)
    size = size_of(sizes, dilations)
    dmerged = torch.randn(outputs, inputs, size, size, generator=torch.Generator().manual_seed(4))
    found = backward(dmerged, weights, parts, dilations, device)
    for gradient, expected in zip(found, gradients(dmerged, weights, parts, dilations), strict=True):
        close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, device):
    sizes, dilations = [3, 5, 3], [1, 1, 3]
    weights, parts = some_kernels(4, 3, sizes, dtype)
    close(merge(weights, parts, dilations, device), merge_kernels_reference(weights, parts, dilations), dtype)
    dmerged = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(4)).to(dtype)
    dweights, *dparts = backward(dmerged, weights, parts, dilations, device)
    expected, *dexpected = gradients(dmerged, weights, parts, dilations)
    close(dweights, expected)
    for dpart, gradient in zip(dparts, dexpected, strict=True):
        close(dpart, gradient, dtype)


def test_strides(device):
    dilations = [1, 2]
    weights, (small, wide) = some_kernels(6, 5, [3, 5])
    sliced = torch.stack([weights, -weights], 1)[:, 0]
    strided = [small.to(memory_format=torch.channels_last), wide.transpose(0, 1)[:, ::2].transpose(0, 1)]
    parts = [strided[0][::2], strided[1]]
    expected = merge_kernels_reference(weights.double(), [part.double() for part in parts], dilations)
    merged = torch.empty(3, 5, 9, 9, device=device).to(memory_format=torch.channels_last)
    on_device = [part.to(device) for part in parts]
    kernels.merge_kernels(merged, sliced.to(device), on_device, dilations)
    close(merged.cpu(), expected)
    dparts = [torch.empty_like(part.transpose(2, 3)).transpose(2, 3) for part in on_device]
    dweights = torch.empty(2, device=device)
    kernels.merge_kernels_backward(dweights, dparts, merged, sliced.to(device), on_device, dilations)
    taps = [taps_of(merged.cpu().double(), 3, 1), taps_of(merged.cpu().double(), 5, 2)]
    close(dweights.cpu(), torch.stack([(a * b).sum() for a, b in zip(parts, taps, strict=True)]))
    for dpart, weight, tap in zip(dparts, weights, taps, strict=True):
        close(dpart.cpu(), weight.double() * tap)


def test_repeats_to_the_bit(device):
    sizes, dilations = [3, 5, 7], [1, 1, 1]
    weights, parts = some_kernels(8, 8, sizes)
    dmerged = merge(weights, parts, dilations, device)
    assert torch.equal(dmerged, merge(weights, parts, dilations, device))
    twice = [backward(dmerged, weights, parts, dilations, device) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*twice, strict=True))
