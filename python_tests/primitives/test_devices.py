"""Tensors on two devices: one clear line from every primitive, whatever would have computed it."""

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.primitives import (
    merge_kernels,
    multi_depthwise,
    narrow_convolution,
    separable_gradient,
    separable_moments,
    separable_sum,
    separable_sum_,
    shuffle_concat,
    weighted_sum,
    weighted_sum_,
    weighted_sum_backward,
)

X, AWAY = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3, device="meta")
DEPTHWISE, POINTWISE = torch.ones(2, 1, 3, 3), torch.ones(2, 2)


@pytest.mark.parametrize(
    "work",
    [
        lambda: weighted_sum(torch.ones(2), [X, AWAY]),
        lambda: weighted_sum(torch.ones(1, device="meta"), [X]),
        lambda: weighted_sum_(AWAY, torch.ones(1), [X]),
        lambda: weighted_sum_backward(AWAY, torch.ones(1), [X]),
        lambda: merge_kernels(torch.ones(1, device="meta"), [torch.ones(1, 1, 3, 3)], [1]),
        lambda: multi_depthwise(AWAY, [DEPTHWISE], [1]),
        lambda: separable_sum(X, [DEPTHWISE], [POINTWISE.to("meta")], None, None, [1]),
        lambda: separable_sum_(AWAY, X, [DEPTHWISE], [POINTWISE], None, None, [1]),
        lambda: separable_moments(AWAY, [DEPTHWISE], [1]),
        lambda: separable_gradient(X, AWAY, [DEPTHWISE], [POINTWISE], None, None, None, [1]),
        lambda: shuffle_concat(X[:, :1], X, 2, torch.ones((), device="meta")),
        lambda: narrow_convolution(X, torch.ones(2, 2, 3, 3), torch.ones(2, device="meta")),
    ],
)
def test_one_clear_line(work):
    with pytest.raises(InputError, match="^the tensors of one operation are on cpu, meta; move them to one device$"):
        work()
