"""Whole mixed operations on the Triton kernels: the primitives hand over to them, and the gradients are right."""

import sys

import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.backends import triton
from srnas_fast.primitives import separable_sum
from srnas_fast.simplex import sparsestmax


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


@pytest.fixture
def called(device, monkeypatch):
    """The names of the kernels that were asked for and served."""
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    names, ask = [], triton.triton_kernel

    def listed(name, *tensors, **options):
        kernel = ask(name, *tensors, **options)
        names.extend([name] if kernel else [])
        return kernel

    for module in list(sys.modules.values()):
        if getattr(module, "triton_kernel", None) is ask and module.__name__.startswith("srnas_fast.primitives"):
            monkeypatch.setattr(module, "triton_kernel", listed)
    return names


def gradients(op, x, weights, dy):
    y = op(x, weights)
    return [y, *torch.autograd.grad(y, [x, weights, *op.parameters()], dy)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_gradients(device, called, norm, form):
    torch.manual_seed(0)
    op = MixedOp(candidates(norm)).to(device)
    exact = MixedOp(candidates(norm)).double()
    exact.load_state_dict(op.state_dict())
    x, dy = (torch.randn(2, 5, 7, 9) for _ in range(2))
    weights = torch.randn(6).softmax(0)
    right = gradients(exact, x.double().requires_grad_(), weights.double().requires_grad_(), dy.double())
    called.clear()
    found = gradients(
        op,
        x.to(device).contiguous(memory_format=form).requires_grad_(),
        weights.to(device).requires_grad_(),
        dy.to(device).contiguous(memory_format=form),
    )
    floor = max(g.norm() for g in right[1:])
    for ours, theirs in zip(found, right, strict=True):
        assert (ours.cpu().double() - theirs).norm() <= 1e-5 * max(floor, theirs.norm())
    served = {"separable_sum", "multi_depthwise", "weighted_sum"} | ({"separable_moments"} if norm else set())
    assert "separable_gradient" in called and served & set(called)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_written_without_copies(device, called, dtype):
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, 7, device=device).to(dtype)
    depthwise, pointwise = torch.randn(5, 1, 3, 3, device=device), torch.randn(4, 5, device=device)
    y = separable_sum(x, [depthwise], [pointwise], None, None, [1])
    assert y.dtype is dtype and called == ["separable_sum"]
    right = separable_sum(x.double(), [depthwise.double()], [pointwise.double()], None, None, [1])
    assert (y.double() - right).abs().max() <= (2**-7 if dtype is torch.bfloat16 else 2**-10) * right.abs().max()


def test_sparse_weights(device, called):
    logits = torch.tensor([[0.5, 0.1, -0.3], [0.0, 0.2, 0.1]], device=device)
    weights = sparsestmax(logits, 0.4)
    assert "simplex_project" in called
    torch.testing.assert_close(weights.cpu().double(), sparsestmax(logits.cpu().double(), 0.4), rtol=0, atol=1e-6)
