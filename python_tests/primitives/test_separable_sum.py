import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.errors import InputError
from srnas_fast.primitives.separable_gradient import (
    separable_gradient,
    separable_gradient_,
    separable_gradient_reference,
)
from srnas_fast.primitives.separable_moments import separable_moments, separable_moments_reference
from srnas_fast.primitives.separable_sum import separable_sum, separable_sum_, separable_sum_reference

# (N, C, H, W), O, kernels as (size, dilation), stride. Several blocks of rows need about 80 KiB in an image.
CASES = [
    ((2, 5, 9, 11), 7, [(3, 1), (5, 2), (7, 1)], 1),
    ((1, 20, 57, 33), 20, [(3, 2), (5, 1), (9, 1)], 1),
    ((3, 12, 64, 64), 13, [(3, 1)], 1),
    ((1, 1, 1, 1), 1, [(3, 1), (7, 1)], 1),
    ((2, 3, 2, 3), 4, [(7, 2), (3, 8)], 1),
    ((2, 18, 31, 37), 9, [(3, 1), (5, 2), (7, 1)], 2),
    ((1, 4, 1, 1), 2, [(3, 1), (5, 2)], 2),
    ((18, 2, 8, 7), 3, [(3, 1)], 3),
]
IDS = [f"{'x'.join(map(str, shape))}/{stride}" for shape, _, _, stride in CASES]


class Problem:
    """Random arguments of all three functions for one case."""

    def __init__(self, case, dtype=torch.float64):
        (n, c, h, w), o, kernels, self.stride = case
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.dilations = [d for _, d in kernels]
        count = len(kernels)
        self.x = random(n, c, h, w) + 1
        self.dy = random(n, o, (h - 1) // self.stride + 1, (w - 1) // self.stride + 1)
        self.depthwise = [random(c, 1, k, k) for k, _ in kernels]
        self.pointwise = [random(o, c) for _ in kernels]
        self.left, self.right = [random(c, o) for _ in kernels], [random(c, c) for _ in kernels]
        self.shift, self.centres, self.offsets = random(o), random(count, c), random(count, c)

    def sum(self, function, x=None):
        x = self.x if x is None else x
        rest = (self.shift, self.centres, self.dilations, self.stride)
        return function(x, self.depthwise, self.pointwise, *rest)

    def moments(self, function, x=None):
        return function(self.x if x is None else x, self.depthwise, self.dilations, self.stride)

    def gradient(self, function, *wanted, x=None, dy=None, **changes):
        parts = dict(left=self.left, right=self.right, offsets=self.offsets, centres=self.centres)
        x, dy = self.x if x is None else x, self.dy if dy is None else dy
        return function(x, dy, self.depthwise, *{**parts, **changes}.values(), self.dilations, self.stride, *wanted)


def check(actual, expected, tolerance=1e-11):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert (a - e).abs().max() <= tolerance * max(1.0, e.abs().max()) if a.numel() else True


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_agree_with_the_references(case, backend, layouts):
    problem = Problem(case)
    y = problem.sum(separable_sum_reference)
    moments = problem.moments(separable_moments_reference)
    gradients = problem.gradient(separable_gradient_reference)
    for (_, x), (_, dy) in zip(layouts(problem.x), layouts(problem.dy), strict=True):
        check([problem.sum(separable_sum, x)], [y])
        check(problem.moments(separable_moments, x), moments)
        check(problem.gradient(separable_gradient, x=x, dy=dy), gradients)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_float32_is_as_good_as_torch(case):
    double, single = Problem(case), Problem(case, torch.float32)
    for run in (
        lambda p, ours: [p.sum(separable_sum if ours else separable_sum_reference)],
        lambda p, ours: p.moments(separable_moments if ours else separable_moments_reference),
        lambda p, ours: p.gradient(separable_gradient if ours else separable_gradient_reference),
    ):
        exact = run(double, False)
        for a, t, e in zip(run(single, True), run(single, False), exact, strict=True):
            assert (a - e).norm() <= 2 * (t - e).norm() + 1e-6 * e.norm()


def test_covariance_of_values_far_from_zero():
    problem = Problem(CASES[2], torch.float32)
    x = problem.x * 1e-2 + 100
    kernels = [torch.zeros(12, 1, 3, 3)]
    kernels[0][:, :, 1, 1] = 1  # so that padding does not dominate the covariance
    means, covariances = separable_moments(x, kernels, [1])
    exact = separable_moments_reference(x.double(), [kernels[0].double()], [1])
    torch.testing.assert_close(means.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(covariances.double(), exact[1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("part", [["left", "dy"], ["right"], ["right", "offsets"], ["offsets"], ["centres"]])
def test_gradient_without_some_parts(part, backend):
    problem = Problem(CASES[0])
    without = dict.fromkeys(part)
    wanted = (True, True, "dy" not in part)
    dy_given = without.pop("dy", True)
    if dy_given is None:
        problem.dy = None
    expected = problem.gradient(separable_gradient_reference, *wanted, **without)
    check(problem.gradient(separable_gradient, *wanted, **without), expected)


@pytest.mark.parametrize("wanted", [(x, d, p) for x in (0, 1) for d in (0, 1) for p in (0, 1)])
def test_gradient_gives_what_is_wanted(wanted, backend):
    problem, wanted = Problem(CASES[0]), [bool(want) for want in wanted]
    check(problem.gradient(separable_gradient, *wanted), problem.gradient(separable_gradient_reference, *wanted))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_twins_accumulate(case, backend, layouts):
    problem = Problem(case)
    start = torch.full_like(problem.dy, 3.0)
    expected = start + problem.sum(separable_sum_reference)
    for _, y in layouts(start):
        rest = (problem.shift, problem.centres, problem.dilations, problem.stride)
        assert separable_sum_(y, problem.x, problem.depthwise, problem.pointwise, *rest) is y
        check([y], [expected])
    y = start.clone()
    separable_sum_(y, problem.x, problem.depthwise, problem.pointwise, None, None, problem.dilations, problem.stride)
    rest = (None, None, problem.dilations, problem.stride)
    check([y], [start + separable_sum_reference(problem.x, problem.depthwise, problem.pointwise, *rest)])

    dx, *results = problem.gradient(separable_gradient_reference)
    for _, given in layouts(torch.full_like(problem.x, 3.0)):
        got = problem.gradient(lambda *arguments, to=given: separable_gradient_(to, *arguments))
        check([given, *got], [dx + 3, *results])


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=[IDS[1], IDS[5]])
@pytest.mark.parametrize("images", [1, 3, 5])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_threads_change_nothing(case, images, form):
    problem = Problem(((images, *case[0][1:]), *case[1:]), torch.float32)
    x, dy = problem.x.to(memory_format=form), problem.dy.to(memory_format=form)

    def everything():
        moments, gradients = problem.moments(separable_moments, x), problem.gradient(separable_gradient, x=x, dy=dy)
        return [problem.sum(separable_sum, x), *moments, *gradients]

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_autograd_agrees_with_the_references(backend):
    for case in (CASES[0], CASES[5]):
        problem = Problem(case)
        leaves = [problem.x, problem.shift, problem.centres, *problem.depthwise, *problem.pointwise]
        for leaf in leaves:
            leaf.requires_grad_()
        gradients = []
        for total, moments in (
            (separable_sum, separable_moments),
            (separable_sum_reference, separable_moments_reference),
        ):
            means, covariances = problem.moments(moments)
            loss = (
                (problem.sum(total) * problem.dy).sum()
                + means.square().sum()
                + (covariances * covariances.tril()).sum()
            )
            gradients.append(torch.autograd.grad(loss, leaves))
        check(*gradients)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride, backend):
    problem = Problem(((2, 3, 4, 5), 2, [(3, 1), (3, 2)], stride))
    x, depthwise, pointwise = problem.x, problem.depthwise, problem.pointwise
    leaves = [x, problem.shift, problem.centres, *depthwise, *pointwise]
    for leaf in leaves:
        leaf.requires_grad_()

    def total(x, shift, centres, *matrices):
        return separable_sum(x, matrices[:2], matrices[2:], shift, centres, problem.dilations, stride)

    assert torch.autograd.gradcheck(total, leaves)
    assert torch.autograd.gradcheck(
        lambda x, *depthwise: separable_moments(x, depthwise, problem.dilations, stride), [x, *depthwise]
    )


def test_differentiable_once(backend):
    problem = Problem(CASES[0])
    y = problem.sum(separable_sum, problem.x.requires_grad_())
    (dx,) = torch.autograd.grad(y.square().sum(), problem.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        dx.sum().backward()


def test_only_what_is_asked_for(backend):
    problem = Problem(CASES[0])
    problem.pointwise[1].requires_grad_()
    (grad,) = torch.autograd.grad((problem.sum(separable_sum) * problem.dy).sum(), problem.pointwise[1])
    expected = problem.gradient(separable_gradient_reference, False, False, True)[-2]
    check([grad], [expected])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype, backend):
    half, wide = Problem(CASES[0], dtype), Problem(CASES[0], dtype)
    for name, value in vars(wide).items():
        if isinstance(value, torch.Tensor):
            setattr(wide, name, value.float())
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            setattr(wide, name, [matrix.float() for matrix in value])
    y = half.sum(separable_sum)
    check([y], [wide.sum(separable_sum_reference).to(dtype)], 2e-2)
    check(half.moments(separable_moments), wide.moments(separable_moments_reference), 1e-4)
    dx, dysum, *rest = half.gradient(separable_gradient)
    expected_dx, expected_dysum, *expected = wide.gradient(separable_gradient_reference)
    count = len(half.depthwise)
    check([dx, *rest[:count]], [g.to(dtype) for g in (expected_dx, *expected[:count])], 2e-2)
    check([dysum, *rest[count:]], [expected_dysum, *expected[count:]], 1e-4)
    target = half.dy.clone()
    separable_sum_(target, half.x, half.depthwise, half.pointwise, None, None, half.dilations, half.stride)
    assert not torch.equal(target, half.dy)


def test_autocast_computes_in_float32(backend):
    problem = Problem(CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = problem.sum(separable_sum, problem.x.bfloat16())
        means, _ = problem.moments(separable_moments, problem.x.bfloat16())
    check([y], [problem.sum(separable_sum_reference, problem.x.bfloat16().float())], 1e-5)
    assert means.dtype == torch.float32


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck(form, backend):
    problem = Problem(((2, 3, 5, 6), 4, [(3, 1), (3, 2)], 2), torch.float32)
    x, dy = problem.x.to(memory_format=form), problem.dy.to(memory_format=form)
    ops = torch.ops.srnas_fast
    leaves = x.clone().requires_grad_(), [w.clone().requires_grad_() for w in problem.depthwise]
    rest = (problem.shift, problem.centres, problem.dilations, 2)
    opcheck(ops.separable_sum.default, (*leaves, [p.clone().requires_grad_() for p in problem.pointwise], *rest))
    opcheck(ops.separable_sum_.default, (dy.clone(), x, problem.depthwise, problem.pointwise, *rest))
    opcheck(ops.separable_moments.default, (*leaves, problem.dilations, 2))
    rest = (problem.depthwise, problem.left, problem.right, problem.offsets, problem.centres, problem.dilations, 2)
    opcheck(ops.separable_gradient.default, (x, dy, *rest, True, True, True))
    opcheck(ops.separable_gradient.default, (x, dy, *rest, False, True, False))
    opcheck(ops.separable_gradient_.default, (x.clone(), x, dy, *rest, True, True))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(form, backend):
    problem = Problem(CASES[0])
    x = problem.x.to(memory_format=form)
    assert problem.sum(separable_sum, x).is_contiguous(memory_format=form)
    assert problem.gradient(separable_gradient, x=x)[0].is_contiguous(memory_format=form)


def test_flops():
    (n, c, h, w), o, kernels, stride = CASES[5]
    problem = Problem(CASES[5], torch.float32)
    pixels = 2 * 16 * 19
    convolutions = pixels * c * sum(k * k for k, _ in kernels)
    for run, macs in (
        (lambda: problem.sum(separable_sum), convolutions + 3 * pixels * c * o),
        (lambda: problem.moments(separable_moments), convolutions + 3 * pixels * c * c),
        (lambda: problem.gradient(separable_gradient), 3 * convolutions + 3 * pixels * c * (2 * o + c)),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(pointwise=[torch.zeros(2, 4)]), r"give \(2, 3\)"),
        (dict(pointwise=[]), r"give 1 matrices \(O, 3\)"),
        (dict(pointwise=[torch.zeros(2, 3)] * 2), "2 pointwise matrices for 1"),
        (dict(shift=torch.zeros(3)), r"shift has shape \(3,\); give \(2,\)"),
        (dict(centres=torch.zeros(3)), r"centres has shape \(3,\); give \(1, 3\)"),
        (dict(dilations=[]), "0 dilations"),
    ],
)
def test_bad_input_is_named(change, message):
    given = dict(
        x=torch.zeros(1, 3, 4, 4),
        depthwise=[torch.zeros(3, 1, 3, 3)],
        pointwise=[torch.zeros(2, 3)],
        shift=None,
        centres=None,
        dilations=[1],
    )
    with pytest.raises(InputError, match=message):
        separable_sum(**{**given, **change})


def test_bad_gradient_input_is_named():
    problem = Problem(CASES[0])
    with pytest.raises(InputError, match="give dy, or want_products=False"):
        separable_gradient(problem.x, None, problem.depthwise, None, problem.right, None, None, problem.dilations)
    with pytest.raises(InputError, match=r"dy has shape .* give \(2, 7, 9, 11\)"):
        problem.gradient(separable_gradient, dy=problem.dy[:, :, 1:])
    with pytest.raises(InputError, match="right matrices for 3"):
        problem.gradient(separable_gradient, right=problem.right[:1])
    with pytest.raises(InputError, match="at least one image"):
        problem.moments(separable_moments, problem.x[:0])
