"""What the CUDA kernels take beside their results: nothing that grows with the images but one d_k, or its parts."""

import pytest
import torch

from srnas_fast.backends import compiled
from srnas_fast.primitives import (
    merge_kernels,
    multi_depthwise,
    separable_gradient,
    separable_moments,
    separable_sum,
    shuffle_concat,
    shuffle_concat_backward,
    simplex_project,
    weighted_sum,
    weighted_sum_backward,
)
from srnas_fast.primitives.multi_depthwise import _multi_depthwise_backward


@pytest.fixture
def scratch(cuda, built, monkeypatch):
    """A function: the elements of scratch that each kernel asks for while something is computed."""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "cuda")
    if not torch.cuda.is_available():
        monkeypatch.setattr(compiled, "cuda_kernels", lambda name, dtype, device: built)
    asked = []

    def counting(function, launch, make):
        def counted(elements):
            asked.append(elements)
            return make(elements)

        return lambda *arguments: function(launch, counted, *arguments)

    monkeypatch.setattr(compiled, "partial", counting)

    def count(work, *arguments):
        asked.clear()
        with torch.no_grad():
            work(*arguments)
        return asked

    return count


def of(height, width, channels=4, count=2):
    """(x, depthwise, pointwise, dilations): candidates of one input."""
    depthwise = [torch.randn(channels, 1, 3, 3) for _ in range(count)]
    return torch.randn(1, channels, height, width), depthwise, [torch.randn(6, channels) for _ in range(count)], [1, 2]


def test_forward_passes_take_none(scratch):
    x, depthwise, pointwise, dilations = of(6, 5)
    assert scratch(separable_sum, x, depthwise, pointwise, None, None, dilations) == []
    assert scratch(multi_depthwise, x, depthwise, dilations) == []
    assert scratch(weighted_sum, torch.randn(2), [x, x]) == []
    assert scratch(shuffle_concat, x[:, :2].clone(), x, 2) == []
    assert scratch(simplex_project, torch.randn(3, 5)) == []
    assert scratch(merge_kernels, torch.randn(1), [torch.randn(2, 2, 3, 3)], [1]) == []


def test_the_gradient_takes_one_depthwise_output_whatever_the_number_of_candidates(scratch):
    def taken(height, count):
        x, depthwise, pointwise, dilations = of(height, 32, count=count)
        dy, left = torch.randn(1, 6, height, 32), [matrix.t().contiguous() for matrix in pointwise]
        [elements] = scratch(
            separable_gradient, x, dy, depthwise, left, None, None, None, (dilations * count)[:count], 1, True, False
        )
        return elements

    one = 4 * 32 * 32  # elements of a d_k by which the image grows; beside it are parts of sums, some for a tile
    assert one <= taken(64, 2) - taken(32, 2) < 1.5 * one
    assert one <= taken(64, 4) - taken(32, 4) < 1.5 * one


@pytest.mark.parametrize("work", ["moments", "kernel gradients", "weights", "scale"])
def test_sums_take_their_parts_which_do_not_grow_with_the_image(scratch, work):
    def taken(height):
        x, depthwise, _, dilations = of(height, 64)
        if work == "moments":
            return scratch(separable_moments, x, depthwise, dilations)[-1]
        if work == "kernel gradients":
            return scratch(_multi_depthwise_backward._init_fn, [x, x], x, depthwise, dilations, 1, False, True)[-1]
        if work == "weights":
            return scratch(weighted_sum_backward, x, torch.randn(2), [x, x])[-1]
        return scratch(shuffle_concat_backward, x, x, 2, torch.randn(()), False, True)[-1]

    small, large = taken(64), taken(128)
    assert small <= large <= max(2 * small, 4096)
    assert large < 4 * 64 * 128 / 2
