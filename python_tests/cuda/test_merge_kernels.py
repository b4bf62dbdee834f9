import pytest
import torch

from srnas_fast.primitives.merge_kernels import merge_kernels_reference

# (sizes, dilations): one kernel, all taps of one place, gaps between taps, more than one launch.
CANDIDATES = [
    ([1], [1]),
    ([3], [2]),
    ([1, 3, 5], [1, 1, 1]),
    ([3, 5, 3, 7], [3, 2, 1, 1]),
    ([3, 1] * 9, [1, 4] * 9),
]


def inputs(outputs, channels, sizes):
    torch.manual_seed(0)
    kernels = [torch.randn(outputs, channels, size, size) for size in sizes]
    kernels[0] = kernels[0].transpose(0, 1).contiguous().transpose(0, 1)  # of other strides
    return torch.randn(len(sizes)), kernels


def run(cuda, weights, kernels, dilations, dmerged):
    """(merged, dweights, *dkernels) by the kernels."""
    merged = torch.empty_like(dmerged)
    strides = [stride for kernel in kernels for stride in kernel.stride()]
    shape = list(merged.shape[:3]), [kernel.shape[-1] for kernel in kernels], strides, dilations
    places = weights.data_ptr(), [kernel.data_ptr() for kernel in kernels]
    cuda.merge_kernels(merged.data_ptr(), shape[0], *places, *shape[1:])
    dweights, dkernels = torch.empty_like(weights), [torch.empty(kernel.shape) for kernel in kernels]
    outputs = dweights.data_ptr(), [dkernel.data_ptr() for dkernel in dkernels]
    cuda.merge_kernels_backward(dmerged.data_ptr(), shape[0], *places, *shape[1:], *outputs)
    return merged, dweights, *dkernels


def reference(weights, kernels, dilations, dmerged):
    """The same in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (weights, *kernels)]
    merged = merge_kernels_reference(leaves[0], leaves[1:], dilations)
    return merged, *torch.autograd.grad(merged, leaves, dmerged.double())


@pytest.mark.parametrize("sizes, dilations", CANDIDATES)
@pytest.mark.parametrize("outputs, channels", [(1, 1), (3, 20), (20, 3)])
def test_against_the_reference(cuda, assert_same, outputs, channels, sizes, dilations):
    weights, kernels = inputs(outputs, channels, sizes)
    merged = max(dilation * (size - 1) + 1 for size, dilation in zip(sizes, dilations, strict=True))
    dmerged = torch.randn(outputs, channels, merged, merged)
    ours = run(cuda, weights, kernels, dilations, dmerged)
    assert_same(ours, reference(weights, kernels, dilations, dmerged))
    again = run(cuda, weights, kernels, dilations, dmerged)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_no_channels(cuda):
    weights, kernels = inputs(2, 0, [3])
    merged, dweights, dkernel = run(cuda, weights, kernels, [1], torch.empty(2, 0, 3, 3))
    assert dweights.tolist() == [0] and not merged.numel() and not dkernel.numel()
