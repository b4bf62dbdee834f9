"""Whole mixed operations in branches on Triton: the primitives hand over to it, and the gradients are right."""

import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.simplex import sparsestmax

SEPARABLE = {"separable_sum", "separable_gradient"}
MERGED = {"merge_kernels", "weighted_sum", "weighted_sum_backward"}  # with the identity


def convolution(channels, size, dilation=1, groups=1):
    return nn.Conv2d(
        channels, channels, size, padding=dilation * (size // 2), dilation=dilation, groups=groups, bias=False
    )


def separable(channels, size, dilation=1, stages=1, norm=False):
    layers = []
    for _ in range(stages):
        layers += [nn.ReLU(), convolution(channels, size, dilation, channels), convolution(channels, 1)]
        layers += [nn.BatchNorm2d(channels, affine=False)] if norm else []
    return nn.Sequential(*layers)


def candidates(norm):
    """Dense, separable, two-stage and dilated ones of five channels, and a skip."""
    return [
        convolution(5, 1),
        convolution(5, 3),
        separable(5, 3, norm=norm),
        separable(5, 5, stages=2, norm=norm),
        separable(5, 3, dilation=2, norm=norm),
        nn.Identity(),
    ]


def outcome(op, x, logits, dy, sparse):
    """y, its gradients, and the running statistics of batch norms."""
    weights, support = sparsestmax(logits, 0.4, return_support=True) if sparse else (logits.softmax(-1), None)
    y = op(x, weights, support=support.tolist() if sparse else None)
    gradients = torch.autograd.grad(y, [x, logits, *op.parameters()], dy)
    return [y.detach(), *gradients, *(values for values in op.buffers() if values.is_floating_point())]


@pytest.fixture
def agree(backend, monkeypatch):
    """A function that compares a mixed operation with the same one by the reference in float64 on the CPU."""

    def agree(kernels, norm=False, form=torch.contiguous_format, partial=1, sparse=False):
        """Asserts that they agree, and that these kernels of Triton took part."""
        torch.manual_seed(0)
        op = MixedOp(candidates(norm), partial=partial)
        exact = MixedOp(candidates(norm), partial=partial).double()
        exact.load_state_dict(op.state_dict())
        x, dy = (torch.randn(1, 5 * partial, 5, 6).contiguous(memory_format=form) for _ in range(2))
        logits = torch.tensor([-1.0, -1.0, 0.5, 0.3, 0.4, -1.0])  # sparse: the separable candidates are alive

        with monkeypatch.context() as patched:
            patched.setenv("SRNAS_FAST_BACKEND", "reference")
            right = outcome(exact, x.double().requires_grad_(), logits.double().requires_grad_(), dy.double(), sparse)
        x, logits, dy = (tensor.to(backend.device) for tensor in (x, logits, dy))
        found = outcome(op.to(backend.device), x.requires_grad_(), logits.requires_grad_(), dy, sparse)
        assert kernels <= set(backend.ran)
        floor = max(gradient.norm() for gradient in right[1:])
        for ours, theirs in zip(found, right, strict=True):
            assert (ours.cpu().double() - theirs).norm() <= 1e-5 * max(floor, theirs.norm())

    return agree


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_gradients(agree, norm, form):
    agree(SEPARABLE | MERGED | ({"separable_moments"} if norm else set()), norm, form)


def test_partial_channels(agree):
    agree(SEPARABLE | MERGED | {"shuffle_concat", "shuffle_concat_backward"}, partial=2)


def test_sparse_weights(agree):
    agree(SEPARABLE | {"simplex_project", "simplex_project_backward"}, sparse=True)
