import pytest
import torch

from srnas_fast.primitives.shuffle_concat import shuffle_concat_reference

pytest.importorskip("triton", exc_type=ImportError)
from srnas_fast.kernels import shuffle_concat as kernels  # noqa: E402

LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "channels of nchw": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : -x.shape[1]],
    "channels of channels_last": lambda x: torch.cat([x, x, x], 1).to(memory_format=torch.channels_last)[
        :, x.shape[1] : -x.shape[1]
    ],
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}
# images, channels, height and width of the result, groups, stride
SHAPES = [
    (2, 6, 5, 7, 2, 1),
    (2, 6, 3, 5, 3, 2),
    (1, 1, 1, 1, 1, 1),
    (1, 3, 1, 1, 3, 2),
    (2, 20, 9, 4, 4, 1),
    (1, 80, 6, 3, 4, 2),
    (1, 4, 30, 37, 2, 1),
    (2, 3, 4, 3, 1, 2),
]


def some(images, channels, height, width, groups, stride, layout=LAYOUTS["nchw"], dtype=torch.float32):
    """(y, x, dout); x is of few values, so that windows hold several of their largest."""
    random = torch.Generator().manual_seed(7)
    y = torch.randn(images, channels // groups, height, width, generator=random)
    x = torch.randint(-3, 4, (images, channels, height * stride, width * stride), generator=random).float()
    dout = torch.randn(images, channels, height, width, generator=random)
    return [layout(t.to(dtype)) for t in (y, x, dout)]


def to(device, value):
    """On the device in the same strides; None stays None."""
    if value is None or value.device == device:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)


def close(found, expected, dtype=torch.float32):
    """To 1e-5 of the largest entry, or to the rounding of a half type."""
    relative = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    largest = expected[expected.isfinite()].abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(
        found.cpu().double(), expected.double(), rtol=relative, atol=relative * largest, equal_nan=True
    )


def check(y, x, dout, groups, device, scale=None, want_y=True, want_x=True, want_scale=True, out=None):
    """Forward and backward against the reference and autograd through it, in float64."""
    part = x.shape[1] // groups
    leaves = [y.double().requires_grad_(), x.double().requires_grad_()]
    factor = torch.ones((), dtype=torch.float64) if scale is None else scale.cpu().double()
    factor.requires_grad_()
    expected = shuffle_concat_reference(*leaves, groups, factor)
    gradients = torch.autograd.grad(expected, [*leaves, factor], dout.double())

    out = torch.full_like(to(device, dout), torch.nan) if out is None else out
    dy = torch.full_like(to(device, y), torch.nan) if want_y else None
    dx = torch.full_like(to(device, x), torch.nan) if want_x else None
    dscale = torch.full((), torch.nan, device=device) if want_scale else None
    y, x, dout, scale = (to(device, t) for t in (y, x, dout, scale))
    kernels.shuffle_concat(out, y, x, groups, scale)
    close(out, expected.detach(), out.dtype)
    kernels.shuffle_concat_backward(dy, dx, dscale, dout, x, groups, scale)
    if want_y:
        close(dy, gradients[0], dy.dtype)
    if want_x:
        assert dx[:, :part].isnan().all()  # room for another gradient, untouched
        close(dx[:, part:], gradients[1][:, part:], dx.dtype)
    if want_scale:
        close(dscale, gradients[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts(shape, layout, device):
    check(*some(*shape, LAYOUTS[layout]), shape[4], device, scale=torch.tensor(-1.7))


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("want_x, want_scale", [(True, True), (True, False), (False, True), (False, False)])
def test_what_is_wanted(want_x, want_scale, scaled, shape, device):
    scale = torch.tensor(0.3) if scaled else None
    check(*some(*shape), shape[4], device, scale, True, want_x, want_scale)
    check(*some(*shape), shape[4], device, scale, False, want_x, want_scale)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_layouts_that_differ(shape, device):
    y, x, dout = some(*shape)
    for layout in LAYOUTS.values():
        check(layout(y), x, dout, shape[4], device)
        check(y, layout(x), dout, shape[4], device, out=layout(torch.empty_like(dout)).to(device))
        check(y, x, layout(dout), shape[4], device)


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, shape, device):
    check(*some(*shape, dtype=dtype), shape[4], device, scale=torch.tensor(0.3))
    y, x, dout = some(*shape)
    check(y, x.to(dtype), dout, shape[4], device, scale=torch.tensor(0.3))


def test_windows_of_no_numbers(device):
    shape = (2, 4, 6, 5, 2, 2)
    y, x, dout = some(*shape)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf])
    random = torch.Generator().manual_seed(8)
    chosen = special[torch.randint(0, 3, x.shape, generator=random)]
    x = torch.where(torch.rand(x.shape, generator=random) < 0.5, chosen, x)
    check(y, x, dout, shape[4], device, want_scale=False)


def test_nothing(device):
    empty = torch.empty(0, 4, 3, 3, device=device)
    dscale = torch.full((), torch.nan, device=device)
    kernels.shuffle_concat(empty, empty[:, :2], empty, 2, dscale)
    kernels.shuffle_concat_backward(empty[:, :2], empty, dscale, empty, empty, 2, None)
    assert dscale == 0


def test_repeats_to_the_bit(device):
    y, x, dout = (to(device, t) for t in some(2, 20, 9, 4, 4, 2))
    results = []
    for _ in range(2):
        dx, dscale = torch.zeros_like(x), torch.empty((), device=device)
        kernels.shuffle_concat_backward(None, dx, dscale, dout, x, 4, torch.tensor(0.3, device=device))
        results.append((dx, dscale))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
