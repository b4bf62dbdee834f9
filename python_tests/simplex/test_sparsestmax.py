import itertools
import math
import sys

import entmax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srnas_fast.errors import InputError
from srnas_fast.simplex import softmax, sparsemax, sparsestmax, sparsestmax_tables

DOUBLE = dict(dtype=torch.float64)


def nearest_by_enumeration(logits, radii):
    """The nearest point of every face of the simplex (in its plane, or on the sphere there), and the best of them."""
    choices = logits.shape[-1]
    radii = radii.clamp(max=math.sqrt(1 - 1 / choices))[:, None]
    least, nearest = torch.full(logits.shape[:1], math.inf, **DOUBLE), torch.zeros_like(logits)
    for corners in itertools.product([0.0, 1.0], repeat=choices):
        face = torch.tensor(corners, **DOUBLE)
        m = face.sum()
        if m == 0:
            continue
        offset = (logits - (logits * face).sum(-1, keepdim=True) / m) * face
        r = (radii.square() - (1 / m - 1 / choices)).clamp(min=0).sqrt()
        for point in (face / m + offset, face / m + r * offset / offset.norm(dim=-1, keepdim=True).clamp(min=1e-300)):
            allowed = (point - 1 / choices).norm(dim=-1) >= radii[:, 0] - 1e-12
            allowed &= point.amin(-1) >= -1e-12
            distance = (point - logits).square().sum(-1)
            better = allowed & (distance < least)
            least, nearest = torch.where(better, distance, least), torch.where(better[:, None], point, nearest)
    assert least.isfinite().all()
    return nearest


@pytest.mark.parametrize("choices", range(2, 10))
def test_agrees_with_brute_force_on_ten_thousand_rows(choices):
    random = torch.Generator().manual_seed(choices)
    scales = torch.tensor([0.02, 0.1, 0.5, 2.0, 20.0], **DOUBLE).repeat(250)[:, None]  # 8 times 1250 rows
    logits = scales * torch.randn(1250, choices, generator=random, **DOUBLE)
    radii = torch.rand(1250, generator=random, **DOUBLE)
    weights, support = sparsestmax(logits, radii, return_support=True)
    torch.testing.assert_close(weights, nearest_by_enumeration(logits, radii), rtol=0, atol=1e-6)
    assert torch.equal(support, weights > 0)
    assert len(set(support.sum(-1).tolist())) == choices  # all sizes of supports were there
    single = sparsestmax(logits.float(), radii)
    torch.testing.assert_close(single.double(), sparsestmax(logits.float().double(), radii), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radius_0_is_the_sparsemax_of_entmax(dtype):
    random = torch.Generator().manual_seed(0)
    for choices, scale in itertools.product(range(1, 12), (0.1, 1.0, 10.0)):
        logits = (scale * torch.randn(200, choices, generator=random, **DOUBLE)).to(dtype).requires_grad_()
        weights, expected = sparsestmax(logits, 0.0), entmax.sparsemax(logits, dim=-1)
        # entmax itself computes in float32 then, with logits of its size
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-7 if dtype == torch.float64 else 2e-6 * scale)
        assert torch.equal(sparsemax(logits), weights)
        dweights = torch.linspace(-2, 1, choices, dtype=dtype).expand_as(logits)
        (a,), (b,) = (torch.autograd.grad(w, logits, dweights) for w in (weights, expected))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("choices", [2, 3, 7, 55])
def test_from_the_corners_distance_on_rows_are_one_hot(choices):
    logits = 0.1 * torch.randn(50, choices)
    corner = math.sqrt((choices - 1) / choices)
    for radius in (corner, 1.0, 3.0):
        weights, support = sparsestmax(logits, radius, return_support=True)
        assert torch.equal(weights, torch.nn.functional.one_hot(logits.argmax(-1), choices).float())
        assert torch.equal(support, weights == 1)
    assert not (sparsestmax(1e-3 * logits, 0.99 * corner).amax(-1) == 1).any()


def test_the_published_code_decides_the_survivors_of_many_early():
    logits = torch.full((55,), -2.0)
    logits[[3, 9]] = torch.tensor([0.1, 0.0])
    assert (sparsestmax(logits, 0.71, as_published=True) > 0).sum() == 1
    assert (sparsestmax(logits, 0.98) > 0).sum() == 2 and (sparsestmax(logits, 0.992) > 0).sum() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype):
    logits = (0.3 * torch.randn(20, 7)).to(dtype).requires_grad_()
    weights, support = sparsestmax(logits, 0.4, return_support=True)
    wide = logits.detach().float().requires_grad_()
    expected = sparsestmax(wide, 0.4)
    assert torch.equal(weights, expected.to(dtype)) and torch.equal(support, expected > 0)
    dweights = torch.randn(20, 7).to(dtype)
    (dlogits,) = torch.autograd.grad(weights, logits, dweights)
    assert torch.equal(dlogits, torch.autograd.grad(expected, wide, dweights.float())[0].to(dtype))


def test_all_edges_at_once_are_the_edges_one_by_one():
    logits = torch.randn(3, 14, 7)
    weights, support = sparsestmax(logits, 0.5, return_support=True)
    assert not support.requires_grad
    for i, j in itertools.product(range(3), range(14)):
        assert torch.equal(weights[i, j], sparsestmax(logits[i, j], 0.5))
    assert torch.equal(sparsestmax(logits[:, ::2, 1:5], 0.5), sparsestmax(logits[:, ::2, 1:5].clone(), 0.5))


def test_wrong_types_are_named():
    with pytest.raises(InputError, match="int64"):
        sparsestmax(torch.zeros(3, dtype=torch.int64), 0.2)
    with pytest.raises(InputError, match="radius is -1"):
        sparsestmax(torch.zeros(3), -1)


rows = st.lists(st.floats(-1e6, 1e6, width=32) | st.floats(-1, 1, width=32) | st.sampled_from([0.0, 0.5]), min_size=1)


@settings(max_examples=150, deadline=None)
@given(rows, st.floats(0, 1.2), st.randoms(use_true_random=False))
def test_what_always_holds(row, radius, random):
    logits = torch.tensor(row, **DOUBLE)
    choices = len(row)
    weights = sparsestmax(logits, radius)
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1, abs=1e-12)
    reached = (weights - 1 / choices).norm().item()
    assert reached >= min(radius, math.sqrt((choices - 1) / choices)) - 1e-7
    assert (weights > 0).sum() > 1 or weights.max() == 1

    for a, b in itertools.pairwise(sorted(range(choices), key=lambda k: row[k])):
        assert weights[a] <= weights[b] or row[a] == row[b]
    if len(set(row)) == choices:
        shuffled = random.sample(range(choices), choices)
        torch.testing.assert_close(sparsestmax(logits[shuffled], radius), weights[shuffled], rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=8), st.sampled_from([0.0, 0.2, 0.45, 0.6, 0.85, 1.0]))
def test_ties_share_equally_where_the_nearest_point_is_unique(row, radius):
    logits = torch.tensor(row, **DOUBLE) / 8
    weights = sparsestmax(logits, radius)
    assert torch.equal(sparsestmax(logits + 1024, radius), weights)  # the differences are the same to the last bit
    top = (logits == logits.max()).sum().item()
    unique = radius**2 <= 1 / top - 1 / len(row)
    for value in set(row):
        tied = weights[logits == value / 8]
        if unique or value != max(row):
            assert (tied == tied[0]).all()
        else:  # the first leads, the others are equal
            assert (tied[0] >= tied).all() and (tied[1:] == tied[1:2]).all()


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("radius", [0.0, 0.5, torch.tensor(0.5)])
def test_without_a_look_a_row_that_is_none_shows_in_the_result(radius, backend, monkeypatch):
    if backend:
        monkeypatch.setenv("SRNAS_FAST_BACKEND", backend)
    good = [0.9, 0.6, -1.0]
    logits = torch.tensor([good, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
    weights = sparsestmax(logits, radius, look=False)
    assert torch.equal(weights[0], sparsestmax(torch.tensor(good), radius)) and weights[1:].isnan().all()
    with pytest.raises(InputError, match="radius is -1"):  # a number costs no look
        sparsestmax(logits, -1, look=False)


def test_what_is_wrong_with_tables_is_told_by_the_one_look_at_their_weights():
    tables = [torch.zeros(2, 3), torch.tensor([[0.0, math.nan]])]
    with pytest.raises(InputError, match=r"row \(2,\) .* holds NaN"):
        sparsestmax_tables(tables, 0.0)
    (_, alive), (weights, unknown) = sparsestmax_tables(tables, 0.0, look=False)
    assert alive is unknown is None and weights.isnan().all()


def test_where_a_graph_is_captured_there_is_nothing_to_look_at(monkeypatch):
    project = sys.modules["srnas_fast.primitives.simplex_project"]  # its package shows the function of that name
    monkeypatch.setattr(project, "_is_captured", lambda tensor: True)
    broken = torch.tensor([[0.0, math.nan]])
    assert softmax(broken).isnan().all() and sparsemax(broken).isnan().all()
    with pytest.raises(InputError, match="floating rows"):
        softmax(torch.zeros(2, dtype=torch.int64))
