"""What a network costs: its parameters and its Multi-Adds."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.primitives.flops import hand_over


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values in ``module``, a parameter shared by several layers counted once.

    Equivalent to ``sum(p.numel() for p in module.parameters())``.

    >>> count_parameters(nn.Conv2d(3, 8, 3))
    224
    """
    return sum(parameter.numel() for parameter in module.parameters())


def multi_adds(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds of ``module(*inputs)``: convolutions and matrix products, no biases, BN or activations.

    Half of what ``torch.utils.flop_counter.FlopCounterMode`` counts. They grow with the size of the inputs:
    state it beside the number. Runs once in eval mode without a graph; the mode of every submodule is put
    back.

    >>> multi_adds(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 3 * 8 * 9 * 100
    True
    """
    hand_over()
    training = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
    finally:
        for child, mode in training:
            child.training = mode
    return counter.get_total_flops() // 2
