"""Offsets inside of an image are int32 where that holds them, int64 elsewhere, and both find the same places."""

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
import triton.language as tl  # noqa: E402

from srnas_fast.kernels import multi_depthwise, separable_gradient, separable_sum  # noqa: E402
from srnas_fast.kernels.depthwise_tile import image_index  # noqa: E402


@pytest.mark.parametrize(
    "shape, index",
    [
        ((1, 1, 1, 1), tl.int32),
        ((2**40, 3, 5, 7), tl.int32),  # many images: the offset of each is int64 anyway
        ((1, 1, 2**15, 2**16), tl.int32),  # the last one stands at 2**31 - 1
        ((1, 2, 2**15, 2**16), tl.int64),
        ((1, 1, 2**15, 2**16 + 1), tl.int64),
    ],
)
def test_index(shape, index):
    x, small = (torch.empty(size, device="meta") for size in (shape, (1, 1, 1, 1)))
    assert image_index(x) == image_index(small, None, x) == index


def test_index_of_slices():
    wide = torch.empty(1, 4, 2**15, 2**16, device="meta")
    assert image_index(wide[:, :1]) == tl.int32
    assert image_index(wide[:, ::3]) == image_index(wide[:, :2, :4, :4]) == tl.int64
    assert image_index(torch.empty((), device="meta").expand(1, 2**20, 2**20, 2**20)) == tl.int32


def results(device):
    """All that the launchers give for one input with channels_last neighbours and one in NCHW."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(shape, generator=random).to(device)

    x, y = numbers(2, 3, 5, 7).contiguous(memory_format=torch.channels_last), numbers(2, 4, 3, 4)
    depthwise, pointwise = [numbers(3, 1, 3, 3), numbers(3, 1, 5, 5)], [numbers(4, 3) for _ in range(2)]
    centres, plan = numbers(2, 3), ([2, 1], 2)
    outputs, dx = [numbers(2, 3, 3, 4) for _ in range(2)], numbers(2, 3, 5, 7)
    multi_depthwise.multi_depthwise(outputs, x, depthwise, *plan)
    dkernels = [torch.empty_like(kernel) for kernel in depthwise]
    multi_depthwise.multi_depthwise_backward(dx, dkernels, outputs, x, depthwise, *plan)
    means, covariances, total = numbers(2, 3), numbers(2, 3, 3), numbers(2, 4, 3, 4)
    separable_sum.separable_moments(means, covariances, x, depthwise, *plan)
    separable_sum.separable_sum(total, False, x, depthwise, pointwise, None, means, *plan)
    left, right = [matrix.t() for matrix in pointwise], [numbers(3, 3) for _ in range(2)]
    dz, products = torch.zeros_like(x), [torch.empty_like(matrix) for matrix in pointwise]
    ddepthwise = [torch.empty_like(kernel) for kernel in depthwise]
    gradients = dz, None, ddepthwise, products
    separable_gradient.separable_gradient(*gradients, True, x, y, depthwise, left, right, None, centres, *plan)
    return [*outputs, dx, *dkernels, means, covariances, total, dz, *products, *ddepthwise]


def test_wide_offsets_give_the_same_bits(device, monkeypatch):
    narrow = results(device)
    asked = []
    for file in (multi_depthwise, separable_gradient, separable_sum):
        monkeypatch.setattr(file, "image_index", lambda *tensors: asked.append(tensors) or tl.int64)
    wide = results(device)
    assert len(asked) == 5  # one for each launcher
    assert all(torch.equal(*pair) for pair in zip(narrow, wide, strict=True))
