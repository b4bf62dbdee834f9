import pytest
import torch
from torch.library import opcheck

from srnas_fast.errors import InputError
from srnas_fast.primitives.pool import pool, pool_backward, pool_reference

INF, NAN = float("inf"), float("nan")

# (N, C, H, W), size, stride: the compiled sizes and others, widths around whole vectors, images smaller than the
# window, one pixel, one channel, few enough planes for bands
CASES = [
    ((2, 5, 9, 11), 3, 1),
    ((3, 16, 8, 8), 3, 2),
    ((1, 20, 17, 33), 5, 1),
    ((1, 3, 65, 9), 3, 1),
    ((1, 2, 66, 7), 5, 2),
    ((1, 1, 1, 1), 3, 1),
    ((1, 4, 1, 1), 7, 2),
    ((2, 3, 2, 3), 7, 1),
    ((2, 3, 3, 2), 5, 2),
    ((2, 18, 11, 37), 7, 2),
    ((1, 2, 40, 6), 3, 3),
    ((1, 3, 8, 7), 5, 4),
    ((2, 3, 6, 7), 1, 2),
    ((1, 3, 12, 7), 9, 1),
]
IDS = [f"{'x'.join(map(str, shape))} {size}/{stride}" for shape, size, stride in CASES]
POOLS = [("max", False), ("average", False), ("average", True)]


def contents(shape, dtype=torch.float64):
    """Different values, many equal ones, all equal, and such as do not compare."""
    generator = torch.Generator().manual_seed(0)
    yield "normal", torch.randn(shape, generator=generator, dtype=dtype)
    yield "ties", torch.randint(-1, 2, shape, generator=generator).to(dtype)
    yield "constant", torch.full(shape, 0.5, dtype=dtype)
    yield "lowest", torch.full(shape, -INF, dtype=dtype)
    values = torch.tensor([0.0, -0.0, 1.0, INF, -INF, -INF, -INF, NAN], dtype=dtype)
    yield "special", values[torch.randint(8, shape, generator=generator)]
    yield "not a number", torch.full(shape, NAN, dtype=dtype)


def gradients(function, x, *window):
    leaf = x.detach().requires_grad_()
    y = function(leaf, *window)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, torch.autograd.grad(y, leaf, dy)[0]


@pytest.mark.parametrize("shape, size, stride", CASES, ids=IDS)
@pytest.mark.parametrize("kind, count_padding", POOLS)
def test_agrees_with_torch(kind, count_padding, shape, size, stride, backend, layouts):
    window = kind, size, stride, count_padding
    for content, x in contents(shape):
        y, dx = gradients(pool_reference, x, *window)
        for layout, given in layouts(x):
            got_y, got_dx = gradients(pool, given, *window)
            assert got_y.shape == y.shape and got_dx.shape == x.shape
            for got, expected in ((got_y, y), (got_dx, dx)):
                torch.testing.assert_close(
                    got,
                    expected,
                    rtol=0 if kind == "max" else 1e-13,
                    atol=0 if kind == "max" else 1e-13,
                    equal_nan=True,
                    msg=lambda text, where=f"{content}, {layout}": f"{where}: {text}",
                )


@pytest.mark.parametrize("shape, size, stride", CASES, ids=IDS)
@pytest.mark.parametrize("kind, count_padding", POOLS)
def test_float32_agrees_with_torch(kind, count_padding, shape, size, stride):
    for _, x in contents(shape, torch.float32):
        window = kind, size, stride, count_padding
        for got, expected in zip(gradients(pool, x, *window), gradients(pool_reference, x, *window), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_the_first_maximum_gets_the_gradient(backend):
    x = torch.tensor([[[[1.0, 2, 0], [2, 2, 2], [0, 3, 3]]]])
    dx = pool_backward(torch.ones(1, 1, 2, 2), x, "max", 3, 2)
    assert dx.tolist() == [[[[0, 2, 0], [0, 0, 0], [0, 2, 0]]]]


def test_an_average_divides_by_the_pixels_inside(backend):
    x = torch.ones(1, 1, 3, 3)
    assert torch.equal(pool(x, "average", 3), x)
    ninths = pool(x, "average", 3, count_padding=True) * 9
    torch.testing.assert_close(ninths, torch.tensor([[[[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]]]))


@pytest.mark.parametrize("kind", ["max", "average"])
def test_gradients_in_any_layout(kind, backend):
    x = torch.randn(2, 5, 9, 11, dtype=torch.float64)
    leaf = x.clone().to(memory_format=torch.channels_last).requires_grad_()
    expected = x.clone().requires_grad_()
    for function, at in ((pool, leaf), (pool_reference, expected)):
        y = function(at, kind, 3)
        (y.sum() + (2 * y.contiguous()).square().sum()).backward()
        loss = function(at, kind, 5).mean()  # a broadcast gradient
        loss.backward()
    torch.testing.assert_close(leaf.grad, expected.grad)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size", [3, 9])
def test_keeps_the_memory_format(form, kind, size, backend):
    x = torch.randn(2, 5, 9, 11).to(memory_format=form).requires_grad_()
    y = pool(x, kind, size, 2)
    assert y.is_contiguous(memory_format=form)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.is_contiguous(memory_format=form)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("shape, size, stride", CASES, ids=IDS)
def test_threads_change_nothing(threads, form, kind, shape, size, stride):
    x = torch.randn(shape).to(memory_format=form)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(pool, x, kind, size, stride)
        torch.set_num_threads(threads)
        many = gradients(pool, x, kind, size, stride)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_half_precision_computes_in_float32(dtype, kind, backend):
    x = torch.randn(2, 5, 9, 11).to(dtype)
    y, dx = gradients(pool, x, kind, 3)
    assert y.dtype == dtype and dx.dtype == dtype
    torch.testing.assert_close(y, pool_reference(x.float(), kind, 3).to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_autocast_computes_in_float32(kind, backend):
    x = torch.randn(2, 5, 9, 11).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = pool(x, kind, 3)
    torch.testing.assert_close(y, pool_reference(x.float(), kind, 3))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind, count_padding", POOLS)
def test_gradcheck(kind, count_padding, stride, backend):
    # Different enough for the steps that a numerical gradient takes.
    x = torch.randperm(2 * 3 * 4 * 5, generator=torch.Generator().manual_seed(0)).view(2, 3, 4, 5) / 7.0
    assert torch.autograd.gradcheck(
        lambda x: pool(x, kind, 3, stride, count_padding), x.double().requires_grad_(), fast_mode=False
    )


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size", [3, 9])
def test_opcheck(form, kind, size, backend):
    x = torch.randn(2, 3, 5, 6).to(memory_format=form)
    opcheck(torch.ops.srnas_fast.pool.default, (x.clone().requires_grad_(), kind, size, 2, False))
    dy = torch.randn(2, 3, 3, 3)
    opcheck(torch.ops.srnas_fast.pool_backward.default, (dy, x, kind, size, 2, False))


@pytest.mark.parametrize("kind", ["max", "average"])
def test_no_images(kind, backend):
    y, dx = gradients(pool, torch.zeros(0, 3, 5, 5), kind, 3)
    assert y.shape == (0, 3, 5, 5) and dx.shape == y.shape


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(3, 4, 4)), "N, C, H, W"),
        (dict(x=torch.zeros(1, 3, 0, 4)), "with channels and pixels"),
        (dict(x=torch.zeros(1, 3, 4, 4, dtype=torch.int64)), "int64"),
        (dict(kind="mean"), "'mean'; accepted: 'max', 'average'"),
        (dict(size=2), "size is 2"),
        (dict(size=-1), "size is -1"),
        (dict(stride=0), "stride is 0"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {**dict(x=torch.zeros(1, 3, 4, 4), kind="max", size=3, stride=1), **change}
    with pytest.raises(InputError, match=message):
        pool(**given)
    with pytest.raises(InputError, match=message):
        pool_backward(torch.zeros(1, 3, 4, 4), **given)


@pytest.mark.parametrize("dy", [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2, dtype=torch.int64)])
def test_a_gradient_that_does_not_fit_is_named(dy):
    with pytest.raises(InputError, match=r"give a floating tensor \(1, 3, 2, 2\)"):
        pool_backward(dy, torch.zeros(1, 3, 4, 4), "max", 3, 2)
