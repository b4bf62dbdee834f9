import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.errors import InputError
from srnas_fast.primitives.multi_depthwise import multi_depthwise, multi_depthwise_reference

# (N, C, H, W), kernels as (size, dilation), stride: the unrolled sizes and others, widths around whole vectors,
# images smaller than the kernels, one pixel, one channel
CASES = [
    ((2, 5, 9, 11), [(3, 1), (5, 2), (7, 1)], 1),
    ((1, 20, 17, 33), [(3, 2), (5, 1), (1, 1), (9, 1)], 1),
    ((3, 12, 16, 16), [(3, 4), (7, 2)], 1),
    ((1, 1, 1, 1), [(3, 1), (7, 1)], 1),
    ((2, 3, 2, 3), [(7, 2), (3, 8)], 1),
    ((2, 18, 11, 37), [(3, 1), (5, 2), (7, 1)], 2),
    ((1, 4, 1, 1), [(3, 1), (5, 2)], 2),
    ((1, 2, 8, 7), [(3, 1), (9, 1)], 3),
]
IDS = [f"{'x'.join(map(str, shape))}/{stride}" for shape, _, stride in CASES]


def make(case, dtype=torch.float64, seed=0):
    shape, kernels, stride = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    weights = [torch.randn(shape[1], 1, k, k, generator=generator, dtype=dtype) for k, _ in kernels]
    return x, weights, [d for _, d in kernels], stride


def gradients(function, x, weights, dilations, stride, wants=None):
    leaves = [x.detach().requires_grad_(), *(w.detach().requires_grad_() for w in weights)]
    outputs = function(leaves[0], leaves[1:], dilations, stride)
    generator = torch.Generator().manual_seed(1)
    dys = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    return outputs, torch.autograd.grad(outputs, leaves, dys)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_agrees_with_the_reference(case, backend, layouts):
    x, weights, dilations, stride = make(case)
    expected, expected_gradients = gradients(multi_depthwise_reference, x, weights, dilations, stride)
    for name, given in layouts(x):
        outputs, got = gradients(multi_depthwise, given, weights, dilations, stride)
        for actual, exact in zip([*outputs, *got], [*expected, *expected_gradients], strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_float32_is_as_good_as_torch(case):
    x, weights, dilations, stride = make(case)
    exact, exact_gradients = gradients(multi_depthwise_reference, x, weights, dilations, stride)
    single = x.float(), [w.float() for w in weights], dilations, stride
    theirs, their_gradients = gradients(multi_depthwise_reference, *single)
    ours, our_gradients = gradients(multi_depthwise, *single)
    for o, t, e in zip([*ours, *our_gradients], [*theirs, *their_gradients], [*exact, *exact_gradients], strict=True):
        assert (o - e).norm() <= 2 * (t - e).norm() + 1e-6 * e.norm()


def test_gradients_in_any_layout(backend):
    x, weights, dilations, stride = make(CASES[0])
    leaf = x.clone().to(memory_format=torch.channels_last).requires_grad_()
    a, b, c = multi_depthwise(leaf, weights, dilations, stride)
    (a.sum() + (2 * b.contiguous()).sum() + c.square().sum()).backward()  # a broadcast, an NCHW and another gradient
    expected = x.clone().requires_grad_()
    a, b, c = multi_depthwise_reference(expected, weights, dilations, stride)
    (a.sum() + (2 * b).sum() + c.square().sum()).backward()
    torch.testing.assert_close(leaf.grad, expected.grad)


def test_only_what_is_asked_for(backend):
    x, weights, dilations, stride = make(CASES[0])
    weights[1].requires_grad_()
    outputs = multi_depthwise(x, weights, dilations, stride)
    (grad,) = torch.autograd.grad(outputs[1].sum(), weights[1])  # the other outputs have no gradient
    expected = multi_depthwise_reference(x, weights, dilations, stride)
    torch.testing.assert_close(grad, torch.autograd.grad(expected[1].sum(), weights[1])[0])
    assert not multi_depthwise(x, [w.detach() for w in weights], dilations, stride)[0].requires_grad


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(form, backend):
    x, weights, dilations, stride = make(CASES[0])
    x = x.to(memory_format=form).requires_grad_()
    outputs = multi_depthwise(x, weights, dilations, stride)
    assert all(out.is_contiguous(memory_format=form) for out in outputs)
    (dx,) = torch.autograd.grad(outputs[0].sum(), x)
    assert dx.is_contiguous(memory_format=form)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_threads_change_nothing(threads, form):
    x, weights, dilations, stride = make(((3, 20, 17, 33), [(3, 2), (7, 1)], 1), torch.float32)
    x = x.to(memory_format=form)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        outputs, grads = gradients(multi_depthwise, x, weights, dilations, stride)
        torch.set_num_threads(threads)
        others, other_grads = gradients(multi_depthwise, x, weights, dilations, stride)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip([*outputs, *grads], [*others, *other_grads], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype, backend):
    x, weights, dilations, stride = make(CASES[0], torch.float32)
    half = x.to(dtype), [w.to(dtype) for w in weights]
    outputs, grads = gradients(multi_depthwise, *half, dilations, stride)
    wide = half[0].float(), [w.float() for w in half[1]]
    expected = multi_depthwise_reference(*wide, dilations, stride)
    for out, exact in zip(outputs, expected, strict=True):
        assert out.dtype == dtype
        torch.testing.assert_close(out, exact.to(dtype), rtol=1e-2, atol=1e-3)
    assert all(grad.dtype == dtype for grad in grads)


def test_autocast_computes_in_float32(backend):
    x, weights, dilations, stride = make(CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = multi_depthwise(x.bfloat16(), weights, dilations, stride)
    expected = multi_depthwise_reference(x.bfloat16().float(), weights, dilations, stride)
    for out, exact in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, exact)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride, backend):
    x, weights, dilations, _ = make(((2, 3, 4, 5), [(3, 1), (3, 2)], stride))
    leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    assert torch.autograd.gradcheck(lambda x, *w: tuple(multi_depthwise(x, w, dilations, stride)), leaves)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck(form, backend):
    x, weights, dilations, stride = make(((2, 3, 5, 6), [(3, 1), (3, 2)], 2), torch.float32)
    x = x.to(memory_format=form)
    leaves = x.clone().requires_grad_(), [w.clone().requires_grad_() for w in weights]
    opcheck(torch.ops.srnas_fast.multi_depthwise.default, (*leaves, dilations, stride))
    dys = multi_depthwise(x, weights, dilations, stride)
    opcheck(torch.ops.srnas_fast.multi_depthwise_backward.default, (dys, x, weights, dilations, stride, True, True))


def test_nan_and_infinity_spread_as_far_as_the_kernel(backend):
    x, weights, dilations, stride = make(((1, 2, 12, 40), [(3, 2)], 1))
    x[0, 0, 6, 20] = float("nan")
    (out,) = multi_depthwise(x, weights, dilations, stride)
    assert out[0, 0].isnan().sum() == 9
    assert not out[0, 1].isnan().any()


def test_no_images(backend):
    x, weights, dilations, stride = make(((0, 3, 5, 5), [(3, 1)], 1))
    outputs, (dx, dweight) = gradients(multi_depthwise, x, weights, dilations, stride)
    assert outputs[0].shape == (0, 3, 5, 5) and dx.shape == x.shape
    assert (dweight == 0).all()


def test_flops():
    x, weights, dilations, stride = make(CASES[5], torch.float32)
    with FlopCounterMode(display=False) as counter:
        gradients(multi_depthwise, x, weights, dilations, stride)
    forward = 2 * sum(2 * 18 * 6 * 19 * k * k for k in (3, 5, 7))
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(3, 4, 4)), "N, C, H, W"),
        (dict(x=torch.zeros(1, 3, 4, 4, dtype=torch.int64)), "int64"),
        (dict(kernels=[torch.zeros(3, 1, 2, 2)]), "k odd"),
        (dict(kernels=[torch.zeros(4, 1, 3, 3)]), r"\(3, 1, k, k\)"),
        (dict(kernels=[]), "0 kernels"),
        (dict(dilations=[1, 1]), "2 dilations"),
        (dict(dilations=[0]), "from 1 up"),
        (dict(stride=0), "stride is 0"),
    ],
)
def test_bad_input_is_named(change, message):
    given = dict(x=torch.zeros(1, 3, 4, 4), kernels=[torch.zeros(3, 1, 3, 3)], dilations=[1], stride=1)
    with pytest.raises(InputError, match=message):
        multi_depthwise(**{**given, **change})
