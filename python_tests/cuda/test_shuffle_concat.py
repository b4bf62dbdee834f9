import pytest
import torch

from srnas_fast.primitives.images import address
from srnas_fast.primitives.shuffle_concat import shuffle_concat_reference

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# (images, part, groups, height, width) of the output
SHAPES = [(1, 1, 1, 1, 1), (2, 1, 3, 5, 7), (1, 5, 4, 3, 9), (2, 10, 2, 17, 11), (3, 20, 1, 2, 3)]


def inputs(shape, stride, form, sliced=False):
    """(y, x, scale, dout); `sliced`: y and x are slices of the channels and the columns of wider tensors."""
    torch.manual_seed(0)
    n, part, groups, height, width = shape

    def images(channels, height, width):
        if not sliced:
            return torch.randn(n, channels, height, width).contiguous(memory_format=form)
        wide = torch.randn(n, channels + 2, height, 2 * width).contiguous(memory_format=form)
        return wide[:, 1 : 1 + channels, :, ::2]

    x = images(part * groups, stride * height, stride * width)
    return images(part, height, width), x, torch.randn(()), images(part * groups, height, width)


def run(cuda, y, x, scale, dout, groups, want_x=True, want_scale=True):
    """(out, dy, dx, dscale) by the kernels, the last ones None where not wanted."""
    stride = x.shape[2] // y.shape[2] if y.shape[2] else 1
    shape = [x.shape[0], y.shape[1], groups, *y.shape[2:], stride]
    out, dy = torch.empty_like(dout), torch.empty_like(y)
    dx, dscale = torch.zeros_like(x) if want_x else None, torch.empty(()) if want_scale else None
    given = x.data_ptr(), x.stride(), address(scale)
    cuda.shuffle_concat(shape, y.data_ptr(), y.stride(), *given, out.data_ptr(), out.stride())
    cuda.shuffle_concat_backward(
        shape,
        dout.data_ptr(),
        dout.stride(),
        *given,
        dy.data_ptr(),
        dy.stride(),
        address(dx),
        dx.stride() if want_x else [0] * 4,
        address(dscale),
    )
    return out, dy, dx, dscale


def reference(y, x, scale, dout, groups):
    """The same in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (y, x, scale)]
    out = shuffle_concat_reference(*leaves[:2], groups, leaves[2])
    dy, dx, dscale = torch.autograd.grad(out, leaves, dout.double(), materialize_grads=True)
    return out, dy, dx, dscale


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(cuda, assert_same, shape, stride, form, sliced):
    tensors, groups = inputs(shape, stride, form, sliced), shape[2]
    ours = run(cuda, *tensors, groups)
    assert_same(ours, reference(*tensors, groups))
    again = run(cuda, *tensors, groups)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("want_x, want_scale", [(True, False), (False, True), (False, False)])
def test_what_is_not_wanted(cuda, assert_same, want_x, want_scale, stride):
    tensors = inputs((2, 3, 2, 5, 7), stride, NCHW)
    ours = run(cuda, *tensors, 2, want_x, want_scale)
    exact = reference(*tensors, 2)
    assert_same([a for a in ours if a is not None], [b for a, b in zip(ours, exact, strict=True) if a is not None])


def test_without_a_scale_and_without_images(cuda, assert_same):
    y, x, _, dout = inputs((2, 3, 2, 5, 7), 1, NCHW)
    ours = run(cuda, y, x, None, dout, 2, want_scale=False)
    assert_same(ours[:3], reference(y, x, torch.ones(()), dout, 2)[:3])
    assert run(cuda, y[:0], x[:0], None, dout[:0], 2)[3] == 0


def test_ties_and_nans_in_windows(cuda):
    nan = torch.nan
    windows = torch.tensor(
        [[1, 1, 1, 1], [0, 2, 2, 0], [nan, 3, 1, 0], [nan, 3, nan, 9], [0, 0, 5, nan], [-1, -2, 0, 0]]
    )
    x = torch.zeros(1, 2, 2, 12)
    x[0, 1] = windows.view(6, 2, 2).transpose(0, 1).reshape(2, 12)
    x.requires_grad_()
    y, dout = torch.zeros(1, 1, 1, 6), torch.arange(1.0, 13.0).view(1, 2, 1, 6)
    out = shuffle_concat_reference(y, x, 2)
    (dx,) = torch.autograd.grad(out, x, dout)
    ours = run(cuda, y, x.detach(), None, dout, 2, want_scale=False)
    torch.testing.assert_close(ours[0], out.detach(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[2], dx, rtol=0, atol=0)
