import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.backends import cpu_kernels
from srnas_fast.errors import InputError
from srnas_fast.primitives import weighted_sum, weighted_sum_, weighted_sum_backward
from srnas_fast.primitives.weighted_sum import weighted_sum_reference

pytestmark = pytest.mark.usefixtures("backend")

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# Short and long rows and planes, channels that fit vectors and that do not, more than one piece of work.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 12, 31, 33),
    (2, 20, 64, 64),
    (1, 48, 13, 129),
    (2, 513, 3, 3),
    (5, 2100, 1, 1),
]


def inputs(shape, count=3, per_channel=True, dtype=torch.float64, form=NCHW):
    torch.manual_seed(0)
    channels = shape[1]
    zs = [torch.randn(shape, dtype=dtype).contiguous(memory_format=form) for _ in range(count)]
    weights = torch.randn((count, channels) if per_channel else count, dtype=dtype)
    return weights, zs, torch.randn(channels, dtype=dtype), torch.randn(count, channels, dtype=dtype)


def gradients(function, weights, zs, shift, centres, dy):
    """y and every gradient, of fresh leaves."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (weights, *zs, shift, centres)]
    y = function(leaves[0], leaves[1:-2], leaves[-2], leaves[-1])
    return y, torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)


def assert_same(ours, exact, tolerance):
    for value, expected in zip(ours, exact, strict=True):
        floor = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
        torch.testing.assert_close(value.double(), expected.double(), rtol=0, atol=tolerance * floor)


def test_values_by_hand():
    z = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    weights, centres = torch.tensor([[2.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    y = weighted_sum(weights, [z, 10 * z], torch.tensor([0.5, 0.0]), centres)
    torch.testing.assert_close(y, torch.tensor([[[0.5, 2.5], [3.0 - 27.0, 4.0 - 37.0]]]))
    dweights, dysum, first, second = weighted_sum_backward(torch.ones_like(z), weights, [z, 10 * z], centres)
    torch.testing.assert_close(dweights, torch.tensor([[1.0, 7.0], [30.0, 64.0]]))
    torch.testing.assert_close(dysum, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(first, torch.tensor([[[2.0, 2.0], [1.0, 1.0]]]))
    torch.testing.assert_close(second, torch.tensor([[[0.0, 0.0], [-1.0, -1.0]]]))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, form, dtype, tolerance):
    for per_channel in (False, True):
        for extras in (False, True):
            weights, zs, shift, centres = inputs(shape, 3, per_channel, dtype, form)
            if not extras:
                shift = centres = None
            dy = torch.randn(shape, dtype=dtype).contiguous(memory_format=form)
            y, ours = gradients(weighted_sum, weights, zs, shift, centres, dy)
            wide = [None if t is None else t.double() for t in (shift, centres)]
            exact_y, exact = gradients(
                weighted_sum_reference, weights.double(), [z.double() for z in zs], *wide, dy.double()
            )
            assert y.dtype == dtype and y.is_contiguous(memory_format=form)
            assert_same([y, *ours], [exact_y, *exact], tolerance)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 9])
@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_any_number_of_tensors(count, form):
    weights, zs, shift, centres = inputs((2, 10, 33, 31), count, True, torch.float64, form)
    y, ours = gradients(weighted_sum, weights, zs, shift, centres, torch.ones_like(zs[0]))
    exact_y, exact = gradients(weighted_sum_reference, weights, zs, shift, centres, torch.ones_like(zs[0]))
    assert_same([y, *ours], [exact_y, *exact], 1e-13)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 70), (2, 3, 4, 5, 6), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_other_dimensions_and_empty_tensors(shape):
    zs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weights = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    y = weighted_sum(weights, zs)
    expected = 0.5 * zs[0] - 2 * zs[1]
    torch.testing.assert_close(y, expected)
    leaves = [weights, *zs]
    ours = torch.autograd.grad(y.sum(), leaves)
    torch.testing.assert_close(ours[0], torch.stack([z.detach().sum() for z in zs]))
    torch.testing.assert_close(ours[1:], torch.autograd.grad(expected.sum(), zs))
    torch.testing.assert_close(weighted_sum_(torch.ones(shape).double(), weights.detach(), zs), expected.detach() + 1)


def test_slices_and_mixed_layouts():
    whole = torch.randn(2, 9, 11, 12, dtype=torch.float64)
    shift, centres, weights = (torch.randn(s, dtype=torch.float64) for s in ((3,), (2, 3), (2, 6)))
    weights = weights[:, ::2]
    for form in (NCHW, CHANNELS_LAST):
        first = whole.contiguous(memory_format=form)[:, 2:5, 1:, ::2]
        for second in (
            whole.contiguous(memory_format=CHANNELS_LAST)[:, :3, :10, :6],
            torch.randn(2, 3, 10, 6).double(),
        ):
            for dy in (first.clone(), torch.ones_like(second).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
                y, ours = gradients(lambda w, zs, *rest: weighted_sum(w, [z[:] for z in zs], *rest),
                                    weights, [first, second], shift, centres, dy)  # fmt: skip
                exact_y, exact = gradients(weighted_sum_reference, weights, [first, second], shift, centres, dy)
                assert_same([y, *ours], [exact_y, *exact], 1e-13)
        y = weighted_sum(weights, [first, second], shift, centres)
        assert y.is_contiguous(memory_format=form)
        torch.testing.assert_close(y, weighted_sum_reference(weights, [first, second], shift, centres))
        dweights, _, dz, _ = weighted_sum_backward(torch.ones_like(second), weights, [first, second], centres)
        assert dz.is_contiguous(memory_format=form)
        torch.testing.assert_close(dweights[1], (second - centres[1].view(3, 1, 1)).sum((0, 2, 3)))


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_channels(shape, form):
    """Read in place: blocks of any length against rows of any length."""
    n, c, h, w = shape
    whole = torch.randn(n + 1, c + 3, h, w, dtype=torch.float64).contiguous(memory_format=form)
    zs = [whole[1:, 2:-1], whole[:-1, :c], torch.randn(shape, dtype=torch.float64), whole[:1, 3:].expand(shape)]
    weights, _, shift, centres = inputs(shape, 4)
    for extras in ((shift, centres), (None, None)):
        y, ours = gradients(weighted_sum, weights, zs, *extras, torch.ones_like(zs[2]))
        exact_y, exact = gradients(weighted_sum_reference, weights, zs, *extras, torch.ones_like(zs[2]))
        assert_same([y, *ours], [exact_y, *exact], 1e-13)
        found = weighted_sum(weights, zs, *extras)  # not clones: gradients() makes some
        torch.testing.assert_close(found, exact_y)
        dweights, *_ = weighted_sum_backward(zs[2], weights, zs, extras[1])
        leaf = weights.clone().requires_grad_()
        torch.testing.assert_close(
            dweights, torch.autograd.grad(weighted_sum_reference(leaf, zs, *extras), leaf, zs[2])[0]
        )


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_twin_adds_in_place(form):
    weights, zs, shift, centres = inputs((2, 6, 9, 8), 2, True, torch.float64, form)
    expected = weighted_sum_reference(weights, zs, shift, centres)
    whole = torch.randn(2, 9, 9, 8, dtype=torch.float64).contiguous(memory_format=form)
    for y in (torch.ones_like(zs[0]), whole[:, 2:8]):
        for extras in ((shift, centres), (shift, None), (None, None)):
            before = y.clone()
            assert weighted_sum_(y, weights, zs, *extras) is y
            torch.testing.assert_close(y, before + weighted_sum_reference(weights, zs, *extras))
    assert not torch.equal(whole[:, 2:8], expected)


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_does_not_depend_on_the_number_of_threads(form):
    weights, zs, shift, centres = inputs((4, 12, 64, 65), 3, True, torch.float32, form)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([weighted_sum(weights, zs, shift, centres)])
            results[-1] += weighted_sum_backward(zs[2], weights, zs, centres)
    finally:
        torch.set_num_threads(before)
    if cpu_kernels() is not None:
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_large_common_mean_costs_no_digits():
    torch.manual_seed(0)
    z = torch.randn(2, 12, 64, 64) + 1000
    dy = torch.randn_like(z)
    centres = z.mean((0, 2, 3))[None]
    dweights, *_ = weighted_sum_backward(dy, torch.ones(1, 12), [z], centres)
    exact = (dy.double() * (z.double() - centres.double().view(1, 12, 1, 1))).sum((0, 2, 3))
    assert ((dweights[0] - exact).abs() / exact.abs().max()).max() < 1e-5


def test_gradcheck():
    for per_channel in (False, True):
        weights, zs, shift, centres = inputs((2, 3, 4, 3), 2, per_channel, torch.float64, CHANNELS_LAST)
        leaves = [t.requires_grad_() for t in (weights, shift, centres, *zs)]
        assert torch.autograd.gradcheck(lambda w, s, c, *zs: weighted_sum(w, zs, s, c), leaves)


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_opcheck(form):
    ops = torch.ops.srnas_fast
    for per_channel in (False, True):
        weights, zs, shift, centres = inputs((2, 3, 4, 5), 2, per_channel, torch.float32, form)
        plain = weights, [z[:, :, 1:] for z in zs], shift, centres
        torch.library.opcheck(ops.weighted_sum, plain)
        torch.library.opcheck(ops.weighted_sum_, (torch.zeros_like(zs[0]), weights, zs, None, centres))
        torch.library.opcheck(ops.weighted_sum_backward, (zs[0], weights, zs, centres, True, [True, False]))
        torch.library.opcheck(ops.weighted_sum_backward, (zs[0], weights, [], None, False, [False, True]))
        leaves = [t.requires_grad_() for t in (weights, *zs, shift, centres)]
        torch.library.opcheck(ops.weighted_sum, (leaves[0], leaves[1:3], *leaves[3:]))


def test_computes_only_what_is_wanted():
    weights, zs, _, _ = inputs((2, 3, 4, 5))
    dweights, dysum, *dzs = weighted_sum_backward(zs[0], weights, [], None, False, [False, True, False])
    assert [t.numel() for t in (dweights, *dzs)] == [0, 0, 120, 0]
    torch.testing.assert_close(dzs[1], weights[1].view(3, 1, 1) * zs[0])
    torch.testing.assert_close(dysum, zs[0].sum((0, 2, 3)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weighted_sum(weights, [z.requires_grad_() for z in zs])
    assert sum(t.numel() for t in kept) == weights.numel()  # fixed weights: no tensor is kept


def test_second_derivatives_are_refused():
    weights, zs, _, _ = inputs((2, 3, 4, 5))
    leaves = weights.requires_grad_(), zs[0].requires_grad_()
    (dz,) = torch.autograd.grad((weighted_sum(weights, zs) ** 2).sum(), leaves[1:], create_graph=True)
    with pytest.raises(RuntimeError, match="weighted_sum_backward"):
        dz.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    weights, zs, shift, centres = inputs((2, 3, 8, 8), 3, True, dtype)
    y, ours = gradients(weighted_sum, weights, zs, shift, centres, zs[0])
    wide = weights.float(), [z.float() for z in zs], shift.float(), centres.float()
    exact_y, exact = gradients(weighted_sum_reference, *wide, zs[0].float())
    assert y.dtype == dtype and torch.equal(y, exact_y.to(dtype))
    assert all(grad.dtype == dtype for grad in ours)
    assert_same(ours, exact, 2 * torch.finfo(dtype).eps)
    mixed = weighted_sum(weights.float(), zs)  # weights of another type than the tensors
    assert mixed.dtype == dtype


def test_autocast_computes_in_float32():
    weights, zs, _, _ = inputs((2, 3, 4, 4), 2, False, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert weighted_sum(weights, zs).dtype == torch.float32


@pytest.mark.parametrize("form", [NCHW, CHANNELS_LAST])
def test_broken_numbers_come_through_and_stay_in_their_place(form):
    weights, zs, shift, centres = inputs((2, 12, 20, 20), 2, True, torch.float32, form)
    zs[0][1, 3, 2, 5], zs[1][0, 7, 0, 0] = float("nan"), float("inf")
    y = weighted_sum(weights, zs, shift, centres)
    assert y.isnan().nonzero().tolist() == [[1, 3, 2, 5]] and y.isinf().nonzero().tolist() == [[0, 7, 0, 0]]
    dweights, dysum, *_ = weighted_sum_backward(torch.ones_like(zs[0]), weights, zs, centres)
    assert dweights.isnan().nonzero().tolist() == [[0, 3]] and dweights.isinf().nonzero().tolist() == [[1, 7]]
    assert dysum.tolist() == [800.0] * 12


def test_counts_multiply_adds():
    weights, zs, _, _ = inputs((2, 3, 4, 5))
    with FlopCounterMode(display=False) as counter:
        y = weighted_sum(weights.requires_grad_(), [z.requires_grad_() for z in zs])
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * 3 * 120 and counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    "weights, shapes, shift, centres, message",
    [
        ((0,), [], None, None, "at least one"),
        ((2,), [(1, 2, 3, 3)], None, None, "do not go with 1 tensors"),
        ((1, 3), [(1, 2, 3, 3)], None, None, r"\(K, C\)"),
        ((2,), [(1, 2, 3, 3), (1, 2, 3, 1)], None, None, "one shape"),
        ((1,), [(1, 2, 3, 3)], (3,), None, r"shift \(3,\)"),
        ((1,), [(1, 2, 3, 3)], None, (2,), r"centres \(2,\)"),
        ((1,), [(4,)], (1,), None, "shift"),
    ],
)
def test_wrong_shapes(weights, shapes, shift, centres, message):
    shift, centres = (None if shape is None else torch.zeros(shape) for shape in (shift, centres))
    with pytest.raises(InputError, match=message):
        weighted_sum(torch.zeros(weights), [torch.zeros(shape) for shape in shapes], shift, centres)


def test_other_wrong_inputs():
    z, weights = torch.zeros(1, 2, 3, 3), torch.zeros(1)
    with pytest.raises(InputError, match="one floating type"):
        weighted_sum(weights, [z.long()])
    with pytest.raises(InputError, match="y has shape"):
        weighted_sum_(z[0], weights, [z])
    with pytest.raises(InputError, match="dy has shape"):
        weighted_sum_backward(z[0], weights, [z])
    with pytest.raises(InputError, match="want_zs has 2 entries"):
        weighted_sum_backward(z, weights, [z], None, True, [True, True])


def test_autograd_notices_what_is_written_in_place():
    y = torch.ones(3, requires_grad=True) * 2
    z = y * y
    with torch.no_grad():
        weighted_sum_(y, torch.ones(1), [torch.ones(3)])
    with pytest.raises(RuntimeError, match="inplace"):
        z.sum().backward()
