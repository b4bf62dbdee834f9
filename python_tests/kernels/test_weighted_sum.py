import pytest
import torch

from srnas_fast.primitives.weighted_sum import weighted_sum_reference

pytest.importorskip("triton", exc_type=ImportError)
from srnas_fast.kernels import weighted_sum as kernels  # noqa: E402

LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "channels of nchw": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : -x.shape[1]],
    "channels of channels_last": lambda x: torch.cat([x, x, x], 1).to(memory_format=torch.channels_last)[
        :, x.shape[1] : -x.shape[1]
    ],
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "every second row and column": lambda x: x.repeat_interleave(2, 3).repeat_interleave(2, 2)[:, :, 1::2, ::2],
}
SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 20, 9, 4), (1, 40, 33, 1), (2, 1, 1, 1100)]
# weights per channel, shift, centres
EXTRAS = [(False, False, False), (True, False, False), (False, True, False), (True, True, True), (False, False, True)]


def some(shape, count, per_channel=False, shift=False, centres=False, dtype=torch.float32, layout=lambda x: x):
    """(weights, zs, shift, centres); the centres are far from 0, as are the z around them."""
    random = torch.Generator().manual_seed(5)
    channels = shape[1] if len(shape) > 1 else 1
    weights = torch.randn(*((count, channels) if per_channel else (count,)), generator=random)
    middle = 3 + torch.randn(count, channels, generator=random) if centres else None
    zs = [layout((torch.randn(shape, generator=random) + 3 * centres).to(dtype)) for _ in range(count)]
    return weights, zs, torch.randn(channels, generator=random) if shift else None, middle


def to(device, values):
    """Tensors, lists of them and None, on the device in the same strides, inside as large a piece of memory."""
    if values is None:
        return None
    if isinstance(values, (list, tuple)):
        return [to(device, value) for value in values]
    if values.device == device:
        return values
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=device).copy_(values)


def double(values):
    if isinstance(values, (list, tuple)):
        return [double(value) for value in values]
    return None if values is None else values.double()


def close(found, expected, dtype=torch.float32):
    """To 1e-5 of the largest entry, or to the rounding of a half type."""
    relative = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    largest = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(found.cpu().double(), expected.double(), rtol=relative, atol=relative * largest)


def check_forward(shape, count, device, y_layout=None, accumulate=False, **given):
    weights, zs, shift, centres = values = some(shape, count, **given)
    expected = weighted_sum_reference(*double(values))
    y = (y_layout or given.get("layout", lambda x: x))(torch.full_like(zs[0], 0.5 if accumulate else torch.nan))
    y = to(device, y)
    kernels.weighted_sum(y, accumulate, *to(device, values))
    close(y, expected + 0.5 * accumulate, zs[0].dtype)


def check_backward(shape, count, device, want_weights=True, want_sum=True, want_zs=None, **given):
    weights, zs, _, centres = some(shape, count, **given)
    dtype = zs[0].dtype
    dy = given.get("layout", lambda x: x)(torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(dtype))
    leaves = [weights.double().requires_grad_(), *(z.double().requires_grad_() for z in zs)]
    shift = torch.zeros(shape[1] if len(shape) > 1 else 1, dtype=torch.float64, requires_grad=True)
    y = weighted_sum_reference(leaves[0], leaves[1:], shift if len(shape) > 1 else None, double(centres))
    y = y if len(shape) > 1 else y + shift.sum()
    dweights, dysum, *dzs = torch.autograd.grad(y, [leaves[0], shift, *leaves[1:]], dy.double())

    want_zs = [True] * count if want_zs is None else want_zs
    found = (
        torch.full_like(weights, torch.nan, device=device) if want_weights else None,
        torch.full_like(shift, torch.nan, dtype=torch.float32, device=device) if want_sum else None,
        [torch.full_like(to(device, z), torch.nan) if want else None for z, want in zip(zs, want_zs, strict=True)],
    )
    kernels.weighted_sum_backward(*found, *to(device, (dy, weights, zs if want_weights else [], centres)))
    if want_weights:
        close(found[0], dweights)
    if want_sum:
        close(found[1], dysum)
    for dz, expected in zip(found[2], dzs, strict=True):
        if dz is not None:
            close(dz, expected, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts(shape, layout, device):
    everything = dict(per_channel=True, shift=True, centres=True, layout=LAYOUTS[layout])
    check_forward(shape, 2, device, **everything)
    check_forward(shape, 2, device, layout=LAYOUTS[layout])
    check_backward(shape, 2, device, per_channel=True, centres=True, layout=LAYOUTS[layout])
    check_backward(shape, 2, device, want_sum=False, layout=LAYOUTS[layout])


@pytest.mark.parametrize("per_channel, shift, centres", EXTRAS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_forward(accumulate, per_channel, shift, centres, device):
    given = dict(per_channel=per_channel, shift=shift, centres=centres)
    check_forward((2, 3, 5, 7), 3, device, accumulate=accumulate, **given)
    check_forward((2, 3, 5, 7), 11, device, accumulate=accumulate, **given)  # more than go into one launch


@pytest.mark.parametrize("per_channel, centres", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("want_weights, want_sum", [(True, True), (True, False), (False, True), (False, False)])
def test_backward(want_weights, want_sum, per_channel, centres, device):
    given = dict(want_weights=want_weights, want_sum=want_sum, per_channel=per_channel, centres=centres)
    check_backward((2, 3, 5, 7), 3, device, want_zs=[True, False, True], **given)
    check_backward((2, 3, 5, 7), 2, device, want_zs=[False, False], **given)
    check_backward((2, 3, 5, 7), 11, device, **given)


def test_layouts_that_differ(device):
    weights, zs, shift, centres = values = some((2, 5, 6, 7), 6, per_channel=True, shift=True, centres=True)
    expected = weighted_sum_reference(*double(values))
    mixed = [layout(z) for layout, z in zip(LAYOUTS.values(), zs, strict=True)]
    for layout in LAYOUTS.values():
        y = to(device, layout(torch.full_like(zs[0], torch.nan)))
        kernels.weighted_sum(y, False, *to(device, (weights, mixed, shift, centres)))
        close(y, expected)
    y = to(device, torch.zeros(1).expand(7, 2, 5, 6).permute(1, 2, 3, 0).clone())
    kernels.weighted_sum(y, True, *to(device, (weights[:, 0], mixed, None, None)))
    close(y, weighted_sum_reference(weights[:, 0].double(), double(zs)))


@pytest.mark.parametrize("shape", [(), (9,), (3, 4), (2, 3, 5), (2, 3, 2, 3, 4), (2, 3, 1, 2, 2, 3)])
def test_other_dimensions(shape, device):
    check_forward(shape, 2, device)
    check_backward(shape, 2, device)
    if len(shape) > 1:
        check_forward(shape, 2, device, per_channel=True, shift=True)
        check_backward(shape, 2, device, per_channel=True, centres=True)
    if len(shape) == 5:
        check_forward(shape, 2, device, per_channel=True, y_layout=LAYOUTS["nchw"], layout=channels_last_3d)


def channels_last_3d(x):
    return x.to(memory_format=torch.channels_last_3d)


def test_no_five_strides(device):
    z = torch.ones(3, 3, 4, 4, 4, device=device)[:, ::2, ::2, ::2, ::2]
    with pytest.raises(ValueError, match="give four dimensions or dense tensors"):
        kernels.weighted_sum(torch.empty_like(z), False, torch.ones(1, device=device), [z], None, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, device):
    check_forward((2, 3, 5, 7), 3, device, per_channel=True, shift=True, centres=True, dtype=dtype)
    check_forward((2, 3, 5, 7), 3, device, accumulate=True, dtype=dtype)
    check_backward((2, 3, 5, 7), 3, device, per_channel=True, centres=True, dtype=dtype)


def test_coefficients_of_any_strides(device):
    weights, zs, shift, centres = values = some((2, 3, 4, 4), 2, per_channel=True, shift=True, centres=True)
    expected = weighted_sum_reference(*double(values))
    strided = [weights.t().contiguous().t(), torch.stack([shift, shift], 1)[:, 0], centres.t().contiguous().t()]
    y = torch.empty(2, 3, 4, 4, device=device)
    weights, shift, centres = to(device, strided)
    kernels.weighted_sum(y, False, weights, to(device, zs), shift, centres)
    close(y, expected)


def test_nothing(device):
    empty = torch.empty(0, 3, 4, 4, device=device)
    weights, dweights = torch.ones(2, 3, device=device), torch.full((2, 3), torch.nan, device=device)
    dysum = torch.full((3,), torch.nan, device=device)
    kernels.weighted_sum(empty, True, weights, [empty, empty], None, None)
    kernels.weighted_sum_backward(dweights, dysum, [empty, None], empty, weights, [empty, empty], None)
    assert not dweights.any() and not dysum.any()


def test_repeats_to_the_bit(device):
    weights, zs, _, centres = to(device, some((3, 20, 9, 11), 4, per_channel=True, centres=True))
    results = []
    for _ in range(2):
        dweights, dysum = torch.empty_like(weights), torch.empty(20, device=device)
        kernels.weighted_sum_backward(dweights, dysum, [None] * 4, zs[0], weights, zs, centres)
        results.append((dweights, dysum))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
