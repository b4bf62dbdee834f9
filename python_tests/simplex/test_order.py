import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srnas_fast.errors import InputError
from srnas_fast.simplex import order_penalty, sorted_sparsestmax, sparsestmax

TREE = [-1, 0, 1, 1, 0, 4, 2]


def test_the_penalty_by_hand():
    weights = torch.tensor([[0.1, 0.3, 0.0, 0.4, 0.1, 0.0, 0.1]], requires_grad=True)
    penalty = order_penalty(weights, TREE)
    torch.testing.assert_close(penalty, torch.tensor([0.2 + 0.1 + 0.1]))  # edges 0-1, 1-3, 2-6
    penalty.sum().backward()
    assert weights.grad.tolist() == [[-1, 0, -1, 1, 0, 0, 1]]


def test_the_penalty_does_not_telescope_and_rests_where_sorted():
    """The published sum gives inner nodes no gradient; here a node too heavy for its parent has one."""
    weights = torch.tensor([0.5, 0.1, 0.3, 0.1], requires_grad=True)
    order_penalty(weights, [-1, 0, 1, 2]).backward()
    assert weights.grad.tolist() == [0, -1, 1, 0]
    level = torch.full((3, 4), 0.25, requires_grad=True)
    penalty = order_penalty(level, [-1, 0, 1, 2])
    penalty.sum().backward()
    assert penalty.tolist() == [0, 0, 0] and (level.grad == 0).all()


def test_one_node():
    assert order_penalty(torch.ones(2, 1), [-1]).tolist() == [0, 0]
    assert sorted_sparsestmax(torch.tensor([[5.0]]), [-1], 0.3).tolist() == [[1.0]]


def test_falls_by_softplus_along_every_path():
    logits = torch.randn(3, 7, dtype=torch.float64)
    heights = torch.zeros(3, 7, dtype=torch.float64)
    for node, parent in enumerate(TREE):
        if node:
            heights[:, node] = heights[:, parent] - (1 + logits[:, node].exp()).log()
    for radius in (0.0, 0.3, torch.tensor([0.1, 0.5, 0.9])):
        weights, support = sorted_sparsestmax(logits, torch.tensor(TREE), radius, return_support=True)
        torch.testing.assert_close(weights, sparsestmax(heights, radius))
        assert torch.equal(support, weights > 0)


def test_gradients():
    random = torch.Generator().manual_seed(0)
    logits = 0.3 * torch.randn(4, 7, dtype=torch.float64, generator=random) - 2
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sorted_sparsestmax(z, TREE, 0.35), logits, eps=1e-7, atol=1e-4)
    (dlogits,) = torch.autograd.grad((sorted_sparsestmax(logits, TREE, 0.2) * torch.arange(7)).sum(), logits)
    assert (dlogits[:, 0] == 0).all() and (dlogits[:, 1:] != 0).any()


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 12), st.floats(0, 1))
def test_no_child_outweighs_its_parent_so_the_support_is_connected(data, nodes, radius):
    parents = [-1] + [data.draw(st.integers(0, i - 1)) for i in range(1, nodes)]
    falls = st.floats(-200, 5, width=32)  # softplus of -200 is 0 in float32: equal to the parent
    logits = torch.tensor([data.draw(falls) for _ in parents], dtype=torch.float32)
    weights, support = sorted_sparsestmax(logits, parents, radius, return_support=True)
    assert support[0]
    for node, parent in enumerate(parents[1:], start=1):
        assert weights[node] <= weights[parent]
        assert support[parent] or not support[node]


def test_half_precision_and_autocast():
    logits = torch.randn(7) - 2
    weights, _ = sorted_sparsestmax(logits.bfloat16(), TREE, 0.3, return_support=True)
    assert torch.equal(weights, sorted_sparsestmax(logits.bfloat16().float(), TREE, 0.3).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sorted_sparsestmax(logits, TREE, 0.3), sorted_sparsestmax(logits.clone(), TREE, 0.3))


@pytest.mark.parametrize(
    "parents", [[-1, 0], [0, 0, 0], [-1, -1, 0], [-1, 2, 1], [-1, 1, 0], [-1, 0, -2], [-1, 0, 0, 0]]
)
def test_what_is_no_tree_is_named(parents):
    for call in (
        lambda: order_penalty(torch.zeros(3), parents),
        lambda: sorted_sparsestmax(torch.zeros(3), parents, 0),
    ):
        with pytest.raises(InputError, match=r"parents are \[.*for 3 nodes"):
            call()


def test_broken_logits_are_named():
    with pytest.raises(InputError, match="NaN"):
        sorted_sparsestmax(torch.tensor([0.0, float("nan")]), [-1, 0], 0.1)
    with pytest.raises(InputError, match="int64"):
        sorted_sparsestmax(torch.zeros(2, dtype=torch.int64), [-1, 0], 0.1)
