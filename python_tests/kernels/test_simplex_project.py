import math

import pytest
import torch

from srnas_fast.primitives.simplex_project import FLOOR, OUTSIDE, ROUNDING, simplex_project_reference
from srnas_fast.primitives.simplex_project import _backward_reference as backward_reference

pytest.importorskip("triton", exc_type=ImportError)
from srnas_fast.kernels import simplex_project as kernels  # noqa: E402

INF = math.inf


def some_rows(count, choices, scale, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, choices, generator=random, dtype=torch.float64)
    return logits, torch.rand(count, generator=random, dtype=torch.float64)


def project(logits, radius, as_published=False):
    """(weights, dlogits) of the kernels, for a dweights that depends on the shape alone."""
    weights, dlogits = torch.full_like(logits, 7.0), torch.full_like(logits, 7.0)
    kernels.simplex_project(weights, logits, radius, as_published)
    kernels.simplex_project_backward(dlogits, some_dweights(logits), logits, radius, as_published)
    return weights, dlogits


def some_dweights(logits):
    return torch.linspace(-1, 7, logits.numel()).cos().view(logits.shape).to(logits)


def check(logits, radius, device, as_published=False):
    """Against the reference, on the CPU, which computes in float64 and rounds to the type of the logits."""
    expected = simplex_project_reference(logits, radius, as_published)
    dexpected = backward_reference(some_dweights(logits), logits, radius, as_published)
    weights, dlogits = (t.cpu() for t in project(logits.to(device), radius.to(device), as_published))
    double = logits.dtype == torch.float64
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12 if double else 1e-7, equal_nan=True)
    rtol = 1e-8 if double else 1e-6  # the gain near ties multiplies what is left of a difference of close logits
    torch.testing.assert_close(dlogits, dexpected, rtol=rtol, atol=1e-10 if double else 1e-6, equal_nan=True)
    assert torch.equal(weights > 0, expected > 0)
    return weights


def test_constants_are_those_of_the_reference():
    assert (kernels.ROUNDING.value, kernels.FLOOR.value, kernels.OUTSIDE.value) == (ROUNDING, FLOOR, OUTSIDE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("choices, scale", [(1, 1.0), (2, 0.3), (3, 0.3), (5, 0.1), (8, 0.03), (9, 1.0), (9, 0.01)])
def test_random_rows(choices, scale, as_published, dtype, device):
    logits, radii = some_rows(3, choices, scale)
    check(logits.to(dtype), radii, device, as_published)
    check(logits.to(dtype), torch.zeros((), dtype=torch.float64), device, as_published)


@pytest.mark.parametrize("choices, rows", [(33, 4), (100, 2), (1024, 1)])
def test_long_rows(choices, rows, device):
    logits, radii = some_rows(rows, choices, 0.01)
    weights = check(logits, 0.1 * radii, device)
    assert (weights > 0).sum(-1).min() > 8
    if choices < 1024:  # which takes seconds interpreted
        check(logits.float(), radii, device, as_published=True)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("radius", [0.0, 0.2, 0.5, math.sqrt(2 / 3), math.sqrt(3 / 4) * (1 - 1e-7), 3.0])
def test_special_rows(radius, as_published, device):
    rows = [
        [0.0, 0.0, 0.0, 0.0],  # ties of all, of the two largest, of two others
        [1.0, 1.0, 0.5, 0.5],
        [0.5, 0.9, 0.5, 0.0],
        [-INF, 0.3, 0.1, -INF],  # one choice less and less
        [-INF, 0.2, 0.2, 0.2],
        [-INF, -INF, -5.0, -INF],
        [0.0, 1.0, 0.0, 0.0],  # at the edge of one-hot, and far beyond
        [3.0, -7.0, 1e30, 1.0],
        [-1e300, 1e300, 0.0, 1e300],
        [0.3, 0.3 + 1e-9, 0.3 - 1e-9, 0.3 + 2e-9],  # near ties
        [1e-200, -1e-200, 0.0, 2e-200],
        [math.nan, 0.0, 1.0, -INF],  # no rows of logits
        [INF, 0.0, 1.0, 2.0],
        [-INF, -INF, -INF, -INF],
        [INF, math.nan, -INF, 0.0],
    ]
    logits = torch.tensor(rows, dtype=torch.float64)
    weights = check(logits, torch.tensor(radius, dtype=torch.float64), device, as_published)
    assert weights[:11].isfinite().all() and weights[11:].isnan().all()
    if not as_published:
        check(logits.float(), torch.tensor(radius, dtype=torch.float64), device)


def test_ties_of_whole_fractions(device):
    # Differences of which many land exactly on the threshold, where rounding decides who is alive.
    steps = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    logits = torch.cartesian_prod(steps, steps, steps)
    check(logits, torch.full((27,), 0.25, dtype=torch.float64), device)


def test_shapes(device):
    logits, radii = some_rows(6, 5, 0.2)
    check(logits.view(2, 3, 5), radii.view(2, 3), device)
    check(logits[0], radii[0], device)
    check(logits[:0], radii[:0], device)


def test_repeats_to_the_bit(device):
    logits, radii = some_rows(8, 9, 0.1)
    logits, radii = logits.to(device), radii.to(device)
    for first, second in zip(project(logits, radii), project(logits, radii), strict=True):
        assert torch.equal(first, second)
