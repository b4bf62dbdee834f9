import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.backends import cpu_kernels
from srnas_fast.errors import InputError
from srnas_fast.primitives import channel_moments
from srnas_fast.primitives.channel_moments import channel_moments_reference

pytestmark = pytest.mark.usefixtures("backend")

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 12, 31, 33),
    (2, 20, 64, 64),
    (1, 48, 13, 129),
    (2, 513, 3, 3),
    (5, 2100, 1, 1),
]


def test_values_by_hand():
    z = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [2.0, 2.0]]])
    mean, variance = channel_moments(z)
    assert mean.tolist() == [4.0, 2.0] and variance.tolist() == [5.0, 0.0]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, form, dtype, tolerance):
    z = (torch.randn(shape, dtype=dtype) + 2).contiguous(memory_format=form).requires_grad_()
    exact_z = z.detach().double().requires_grad_()
    results, exact = channel_moments(z), channel_moments_reference(exact_z)
    factors = torch.randn(2, shape[1], dtype=dtype)
    for value, expected in zip(results, exact, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad(sum((f * r).sum() for f, r in zip(factors, results, strict=True)), z)
    (expected,) = torch.autograd.grad(sum((f * r).sum() for f, r in zip(factors.double(), exact, strict=True)), exact_z)
    assert ours.is_contiguous(memory_format=form)
    torch.testing.assert_close(ours.double(), expected, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 70), (2, 3, 4, 5, 6)])
def test_other_dimensions(shape):
    z = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(channel_moments(z), channel_moments_reference(z))


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_slices(form):
    z = torch.randn(2, 9, 11, 12, dtype=torch.float64).contiguous(memory_format=form)
    for part in (z[:, 2:5], z[1:], z[:, ::2, 1:-1, ::3], z.permute(3, 2, 0, 1)):
        torch.testing.assert_close(channel_moments(part), channel_moments_reference(part))


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_a_large_mean_costs_no_digits(form, mean):
    torch.manual_seed(0)
    z = (torch.randn(4, 12, 40, 41) + mean).contiguous(memory_format=form)
    _, variance = channel_moments(z)
    torch.testing.assert_close(variance.double(), channel_moments_reference(z.double())[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_an_outlier_at_a_start_and_channels_apart(form):
    """The centre of a piece is the mean of its first pixels: here they are unlike all others."""
    torch.manual_seed(0)
    z = torch.randn(2, 12, 64, 64) * 0.01 + torch.arange(12).view(12, 1, 1) * 1000
    z[:, :, 0, :2] -= 500
    z = z.contiguous(memory_format=form)
    _, variance = channel_moments(z)
    torch.testing.assert_close(variance.double(), channel_moments_reference(z.double())[1], rtol=2e-5, atol=0)


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_constant_channels_have_no_variance(form):
    z = torch.full((2, 12, 33, 65), 0.1).contiguous(memory_format=form)
    mean, variance = channel_moments(z)
    torch.testing.assert_close(mean, torch.full((12,), 0.1))
    assert (variance >= 0).all() and variance.max() < 1e-15


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_broken_numbers_stay_in_their_channel(form):
    z = torch.randn(2, 12, 64, 64).contiguous(memory_format=form)
    z[1, 3, 2, 5], z[0, 7, 0, 0], z[1, 8, 63, 63] = float("nan"), float("inf"), float("-inf")
    mean, variance = channel_moments(z)
    assert mean.isnan().nonzero().tolist() == [[3]] and mean[7] == float("inf") and mean[8] == float("-inf")
    assert variance.isnan().nonzero().flatten().tolist() == [3, 7, 8]


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_does_not_depend_on_the_number_of_threads(form):
    z = torch.randn(4, 12, 64, 65).contiguous(memory_format=form)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(channel_moments(z))
    finally:
        torch.set_num_threads(before)
    if cpu_kernels() is not None:
        for mean, variance in results[1:]:
            assert torch.equal(mean, results[0][0]) and torch.equal(variance, results[0][1])


def test_gradcheck_and_opcheck():
    for form in (NCHW, CHANNELS_LAST):
        z = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=form).requires_grad_()
        assert torch.autograd.gradcheck(channel_moments, (z,))
        assert torch.autograd.gradgradcheck(channel_moments, (z,))
        torch.library.opcheck(torch.ops.srnas_fast.channel_moments, (z,))
        torch.library.opcheck(torch.ops.srnas_fast.channel_moments, (z.detach()[:, 1:],))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = torch.randn(2, 3, 40, 40).to(dtype)
    for value, expected in zip(channel_moments(z), channel_moments_reference(z.double()), strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert channel_moments(z.bfloat16())[0].dtype == torch.float32


def test_counts_multiply_adds():
    with FlopCounterMode(display=False) as counter:
        channel_moments(torch.zeros(2, 3, 4, 5))
    assert counter.get_total_flops() == 2 * 2 * 120


@pytest.mark.parametrize(
    "z", [torch.zeros(3), torch.zeros(2, 3, 4).long(), torch.zeros(0, 3, 2, 2), torch.zeros(2, 3, 0)]
)
def test_wrong_inputs(z):
    with pytest.raises(InputError, match=r"give \(N, C, ...\)"):
        channel_moments(z)
