import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.backends import cpu_kernels
from srnas_fast.errors import InputError
from srnas_fast.primitives.narrow_convolution import (
    MOST_CHANNELS,
    narrow_convolution,
    narrow_convolution_backward,
    narrow_convolution_moments,
    narrow_convolution_reference,
    serves,
)

# (N, C, H, W), outputs, size, dilation: all sizes of register blocks, widths around whole vectors and tiles of them,
# images smaller than the kernel, one pixel, one channel, several bands of rows, more channels than are served
CASES = [
    ((2, 5, 9, 11), 7, 3, 1),
    ((1, 20, 17, 33), 20, 5, 2),
    ((3, 12, 16, 16), 12, 3, 2),
    ((3, 12, 20, 64), 10, 3, 1),
    ((1, 1, 1, 1), 1, 3, 1),
    ((1, 1, 1, 1), 3, 7, 8),
    ((2, 3, 2, 3), 2, 7, 2),
    ((1, 6, 37, 40), 13, 1, 1),
    ((2, 2, 70, 48), 3, 3, 8),
    ((1, 3, 5, 5), 9, 3, 4),
    ((1, 4, 8, 130), 11, 7, 1),
    ((1, 2, 6, 7), 5, 9, 1),
    ((2, 1, 12, 18), 1, 5, 1),
    ((1, 24, 40, 33), 17, 3, 1),
    ((1, 48, 19, 20), MOST_CHANNELS, 3, 1),
    ((1, MOST_CHANNELS + 1, 3, 4), 2, 3, 1),
]
IDS = [f"{'x'.join(map(str, shape))}-{outputs}-{size}-{dilation}" for shape, outputs, size, dilation in CASES]


def make(case, dtype=torch.float64):
    shape, outputs, size, dilation = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    kernel = torch.randn(outputs, shape[1], size, size, generator=generator, dtype=dtype)
    bias = torch.randn(outputs, generator=generator, dtype=dtype)
    return x, kernel, bias, dilation


def reference_moments(x, kernel, bias, dilation):
    z = narrow_convolution_reference(x, kernel, bias, dilation)
    return z, z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def with_gradients(function, x, kernel, bias, dilation, arrange=lambda dz: dz):
    """The outputs of a function and its gradients for all inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, kernel, bias)]
    outputs = function(*leaves, dilation)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    dzs = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, [arrange(dz) for dz in dzs])]


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize(
    "function, reference",
    [(narrow_convolution, narrow_convolution_reference), (narrow_convolution_moments, reference_moments)],
    ids=["plain", "moments"],
)
def test_agrees_with_the_reference(case, function, reference, backend, layouts):
    x, kernel, bias, dilation = make(case)
    expected = with_gradients(reference, x, kernel, bias, dilation)
    for name, given in layouts(x):
        got = with_gradients(function, given, kernel, bias, dilation)
        for actual, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-11, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_float32_is_as_good_as_torch(case):
    x, kernel, bias, dilation = make(case)
    single = [tensor.float() for tensor in (x, kernel, bias)]
    exact = with_gradients(narrow_convolution_reference, x, kernel, bias, dilation)
    theirs = with_gradients(narrow_convolution_reference, *single, dilation)
    ours = with_gradients(narrow_convolution, *single, dilation)
    for o, t, e in zip(ours, theirs, exact, strict=True):
        assert (o - e).norm() <= 2 * (t - e).norm() + 1e-6 * e.norm()


def test_gradients_in_any_layout(backend, layouts):
    x, kernel, bias, dilation = make(CASES[0])
    expected = with_gradients(narrow_convolution_reference, x, kernel, bias, dilation)
    for _, given in layouts(x):
        for index in range(5):
            got = with_gradients(
                narrow_convolution, given, kernel, bias, dilation, lambda dz, i=index: list(layouts(dz))[i][1]
            )
            torch.testing.assert_close(got, expected)
    (dx,) = torch.autograd.grad(narrow_convolution(x.requires_grad_(), kernel, bias).sum(), x)  # dz is broadcast
    torch.testing.assert_close(dx, torch.autograd.grad(narrow_convolution_reference(x, kernel, bias).sum(), x)[0])


def test_only_what_is_asked_for(backend):
    x, kernel, _, dilation = make(CASES[0])
    dz = torch.randn_like(narrow_convolution(x, kernel, None, dilation))
    dx, dkernel = narrow_convolution_backward(dz, x, kernel, dilation)
    for want in ((True, False), (False, True), (False, False)):
        got = narrow_convolution_backward(dz, x, kernel, dilation, *want)
        for wanted, gradient, exact in zip(want, got, (dx, dkernel), strict=True):
            assert torch.equal(gradient, exact) if wanted else not gradient.numel()
    kernel.requires_grad_()
    (grad,) = torch.autograd.grad(narrow_convolution(x, kernel, None, dilation), kernel, dz)
    torch.testing.assert_close(grad, dkernel)
    assert not narrow_convolution(x, kernel.detach(), None, dilation).requires_grad


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(form, backend):
    x, kernel, bias, dilation = make(CASES[0])
    x = x.to(memory_format=form).requires_grad_()
    z = narrow_convolution(x, kernel, bias, dilation)
    (dx,) = torch.autograd.grad(z.sum(), x)
    assert z.is_contiguous(memory_format=form) and dx.is_contiguous(memory_format=form)
    assert narrow_convolution_moments(x, kernel, bias, dilation)[0].is_contiguous(memory_format=form)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 3])
def test_threads_change_nothing(images, threads, form):
    x, *rest = make(((images, 20, 65, 33), 12, 3, 2), torch.float32)
    x = x.to(memory_format=form)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = with_gradients(narrow_convolution_moments, x, *rest)
        torch.set_num_threads(threads)
        got = with_gradients(narrow_convolution_moments, x, *rest)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got[:-1], expected[:-1], strict=True))  # the last sum is torch's


def test_a_large_mean_costs_the_variance_no_digits(backend):
    x, kernel, bias, dilation = make(((3, 4, 30, 21), 3, 3, 1), torch.float32)
    z, mean, variance = narrow_convolution_moments(x, kernel, bias + 1e4, dilation)
    exact = z.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype, backend):
    x, kernel, bias, dilation = make(CASES[0], torch.float32)
    half = [tensor.to(dtype) for tensor in (x, kernel, bias)]
    got = with_gradients(narrow_convolution_moments, *half, dilation)
    expected = reference_moments(*(tensor.float() for tensor in half), dilation)
    for out, exact in zip(got, expected, strict=False):
        torch.testing.assert_close(out, exact.to(dtype), rtol=1e-2, atol=1e-3)
    assert all(out.dtype == dtype for out in got)


def test_autocast_computes_in_float32(backend):
    x, kernel, bias, dilation = make(CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = narrow_convolution(x.bfloat16(), kernel, bias, dilation)
    torch.testing.assert_close(z, narrow_convolution_reference(x.bfloat16().float(), kernel, bias, dilation))


@pytest.mark.parametrize("function", [narrow_convolution, narrow_convolution_moments])
def test_gradcheck(function, backend):
    x, kernel, bias, dilation = make(((2, 3, 4, 5), 2, 3, 2))
    leaves = [tensor.requires_grad_() for tensor in (x, kernel, bias)]
    assert torch.autograd.gradcheck(lambda *given: function(*given, dilation), leaves)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck(form, backend):
    x, kernel, bias, dilation = make(((2, 3, 5, 6), 4, 3, 2), torch.float32)
    x = x.to(memory_format=form)
    ops = torch.ops.srnas_fast
    leaves = [tensor.clone().requires_grad_() for tensor in (x, kernel, bias)]
    opcheck(ops.narrow_convolution.default, (*leaves, dilation))
    opcheck(ops.narrow_convolution.default, (*leaves[:2], None, dilation))
    opcheck(ops.narrow_convolution_moments.default, (*leaves, dilation))
    dz = narrow_convolution(x, kernel, bias, dilation)
    opcheck(ops.narrow_convolution_backward.default, (dz, x, kernel, dilation, True, True))


def test_nan_spreads_as_far_as_the_kernel(backend):
    x, kernel, bias, dilation = make(((1, 2, 12, 40), 3, 3, 2))
    x[0, 0, 6, 20] = float("nan")
    assert narrow_convolution(x, kernel, bias, dilation).isnan().sum() == 3 * 9


def test_no_images(backend):
    x, kernel, bias, dilation = make(((0, 3, 5, 5), 4, 3, 1))
    z, dx, dkernel, dbias = with_gradients(narrow_convolution, x, kernel, bias, dilation)
    assert z.shape == (0, 4, 5, 5) and dx.shape == x.shape
    assert (dkernel == 0).all() and (dbias == 0).all()
    with pytest.raises(InputError, match="no images"):
        narrow_convolution_moments(x, kernel, bias, dilation)


def test_serves(monkeypatch):
    x, kernel = torch.zeros(1, MOST_CHANNELS, 2, 2), torch.zeros(MOST_CHANNELS, MOST_CHANNELS, 3, 3)
    compiled = cpu_kernels() is not None
    assert serves(x, kernel) == compiled
    blocks = x[:, :32].to(memory_format=torch.channels_last)
    assert not serves(blocks, kernel[:16, :32])
    assert serves(blocks, kernel[:15, :32]) == serves(blocks, kernel[:16, :32, :1, :1]) == compiled
    assert not serves(x.half(), kernel.half())
    assert not serves(x, torch.zeros(MOST_CHANNELS + 1, MOST_CHANNELS, 3, 3))
    assert not serves(x.to("meta"), kernel.to("meta"))
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "reference")
    assert not serves(x, kernel)


def test_flops():
    x, kernel, bias, dilation = make(((2, 5, 9, 11), 7, 3, 1), torch.float32)
    with FlopCounterMode(display=False) as counter:
        with_gradients(narrow_convolution, x, kernel, bias, dilation)
    assert counter.get_total_flops() == 3 * 2 * 2 * 9 * 11 * 5 * 7 * 9


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(3, 4, 4)), "N, C, H, W"),
        (dict(x=torch.zeros(1, 3, 4, 4, dtype=torch.int64)), "int64"),
        (dict(kernel=torch.zeros(2, 3, 2, 2)), "k odd"),
        (dict(kernel=torch.zeros(2, 4, 3, 3)), r"\(O, 3, k, k\)"),
        (dict(kernel=torch.zeros(2, 3, 3, 5)), "k odd"),
        (dict(bias=torch.zeros(3)), r"give \(2,\)"),
        (dict(dilation=0), "from 1 up"),
    ],
)
def test_bad_input_is_named(change, message):
    given = dict(x=torch.zeros(1, 3, 4, 4), kernel=torch.zeros(2, 3, 3, 3), bias=None, dilation=1)
    for function in (narrow_convolution, narrow_convolution_moments):
        with pytest.raises(InputError, match=message):
            function(**{**given, **change})


def test_a_gradient_of_another_shape_is_named():
    with pytest.raises(InputError, match=r"give \(1, 2, 4, 4\)"):
        narrow_convolution_backward(torch.zeros(1, 2, 4, 5), torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3))
