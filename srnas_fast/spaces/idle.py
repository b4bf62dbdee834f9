"""What did not run learns nothing, as if it had run with weight zero."""

from collections.abc import Iterable

import torch
from torch import Tensor


def idle(x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The tensor as it is; backward, gradients of exact zero for the parameters of modules that did not run.

    Zeros, not None: with weight zero these parameters are in use, so that an optimiser's momentum and decay act on
    them as they would had the modules run.

    >>> skipped = torch.nn.Parameter(torch.ones(2))
    >>> idle(torch.ones(3, requires_grad=True), [skipped]).sum().backward()
    >>> skipped.grad
    tensor([0., 0.])
    """
    return _Idle.apply(x, *parameters)


class _Idle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return dx, *(torch.zeros_like(parameter) if asked else None for parameter, asked in wanted)
