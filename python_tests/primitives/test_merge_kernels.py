import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.backends import cpu_kernels
from srnas_fast.errors import InputError
from srnas_fast.primitives import merge_kernels
from srnas_fast.primitives.merge_kernels import merge_kernels_reference

pytestmark = pytest.mark.usefixtures("backend")

CASES = [
    ([1], [1]),
    ([1, 3, 5, 7], [1, 1, 1, 1]),
    ([3, 3, 5], [1, 8, 2]),
    ([1, 1], [4, 1]),  # the dilation of a single tap does not matter
    ([7, 3], [1, 4]),  # the smaller kernel reaches further
]


def inputs(sizes, outputs=4, channels=3, dtype=torch.float64):
    torch.manual_seed(0)
    kernels = [torch.randn(outputs, channels, size, size, dtype=dtype) for size in sizes]
    return torch.randn(len(sizes), dtype=dtype), kernels


@pytest.mark.parametrize("sizes, dilations", CASES)
@pytest.mark.parametrize("image", [(9, 12), (1, 1), (2, 5)])
def test_one_convolution_equals_the_sum(sizes, dilations, image):
    weights, kernels = inputs(sizes)
    x = torch.randn(2, 3, *image, dtype=torch.float64)
    merged = merge_kernels(weights, kernels, dilations)
    ours = F.conv2d(x, merged, padding=merged.shape[-1] // 2)
    expected = sum(
        weight * F.conv2d(x, kernel, padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)
        for weight, kernel, dilation in zip(weights, kernels, dilations, strict=True)
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sizes, dilations", CASES)
@pytest.mark.parametrize("outputs, channels", [(1, 1), (4, 3), (20, 20)])
def test_agrees_with_the_reference(sizes, dilations, outputs, channels, dtype, tolerance):
    weights, kernels = inputs(sizes, outputs, channels, dtype)
    kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels[::2]] + kernels[1::2]
    dilations = dilations[::2] + dilations[1::2]
    results = []
    for function, kind in ((merge_kernels, dtype), (merge_kernels_reference, torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_() for t in (weights, *kernels)]
        merged = function(leaves[0], leaves[1:], dilations)
        dmerged = torch.linspace(-1, 1, merged.numel(), dtype=kind).view_as(merged)
        dmerged = dmerged.contiguous(memory_format=torch.channels_last)
        results.append([merged, *torch.autograd.grad(merged, leaves, dmerged)])
    assert results[0][0].dtype == dtype and results[0][0].is_contiguous()
    for value, expected in zip(*results, strict=True):
        floor = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance * floor)


def test_sliced_kernels_and_weights():
    whole = torch.randn(8, 6, 5, 5, dtype=torch.float64)
    weights = torch.randn(4, dtype=torch.float64)[::2]
    kernels = [whole[::2, 3:, 1:4, 1:4], whole[4:, :3]]
    ours, expected = (f(weights, kernels, [1, 2]) for f in (merge_kernels, merge_kernels_reference))
    torch.testing.assert_close(ours, expected)


def test_gradcheck_and_opcheck():
    weights, kernels = inputs([1, 3, 3], 2, 3)
    leaves = [t.requires_grad_() for t in (weights, *kernels)]
    assert torch.autograd.gradcheck(lambda w, *k: merge_kernels(w, k, [1, 1, 2]), leaves)
    ops = torch.ops.srnas_fast
    torch.library.opcheck(ops.merge_kernels, (leaves[0], leaves[1:], [1, 1, 2]))
    plain = [t.detach() for t in leaves]
    dmerged = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.library.opcheck(ops.merge_kernels_backward, (dmerged, plain[0], plain[1:], [1, 1, 2]))


def test_does_not_depend_on_the_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weights, kernels = inputs([3, 5, 7], 20, 20, torch.float32)
            merged = merge_kernels(weights.requires_grad_(), kernels, [1, 1, 1])
            results.append([merged, *torch.autograd.grad((merged**2).sum(), [weights])])
    finally:
        torch.set_num_threads(before)
    if cpu_kernels() is not None:
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_and_autocast():
    weights, kernels = inputs([1, 3], dtype=torch.bfloat16)
    merged = merge_kernels(weights, kernels, [1, 1])
    exact = merge_kernels_reference(weights.float(), [kernel.float() for kernel in kernels], [1, 1])
    assert torch.equal(merged, exact.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert merge_kernels(weights, kernels, [1, 1]).dtype == torch.float32


def test_no_channels():
    assert merge_kernels(torch.ones(1), [torch.zeros(0, 3, 3, 3)], [1]).shape == (0, 3, 3, 3)


def test_counts_multiply_adds():
    weights, kernels = inputs([1, 3])
    with FlopCounterMode(display=False) as counter:
        merge_kernels(weights, kernels, [1, 1])
    assert counter.get_total_flops() == 2 * 12 * (1 + 9)


@pytest.mark.parametrize(
    "weights, shapes, dilations",
    [
        (1, [], []),
        (2, [(2, 3, 3, 3)], [1]),
        (1, [(2, 3, 3, 3)], [1, 1]),
        (1, [(2, 3, 3, 3)], [0]),
        (1, [(2, 3, 3, 3)], [1.5]),
        (1, [(2, 3, 2, 2)], [1]),
        (1, [(2, 3, 3, 5)], [1]),
        (1, [(2, 3, 3)], [1]),
        (2, [(2, 3, 3, 3), (2, 4, 3, 3)], [1, 1]),
    ],
)
def test_wrong_shapes(weights, shapes, dilations):
    with pytest.raises(InputError, match="do not go together"):
        merge_kernels(torch.ones(weights), [torch.zeros(shape) for shape in shapes], dilations)


def test_wrong_types():
    with pytest.raises(InputError, match="one floating type"):
        merge_kernels(torch.ones(2), [torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1).double()], [1, 1])
