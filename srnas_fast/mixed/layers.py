"""The two layers without parameters that candidate operations are made of and that torch lacks."""

from torch import Tensor, nn

from srnas_fast.errors import InputError


class Zero(nn.Module):
    """The candidate ``none``: zeros in the shape of the input, or of every ``stride``-th row and column of it.

    Equivalent to ``x[:, :, ::stride, ::stride] * 0``. ``MixedOp`` takes it for what is meant, nothing, also where x is
    NaN or infinite.

    Args:
        stride: a whole number from 1 up. With 1 the input may have any shape, otherwise (N, C, H, W).

    Raises:
        InputError: another stride.

    Source: DARTS (arXiv 1806.09055), section 3.1.

    >>> import torch
    >>> Zero(stride=2)(torch.ones(1, 3, 5, 4)).shape
    torch.Size([1, 3, 3, 2])
    """

    def __init__(self, stride: int = 1):
        super().__init__()
        if not isinstance(stride, int) or stride < 1:
            raise InputError(f"Zero's stride is {stride!r}; give a whole number from 1 up")
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if self.stride == 1 else x[:, :, :: self.stride, :: self.stride] * 0

    def extra_repr(self) -> str:
        return "" if self.stride == 1 else f"stride={self.stride}"


class Sine(nn.Module):
    """``sin(x)``, the activation of periodic candidates; any shape.

    >>> import torch
    >>> Sine()(torch.zeros(2))
    tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()
