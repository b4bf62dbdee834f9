import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from srnas_fast.errors import InputError
from srnas_fast.primitives import simplex_project
from srnas_fast.primitives.simplex_project import FLOOR

DOUBLE = dict(dtype=torch.float64)


def sparsemax(z):
    """Of one row, by its definition."""
    order = z.sort(descending=True).values
    thresholds = (order.cumsum(0) - 1) / torch.arange(1, len(z) + 1)
    return (z - thresholds[order > thresholds][-1]).clamp(min=0)


def recursion(z, radius, as_published=False):
    """The published recursion on one row, to be differentiated by autograd: (weights, rounds, d - r of each round)."""
    centre, first = z.new_full(z.shape, 1 / len(z)), True
    gaps = []
    while True:
        w = sparsemax(z)
        alive = (w > 0).detach()
        if alive.sum() == 1:
            return alive.to(z), len(gaps), gaps
        u = alive.to(z) / alive.sum()
        if not (first and as_published):
            radius = math.sqrt(max(0.0, radius**2 - (u - centre).square().sum().item()))
        d = (w - u).norm()
        gaps.append((d - radius).item())
        if d >= radius:
            return w, len(gaps) - 1, gaps
        p = u + radius * (w - u) / d
        if p.min() >= 0:
            return p, len(gaps), gaps
        z, centre, first = p, u, False


def some_rows(count, choices, scale, seed=0):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, choices, generator=random, **DOUBLE), torch.rand(
        count, generator=random, **DOUBLE
    )


def jacobian(weights, logits):
    return torch.stack([torch.autograd.grad(w, logits, retain_graph=True)[0] for w in weights])


def test_values_by_hand(backend):
    logits = torch.tensor([0.9, 0.6, -1.0], **DOUBLE)
    lead = math.sqrt((0.36 - (1 / 2 - 1 / 3)) / 2)
    torch.testing.assert_close(simplex_project(logits), torch.tensor([0.65, 0.35, 0.0], **DOUBLE))
    torch.testing.assert_close(simplex_project(logits, 0.6), torch.tensor([0.5 + lead, 0.5 - lead, 0.0], **DOUBLE))
    published = simplex_project(logits, 0.6, as_published=True)
    lead = 0.6 / math.sqrt(2)
    torch.testing.assert_close(published, torch.tensor([0.5 + lead, 0.5 - lead, 0.0], **DOUBLE))


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("choices, scale", [(2, 0.3), (3, 0.3), (5, 0.1), (9, 0.03), (9, 1.0)])
def test_agrees_with_the_recursion_and_its_autograd(choices, scale, as_published, backend):
    logits, radii = some_rows(60, choices, scale)
    logits.requires_grad_()
    weights = simplex_project(logits, radii, as_published)
    rounds = []
    for i, (row, radius) in enumerate(zip(logits, radii.tolist(), strict=True)):
        expected, n, _ = recursion(row, radius, as_published)
        rounds.append(n)
        torch.testing.assert_close(weights[i], expected, rtol=0, atol=1e-12)
        dweights = torch.linspace(-1, 2, choices, **DOUBLE).cos()
        (dlogits,) = torch.autograd.grad(weights[i], logits, dweights, retain_graph=True)
        (of_recursion,) = torch.autograd.grad(expected, logits, dweights) if expected.requires_grad else (0 * logits,)
        torch.testing.assert_close(dlogits, of_recursion, rtol=1e-8, atol=1e-10)
    assert len(set(rounds)) > 1  # sparsemax alone, and rounds with the radius


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_the_gradient_agrees_with_finite_differences(rounds, backend):
    found, step = 0, 1e-6
    logits, radii = some_rows(1500, 8, 0.05, seed=1)
    for z, radius in zip(logits, radii.tolist(), strict=True):
        weights, n, gaps = recursion(z, radius)
        if n != rounds or min(map(abs, gaps)) < 1e-3 or (weights > 0).sum() < 2:
            continue
        shifts = torch.cat([step * torch.eye(8, **DOUBLE), -step * torch.eye(8, **DOUBLE)])
        shifted = simplex_project(z + shifts, radius)
        if not ((shifted > 0) == (weights > 0)).all():  # a kink
            continue
        differences = (shifted[:8] - shifted[8:]).T / (2 * step)
        z = z.clone().requires_grad_()
        torch.testing.assert_close(jacobian(simplex_project(z, radius), z), differences, rtol=1e-5, atol=1e-5)
        found += 1
        if found == 12:
            return
    pytest.fail(f"only {found} rows take {rounds} rounds")


def test_the_jacobian_is_the_closed_form(backend):
    z = torch.tensor([0.4, 0.1, 0.2, -0.5], requires_grad=True, **DOUBLE)
    weights = simplex_project(z, 0.5)
    assert (weights > 0).tolist() == [True, True, True, False]
    alive = torch.tensor([1.0, 1, 1, 0], **DOUBLE)
    plane = torch.diag(alive) - torch.outer(alive, alive) / 3
    d, r = (plane @ z).norm(), math.sqrt(0.25 - (1 / 3 - 1 / 4))
    n = (plane @ z / d).detach()
    torch.testing.assert_close(jacobian(weights, z), (r / d).detach() * (plane - torch.outer(n, n)))
    assert jacobian(simplex_project(z), z).equal(jacobian(simplex_project(z, 0.1), z))  # a radius that does not bind


def test_a_binding_radius_on_two_freezes_them(backend):
    z = torch.tensor([0.4, 0.3, -5.0], requires_grad=True)
    weights = simplex_project(z, 0.7)
    assert (weights > 0).tolist() == [True, True, False]
    torch.testing.assert_close(jacobian(weights, z), torch.zeros(3, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("as_published", [False, True])
def test_gradcheck(as_published, backend):
    logits, radii = some_rows(40, 5, 0.2, seed=2)
    logits = logits.view(2, 4, 5, 5)
    assert torch.autograd.gradcheck(
        lambda z: simplex_project(z, radii.view(2, 4, 5), as_published), logits.requires_grad_(), eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 1e-7)])
@pytest.mark.parametrize("choices", [1, 2, 7, 55])
def test_radii_of_one_hot_rows(choices, dtype, tolerance, backend):
    logits = some_rows(30, choices, 1.0)[0].to(dtype)
    first = torch.nn.functional.one_hot(logits.argmax(-1), choices).to(dtype)
    corner = math.sqrt((choices - 1) / choices)
    for radius in (corner, torch.tensor(corner, dtype=dtype), 1.0, 1e200):
        assert torch.equal(simplex_project(logits, radius), first)
        assert torch.equal(
            simplex_project(torch.zeros_like(logits), radius), torch.eye(choices, dtype=dtype)[:1] + 0 * logits
        )
    # Below it: the distance from the centre is the radius.
    weights = simplex_project(1e-3 * logits, 0.9 * corner)
    assert weights.dtype == dtype and weights.is_contiguous()
    torch.testing.assert_close(weights.sum(-1), torch.ones(30, dtype=dtype), rtol=0, atol=4 * tolerance)
    distance = (weights - 1 / choices).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.9 * corner), rtol=0, atol=4 * tolerance)


def test_one_choice(backend):
    z = torch.tensor([[3.0], [-1e30]], requires_grad=True)
    for radius in (0.0, 0.5, 1.0):
        weights = simplex_project(z, radius)
        assert weights.tolist() == [[1.0], [1.0]]
        assert torch.autograd.grad((weights * 7).sum(), z)[0].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("choices", [2, 3, 7])
def test_equal_logits_share_until_the_first_takes_all(choices, backend):
    equal = torch.full((5, choices), 1.3, **DOUBLE)
    corner = math.sqrt((choices - 1) / choices)
    radii = corner * torch.tensor([0.0, 0.3, 0.7, 0.999, 1.0], **DOUBLE)
    weights = simplex_project(equal, radii)
    assert (weights[0] == 1 / choices).all()
    assert weights[4].tolist() == [1.0] + [0.0] * (choices - 1)
    torch.testing.assert_close((weights - 1 / choices).norm(dim=-1), radii)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, **DOUBLE))
    assert (weights[:, 1:] == weights[:, 1:2]).all() and (weights >= 0).all()
    assert (weights[:, 0].diff() > 0).all()
    # What it tends to where the first one leads by less and less.
    ahead = equal.clone()
    ahead[:, 0] += 1e-12
    torch.testing.assert_close(simplex_project(ahead, radii), weights, rtol=0, atol=1e-9)


def test_some_equal_logits(backend):
    tied = torch.tensor([0.2, 0.5, 0.5, 0.5, 0.1], **DOUBLE)
    face = math.sqrt(1 / 3 - 1 / 5)
    at_the_centre = simplex_project(tied, face)
    torch.testing.assert_close(at_the_centre, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0], **DOUBLE), rtol=0, atol=1e-7)
    before = simplex_project(tied, 0.9 * face)
    assert before[1] == before[2] == before[3] and before[0] > 0
    beyond = simplex_project(tied, 1.5 * face)
    assert beyond[1] > beyond[2] == beyond[3] > 0 and beyond[0] == beyond[4] == 0
    assert (beyond - 0.2).norm().item() == pytest.approx(1.5 * face)
    assert simplex_project(tied, 1.0).tolist() == [0, 1, 0, 0, 0]
    # Equal entries that are not the largest always have equal weights.
    lower = simplex_project(
        torch.tensor([0.3, 0.1, 0.3, 0.1, 0.5], **DOUBLE).expand(50, 5), torch.linspace(0, 0.9, 50, **DOUBLE)
    )
    assert (lower[..., 0] == lower[..., 2]).all() and (lower[..., 1] == lower[..., 3]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_ties_have_a_finite_gradient(dtype, backend):
    plane = torch.eye(3, dtype=dtype) - 1 / 3
    for lead in (0.0, 1e-30, 1e-7, 1e-5):
        z = torch.tensor([0.0, lead, 0.5 * lead], dtype=dtype, requires_grad=True)
        weights = simplex_project(z, 0.3)
        assert (weights - 1 / 3).norm().item() == pytest.approx(0.3, rel=1e-5)
        assert weights.argmax() == (1 if lead else 0)
        n = plane @ z.detach().sign().mul(torch.tensor([0, 1, 0.5], dtype=dtype))
        n = n / n.norm() if lead else n
        expected = 0.3 / FLOOR * (plane - torch.outer(n, n))
        torch.testing.assert_close(jacobian(weights, z), expected, rtol=1e-4, atol=1e-2)


def test_the_gain_is_never_below_that_without_a_radius(backend):
    z = torch.tensor([0.0, 1e-6, 3e-6], requires_grad=True, **DOUBLE)
    d = (z - z.mean()).norm().item()
    for radius in (d * 1.001, d * 10):  # both below the floor
        weights = simplex_project(z, radius)
        n = ((z - z.mean()) / d).detach()
        expected = torch.eye(3, **DOUBLE) - 1 / 3 - torch.outer(n, n)
        torch.testing.assert_close(jacobian(weights, z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 0.4, 0.7])
def test_huge_and_tiny_logits(radius, dtype, backend):
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    base = torch.tensor([0.3, -0.5, 0.9, 0.1], dtype=dtype)
    for scale in (1e30, largest, 1e-30, smallest * 4):
        z = (base * scale).requires_grad_()
        weights = simplex_project(z, radius)
        (dlogits,) = torch.autograd.grad(weights @ torch.tensor([1.0, 2, -1, 0.5], dtype=dtype), z)
        assert dlogits.isfinite().all()
        assert weights.sum().item() == pytest.approx(1) and (weights[2] >= weights).all()
        if scale >= 1e30:
            assert weights.tolist() == [0, 0, 1, 0]
        elif radius:
            small = simplex_project(base.double() * 1e-6, radius)  # direction is all that counts
            torch.testing.assert_close(weights.double(), small, rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(weights, torch.full_like(weights, 0.25))
    torch.testing.assert_close(
        simplex_project(torch.tensor([-largest, largest, largest], dtype=dtype), 0.2),
        torch.tensor([0.0, 0.5, 0.5], dtype=dtype),
    )


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.6, 0.75, 1.0])
def test_an_illegal_entry_is_as_if_it_were_not_there(radius, backend):
    z = torch.tensor([[0.3, -math.inf, 0.1, 0.2, -math.inf]], requires_grad=True, **DOUBLE)
    short = z.detach()[:, [0, 2, 3]].requires_grad_()
    weights, expected = simplex_project(z, radius), simplex_project(short, radius)
    assert torch.equal(weights[:, [0, 2, 3]], expected) and (weights[:, [1, 4]] == 0).all()
    dweights = torch.tensor([[1.0, 5, -2, 0.5, 7]], **DOUBLE)
    (dlogits,) = torch.autograd.grad(weights, z, dweights)
    (dshort,) = torch.autograd.grad(expected, short, dweights[:, [0, 2, 3]])
    torch.testing.assert_close(dlogits[:, [0, 2, 3]], dshort)
    assert (dlogits[:, [1, 4]] == 0).all()
    assert simplex_project(torch.tensor([-math.inf, 5.0]), radius).tolist() == [0, 1]


def test_gradients_off_the_support_are_exact_zeros(backend):
    logits, radii = some_rows(300, 6, 0.2)
    logits = logits.float().requires_grad_()
    weights = simplex_project(logits, radii)
    (dlogits,) = torch.autograd.grad(weights, logits, torch.randn(300, 6))
    dead, alone = weights == 0, (weights > 0).sum(-1) == 1
    assert dead.any() and alone.any() and not alone.all()
    assert (dlogits[dead] == 0).all() and (dlogits[alone] == 0).all()
    assert (weights[alone].amax(-1) == 1).all()
    # A candidate that did not run has no gradient to give, whatever stands there.
    (same,) = torch.autograd.grad(simplex_project(logits, radii).masked_fill(dead, 0), logits, torch.ones(300, 6))
    (expected,) = torch.autograd.grad(simplex_project(logits, radii), logits, torch.ones(300, 6))
    assert torch.equal(same, expected)


def test_both_backends_agree(monkeypatch):
    results = []
    for name in ("cpu", "reference"):
        monkeypatch.setenv("SRNAS_FAST_BACKEND", name)
        of_this = []
        for choices in (1, 2, 3, 7, 20):
            for as_published in (False, True):
                logits, radii = some_rows(200, choices, 0.3, seed=choices)
                logits[::7] = logits[::7, :1]  # ties
                logits[1::7, ::2] = -math.inf
                logits[1::7, -1] = 0.1
                logits.requires_grad_()
                weights = simplex_project(logits, radii, as_published)
                dweights = torch.linspace(0, 9, weights.numel(), **DOUBLE).sin().view_as(weights)
                of_this += [weights, *torch.autograd.grad(weights, logits, dweights)]
        results.append(of_this)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (1, 1), (3, 14, 7), (0, 7), (2, 0, 3)])
def test_shapes_slices_and_radii_that_broadcast(shape, backend):
    logits = torch.randn(*shape, 2)[..., 0] * 0.2
    assert simplex_project(logits, 0.3).shape == shape
    radii = torch.rand(shape[:-1])
    each = simplex_project(logits, radii)
    dense = simplex_project(logits.contiguous(), radii.unsqueeze(-1).expand(*shape[:-1], 2)[..., 1])
    assert torch.equal(each, dense)
    if len(shape) == 3 and logits.numel():
        by_edge = torch.rand(14)
        rows = [simplex_project(logits[i, j], by_edge[j].item()) for i in range(3) for j in range(14)]
        assert torch.equal(simplex_project(logits, by_edge), torch.stack(rows).view(shape))
        assert torch.equal(simplex_project(logits.mT.contiguous().mT, by_edge), simplex_project(logits, by_edge))


def test_does_not_depend_on_the_number_of_threads(backend):
    logits, radii = some_rows(5000, 7, 0.3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            weights = simplex_project(leaf, radii)
            results.append([weights, *torch.autograd.grad(weights.square().sum(), leaf)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck(backend):
    ops = torch.ops.srnas_fast
    for radius in (torch.tensor(0.3, **DOUBLE), torch.rand(2, 3, **DOUBLE)):
        logits = 0.3 * torch.randn(2, 3, 5)
        opcheck(ops.simplex_project.default, (logits.clone().requires_grad_(), radius, False))
        opcheck(ops.simplex_project_backward.default, (torch.randn(2, 3, 5), logits, radius, True))


def test_autocast_computes_in_float32(backend):
    logits = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(simplex_project(logits, 0.4), simplex_project(logits.clone(), 0.4))
        assert simplex_project(logits.double(), 0.4).dtype == torch.float64


def test_a_second_order_backward_is_refused(backend):
    z = torch.randn(4, requires_grad=True, **DOUBLE)
    (dz,) = torch.autograd.grad(simplex_project(0.1 * z, 0.2).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="simplex_project_backward"):
        dz.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(logits=torch.zeros(2, 3, dtype=torch.float16)), "float16; give float32 or float64"),
        (dict(logits=torch.zeros(2, 3, dtype=torch.int64)), "int64"),
        (dict(logits=torch.tensor(1.0)), r"\(\); give floating rows"),
        (dict(logits=torch.tensor([[0.0, 1.0], [math.nan, 1.0]])), r"row \(1,\).*NaN or \+inf"),
        (dict(logits=torch.tensor([[0.0, 1.0], [-math.inf, math.inf]])), r"row \(1,\).*NaN or \+inf"),
        (dict(logits=torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]])), r"row \(1,\).*no legal entry"),
        (dict(logits=torch.zeros(3, 0)), r"shape \(3, 0\) have no legal entry"),
        (dict(logits=torch.zeros(0, 0), radius=0), "no legal entry"),
        (dict(radius=-0.1), "radius is -0.1"),
        (dict(radius=math.nan), "radius is nan"),
        (dict(radius=math.inf), "radius is inf"),
        (dict(radius=torch.tensor([0.1, -1.0])), r"radius of row \(1,\) is -1"),
        (dict(radius=torch.tensor(math.nan)), r"radius of row \(0,\) is nan"),
        (dict(radius=torch.zeros(3)), r"radius is of shape \(3,\).*rows \(2,\)"),
        (dict(radius=torch.zeros(2, 1)), r"radius is of shape \(2, 1\)"),
    ],
)
def test_bad_input_is_named(change, message, backend):
    given = {**dict(logits=torch.zeros(2, 3), radius=0.2), **change}
    with pytest.raises(InputError, match=message):
        simplex_project(**given)


def test_a_corner_radius_from_float32_is_one_hot_in_float64():
    for choices in range(2, 10):
        radius = torch.tensor((1 - 1 / choices) ** 0.5, dtype=torch.float32)
        logits = torch.randn(50, choices, dtype=torch.float64, generator=torch.Generator().manual_seed(choices))
        assert ((simplex_project(logits, radius) > 0).sum(-1) == 1).all()


def test_where_there_are_no_numbers_none_are_looked_at():
    logits = torch.full((3, 4), float("nan"), device="meta")
    assert simplex_project(logits, 0.5).shape == (3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert simplex_project(torch.ones(3, 4), 0.5).shape == (3, 4)


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0])
def test_rows_that_nobody_looked_at_show_what_they_are(backend, radius):
    """Inside a compiled graph no value is looked at: a broken row is NaN then, forward and backward."""
    logits = torch.randn(6, 4)
    logits[0, 0], logits[1, 3], logits[2, 1], logits[3] = torch.nan, torch.nan, torch.inf, -torch.inf
    logits.requires_grad_()
    torch.compiler.reset()
    weights = torch.compile(lambda z: simplex_project(z, radius), backend="eager")(logits)
    assert weights[:4].isnan().all() and torch.equal(weights[4:], simplex_project(logits[4:], radius))
    (gradient,) = torch.autograd.grad(weights, logits, torch.randn(6, 4))
    assert gradient[:4].isnan().all() and gradient[4:].isfinite().all()
