import pytest
import torch

from srnas_fast.primitives.simplex_project import _backward_reference, simplex_project_reference

TYPES = [torch.float32, torch.float64]
INF = float("inf")


def run(cuda, logits, radius, as_published, dweights):
    """(weights, dlogits) by the kernels; one radius, or one for each row."""
    radius = torch.as_tensor(radius, dtype=torch.float64).contiguous()
    weights, dlogits = torch.empty_like(logits), torch.empty_like(logits)
    sizes = [logits.shape[:-1].numel(), logits.shape[-1], 1 if radius.ndim else 0]
    rows = sizes, logits.data_ptr(), radius.data_ptr(), as_published
    cuda = cuda if logits.dtype == torch.float32 else cuda.float64
    cuda.simplex_project(*rows, weights.data_ptr())
    cuda.simplex_project_backward(*rows, dweights.data_ptr(), dlogits.data_ptr())
    return weights, dlogits


def assert_same(ours, exact, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for values, expected in zip(ours, exact, strict=True):
        floor = max(1.0, expected.double().nan_to_num().abs().amax().item()) if expected.numel() else 1.0
        torch.testing.assert_close(values.double(), expected.double(), rtol=0, atol=tolerance * floor, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("choices", [1, 2, 3, 8, 33, 70])
def test_random_rows(cuda, choices, as_published, dtype):
    torch.manual_seed(choices)
    scale = torch.tensor([1e-3, 0.1, 1.0, 30.0], dtype=torch.float64)
    logits = (torch.randn(4, choices, dtype=torch.float64) * scale[:, None]).to(dtype)
    dweights = torch.randn(4, choices).to(dtype)
    for radius in (0.0, 0.5, torch.tensor([0.0, 0.3, 0.7, 1.5])):
        expected = simplex_project_reference(logits, radius, as_published)
        dexpected = _backward_reference(dweights, logits, radius, as_published)
        assert_same(run(cuda, logits, radius, as_published, dweights), (expected, dexpected), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("radius", [0.0, 0.2, 0.45, 0.6, 0.9])
def test_ties_and_entries_that_are_no_choice(cuda, radius, dtype):
    rows = [
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.5, 0.5],
        [-INF, 2.0, 2.0, 1.9],
        [-INF, -INF, -INF, 3.0],
        [1e30, -1e30, 0.0, 1e30],
        [float("nan"), 1.0, 2.0, 3.0],
        [INF, 1.0, 2.0, 3.0],
        [-INF, -INF, -INF, -INF],
    ]
    logits = torch.tensor(rows, dtype=dtype)
    dweights = torch.arange(32.0).sin().view(8, 4).to(dtype)
    expected = simplex_project_reference(logits, radius)
    dexpected = _backward_reference(dweights, logits, radius, False)
    assert_same(run(cuda, logits, radius, False, dweights), (expected, dexpected), dtype)


def test_no_rows_and_the_same_bits_twice(cuda):
    none = torch.empty(0, 5)
    run(cuda, none, 0.0, False, none)
    logits, dweights = torch.randn(5, 20), torch.randn(5, 20)
    first, second = (run(cuda, logits, 0.4, False, dweights) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
