import pytest
import torch

from srnas_fast.primitives.images import address, dense_format
from srnas_fast.primitives.weighted_sum import _backward_reference, _read, channel_layout, weighted_sum_reference

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# One pixel; odd; columns of several periods and of one; runs for planes; several blocks share a channel.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (5, 20, 1, 1), (3, 20, 4, 8), (2, 3, 5, 6), (1, 1, 97, 101), (1, 3, 65, 67)]


def inputs(shape, count, per_channel, form, sliced):
    """(weights, zs, shift, centres, dy); `sliced`: the zs are slices of the channels of wider tensors."""
    torch.manual_seed(0)
    n, channels, *size = shape
    wide = [torch.randn(n, channels + 2 * sliced, *size).contiguous(memory_format=form) for _ in range(count)]
    zs = [z[:, 1 : 1 + channels] if sliced else z for z in wide]
    weights = torch.randn((count, channels) if per_channel else count)
    dy = torch.randn(shape).contiguous(memory_format=form)
    return weights, zs, torch.randn(channels), torch.randn(count, channels), dy


def forward(cuda, y, accumulate, weights, zs, shift, centres):
    form = dense_format(y)
    kept, places, blocks = _read(zs, form)
    cuda.weighted_sum(
        y.data_ptr(),
        accumulate,
        weights.data_ptr(),
        weights.ndim == 2,
        places,
        blocks,
        address(shift),
        address(centres),
        channel_layout(y, form),
    )
    return y


def backward(cuda, dy, weights, zs, centres, want_zs):
    """[dweights, dysum, *dzs], empty where not wanted; no dweights without zs."""
    form = dense_format(dy)
    kept, places, blocks = _read(zs, form)
    dweights = torch.empty_like(weights) if zs else torch.empty(0)
    dysum = torch.empty(dy.shape[1])
    dzs = [torch.empty_like(dy, memory_format=form) if want else torch.empty(0) for want in want_zs]
    cuda.weighted_sum_backward(
        dy.data_ptr(),
        weights.data_ptr(),
        weights.ndim == 2,
        places,
        blocks,
        address(centres),
        channel_layout(dy, form),
        dweights.data_ptr(),
        dysum.data_ptr(),
        [dz.data_ptr() if want else 0 for dz, want in zip(dzs, want_zs, strict=True)],
    )
    return [dweights, dysum, *dzs]


def double(tensors):
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(cuda, assert_same, shape, form, sliced, per_channel):
    weights, zs, shift, centres, dy = inputs(shape, 3, per_channel, form, sliced)
    exact = weighted_sum_reference(weights.double(), double(zs), shift.double(), centres.double())
    y = forward(cuda, torch.empty_like(dy), False, weights, zs, shift, centres)
    assert_same([y], [exact])
    y = forward(cuda, dy.clone(), True, weights, zs, shift, centres)
    assert_same([y], [exact + dy])
    wanted = [True, False, True]
    ours = backward(cuda, dy, weights, zs, centres, wanted)
    assert_same(ours, _backward_reference(dy.double(), weights.double(), double(zs), centres.double(), wanted))
    again = backward(cuda, dy, weights, zs, centres, wanted)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("count", [1, 8, 9, 17])
def test_more_tensors_than_a_launch_takes(cuda, assert_same, count):
    weights, zs, shift, _, dy = inputs((2, 3, 5, 7), count, True, NCHW, False)
    y = forward(cuda, torch.empty_like(dy), False, weights, zs, shift, None)
    assert_same([y], [weighted_sum_reference(weights.double(), double(zs), shift.double())])
    wanted = [k % 3 > 0 for k in range(count)]
    for read in (zs, []):
        ours = backward(cuda, dy, weights, read, None, wanted)
        assert_same(ours, _backward_reference(dy.double(), weights.double(), double(read), None, wanted))


def test_no_images(cuda):
    weights, zs, shift, centres, dy = inputs((0, 3, 5, 7), 2, False, NCHW, False)
    forward(cuda, dy, False, weights, zs, shift, centres)
    dweights, dysum, *_ = backward(cuda, dy, weights, zs, centres, [True, True])
    assert dweights.tolist() == [0, 0] and dysum.tolist() == [0, 0, 0]
