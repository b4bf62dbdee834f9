import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.errors import InputError
from srnas_fast.primitives import shuffle_concat, shuffle_concat_backward
from srnas_fast.primitives.shuffle_concat import shuffle_concat_reference

INF, NAN = float("inf"), float("nan")
FORMS = [torch.contiguous_format, torch.channels_last]

# (N, C, H, W) of x, groups, stride: usual and odd numbers of groups, parts below, of and above a vector, odd sizes at
# stride 1, one pixel, one window, one channel, one group
CASES = [
    ((2, 8, 5, 9), 2, 1),
    ((2, 8, 6, 10), 2, 2),
    ((3, 64, 8, 34), 4, 1),
    ((3, 64, 8, 34), 4, 2),
    ((1, 24, 7, 3), 8, 1),
    ((1, 24, 6, 4), 8, 2),
    ((2, 15, 3, 5), 3, 1),
    ((2, 15, 2, 2), 3, 2),
    ((1, 4, 1, 1), 4, 1),
    ((2, 68, 2, 38), 2, 2),
    ((2, 3, 4, 4), 1, 1),
    ((2, 3, 4, 4), 1, 2),
]
IDS = [f"{'x'.join(map(str, shape))}/{groups}, stride {stride}" for shape, groups, stride in CASES]


def inputs(shape, groups, stride, dtype=torch.float64):
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(n, c // groups, h // stride, w // stride, generator=generator, dtype=torch.float64)
    return y.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(function, y, x, groups, scale=None):
    """The result, and the gradients for what is given."""
    leaves = [leaf.detach().requires_grad_() for leaf in (y, x, scale) if leaf is not None]
    out = function(leaves[0], leaves[1], groups, *leaves[2:])
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, leaves, dout, allow_unused=True)
    return out, *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))


def assert_same(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


@pytest.mark.parametrize("shape, groups, stride", CASES, ids=IDS)
def test_agrees_with_concatenation_and_shuffle(shape, groups, stride, backend, layouts):
    y, x = inputs(shape, groups, stride)
    n, c, h, w = y.shape[0], x.shape[1], *y.shape[2:]
    scale = torch.tensor(-1.7, dtype=torch.float64)
    rest = x[:, c // groups :]
    if stride == 2 and groups > 1:
        rest = F.max_pool2d(rest, 2)
    elif stride == 2:
        rest = rest[:, :, ::2, ::2]
    z = torch.cat([y, scale * rest], 1)
    by_hand = z.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(z.shape)
    expected = gradients(shuffle_concat_reference, y, x, groups, scale)
    assert torch.equal(expected[0], by_hand)
    for name, given in layouts(x):
        for other in (y, y.to(memory_format=torch.channels_last), torch.stack([y, y], -1)[..., 0]):
            got = gradients(shuffle_concat, other, given, groups, scale)
            assert torch.equal(got[0], by_hand), name
            assert_same(got, expected, rtol=1e-13, atol=1e-13)
        assert_same(gradients(shuffle_concat, y, given, groups), gradients(shuffle_concat_reference, y, x, groups))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape, groups, stride", CASES, ids=IDS)
def test_ties_and_what_does_not_compare(shape, groups, stride, form, backend):
    """Where a window has no one largest element the gradient goes where torch sends it."""
    y, _ = inputs(shape, groups, stride)
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, -0.0, 1.0, INF, -INF, -INF, NAN], dtype=torch.float64)
    for x in (
        torch.randint(-1, 2, shape, generator=generator).double(),
        torch.full(shape, -INF, dtype=torch.float64),
        values[torch.randint(7, shape, generator=generator)],
        torch.full(shape, NAN, dtype=torch.float64),
    ):
        expected = gradients(shuffle_concat_reference, y, x, groups)
        assert_same(gradients(shuffle_concat, y, x.to(memory_format=form), groups), expected, rtol=0, atol=0)


def test_the_first_maximum_gets_the_gradient(backend):
    x = torch.tensor([[0.0, 0, 0, 0], [1.0, 2, 2, 2]]).view(1, 2, 2, 2)
    dy, dx, _ = shuffle_concat_backward(torch.tensor([5.0, 7.0]).view(1, 2, 1, 1), x, 2)
    assert dy.flatten().tolist() == [5]
    assert dx.flatten().tolist() == [0, 0, 0, 0, 0, 7, 0, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_keeps_the_memory_format(stride, form, backend):
    y, x = inputs((2, 8, 6, 6), 4, stride, torch.float32)
    for other in FORMS:
        out, dy, dx = gradients(shuffle_concat, y.to(memory_format=other), x.to(memory_format=form), 4)
        assert all(t.is_contiguous(memory_format=form) for t in (out, dy, dx))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_any_layout(stride, form, backend):
    y, x = inputs((2, 8, 6, 6), 4, stride)
    x, scale = x.to(memory_format=form), torch.tensor(0.3, dtype=torch.float64)
    shape = (2, 8, 6 // stride, 6 // stride)
    wide = torch.randn(2, 10, 7, 14, dtype=torch.float64)[:, 1:9, : shape[2], ::2][..., : shape[3]]
    for dout in (torch.ones((), dtype=torch.float64).expand(shape), wide, wide.mT, wide.clone()):
        dout = dout if dout.shape == shape else dout.mT
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(shuffle_concat_reference(y, leaf, 4, scale), leaf, dout)
        found = shuffle_concat_backward(dout, x, 4, scale, want_scale=True)
        torch.testing.assert_close(found[1], dx)
        torch.testing.assert_close(found[0], dout[:, ::4].contiguous())
        rest = x[:, 2:] if stride == 1 else F.max_pool2d(x[:, 2:], 2)
        passed = F.channel_shuffle(torch.cat([0 * y, rest], 1), 4)
        torch.testing.assert_close(found[2], (dout * passed).sum())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_computes_only_what_is_wanted(stride, form, backend):
    y, x = inputs((2, 8, 6, 6), 2, stride)
    x, scale, dout = x.to(memory_format=form), torch.tensor(2.0, dtype=torch.float64), torch.cat([y, y], 1)
    dy, dx, dscale = shuffle_concat_backward(dout, x, 2, scale, want_scale=True)
    for want_x in (False, True):
        for want_scale in (False, True):
            found = shuffle_concat_backward(dout, x, 2, scale, want_x, want_scale)
            assert torch.equal(found[0], dy)
            assert torch.equal(found[1], dx) if want_x else not found[1].numel()
            torch.testing.assert_close(found[2], dscale) if want_scale else None
            assert want_scale or not found[2].numel()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape, groups, stride", CASES, ids=IDS)
def test_threads_change_nothing(shape, groups, stride, form):
    y, x = inputs(shape, groups, stride, torch.float32)
    scale, x = torch.tensor(0.3), x.to(memory_format=form)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(shuffle_concat, y, x, groups, scale))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_float32_and_half_precision(stride, form, backend):
    y, x = inputs((2, 64, 12, 12), 4, stride)
    scale = torch.tensor(0.3, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = y.to(dtype), x.to(dtype, memory_format=form), 4, scale.to(dtype)
        expected = gradients(
            shuffle_concat_reference, *(t.double() if isinstance(t, torch.Tensor) else t for t in given)
        )
        found = gradients(shuffle_concat, *given)
        assert all(t.dtype == dtype for t in found)
        eps = torch.finfo(dtype).eps
        assert_same([t.double() for t in found[:3]], expected[:3], rtol=2 * eps, atol=2 * eps)
        assert abs(found[3].item() - expected[3].item()) <= 200 * eps  # a sum over thousands of pixels


def test_types_are_mixed_as_by_a_concatenation(backend):
    y, x = inputs((1, 4, 3, 3), 2, 1, torch.float32)
    out, dy, dx = gradients(shuffle_concat, y.bfloat16(), x, 2)
    assert (out.dtype, dy.dtype, dx.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(out, shuffle_concat_reference(y.bfloat16(), x, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert shuffle_concat(y.bfloat16(), x, 2).dtype == torch.float32


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride, backend):
    # Different enough for the steps that a numerical gradient takes.
    x = torch.randperm(2 * 6 * 4 * 2, generator=torch.Generator().manual_seed(0)).view(2, 6, 4, 2) / 7.0
    y = torch.randn(2, 2, 4 // stride, 2 // stride, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    leaves = (y, x.double().requires_grad_(), scale)
    assert torch.autograd.gradcheck(lambda y, x, s: shuffle_concat(y, x, 3, s), leaves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride, form, backend):
    y, x = (t.to(memory_format=form) for t in inputs((2, 8, 4, 6), 4, stride, torch.float32))
    scale = torch.tensor(0.5, requires_grad=True)
    opcheck(torch.ops.srnas_fast.shuffle_concat.default, (y.requires_grad_(), x.clone().requires_grad_(), 4, scale))
    dout = torch.randn(2, 8, 4 // stride, 6 // stride)
    for want_x, want_scale in ((True, True), (False, False)):
        opcheck(torch.ops.srnas_fast.shuffle_concat_backward.default, (dout, x, 4, scale.detach(), want_x, want_scale))


def test_keeps_x_and_nothing_else():
    y, x = inputs((2, 8, 4, 6), 4, 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        shuffle_concat(y.requires_grad_(), x.requires_grad_(), 4)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_no_images(backend):
    y, x = inputs((0, 8, 4, 6), 4, 2)
    assert [t.shape for t in gradients(shuffle_concat, y, x, 4)] == [(0, 8, 2, 3), y.shape, x.shape]


def test_second_derivatives_are_refused():
    y, x = (t.requires_grad_() for t in inputs((1, 4, 2, 2), 2, 1))
    (dx,) = torch.autograd.grad(shuffle_concat(y, x, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="shuffle_concat_backward"):
        dx.sum().backward()


def test_counts_the_products_with_the_scale():
    y, x = inputs((2, 8, 8, 8), 4, 2)
    with FlopCounterMode(display=False) as counter:
        shuffle_concat(y, x, 4)
        assert counter.get_total_flops() == 0
        shuffle_concat(y, x, 4, torch.tensor(2.0, dtype=torch.float64))
    assert counter.get_total_flops() == 2 * 6 * 16  # images, channels that pass by, pixels of the result


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(4, 4, 4)), "N, C, H, W"),
        (dict(x=torch.zeros(1, 4, 4, 4, dtype=torch.int64)), "int64"),
        (dict(groups=3), "4 channels for 3 groups"),
        (dict(groups=0), "for 0 groups"),
        (dict(y=torch.zeros(1, 3, 4, 4)), r"give a floating tensor \(1, 2, \.\.\.\)"),
        (dict(y=torch.zeros(2, 2, 4, 4)), r"give a floating tensor \(1, 2, \.\.\.\)"),
        (dict(y=torch.zeros(1, 2, 4, 4, dtype=torch.int64)), "int64"),
        (dict(y=torch.zeros(1, 2, 4, 2)), r"give \(4, 4\), or at stride 2 \(2, 2\)"),
        (dict(x=torch.zeros(1, 4, 5, 4), y=torch.zeros(1, 2, 3, 2)), "even height and width"),
        (dict(x=torch.zeros(1, 4, 5, 4), y=torch.zeros(1, 2, 2, 2)), r"at stride 2 \(3, 2\)"),
        (dict(scale=torch.ones(2)), r"shape \(\)"),
        (dict(scale=torch.tensor(1)), "int64"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {**dict(y=torch.zeros(1, 2, 4, 4), x=torch.zeros(1, 4, 4, 4), groups=2, scale=None), **change}
    with pytest.raises(InputError, match=message):
        shuffle_concat(**given)


@pytest.mark.parametrize(
    "dout, want_scale, message",
    [
        (torch.zeros(1, 2, 4, 4), False, r"dout .* give a floating tensor \(1, 4, \.\.\.\)"),
        (torch.zeros(1, 4, 3, 4), False, "dout has height and width"),
        (torch.zeros(1, 4, 4, 4), True, "without a scale"),
    ],
)
def test_a_gradient_that_does_not_fit_is_named(dout, want_scale, message):
    with pytest.raises(InputError, match=message):
        shuffle_concat_backward(dout, torch.zeros(1, 4, 4, 4), 2, None, True, want_scale)
