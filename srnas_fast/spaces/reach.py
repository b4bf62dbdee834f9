"""How far layers look."""

from torch import nn


def reach(module: nn.Module) -> int:
    """How far a chain of layers looks past the pixel it computes, in pixels to one side: as far as its convolutions.

    >>> reach(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=4, dilation=2)))
    5
    """
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return sum(conv.dilation[0] * (conv.kernel_size[0] // 2) for conv in convolutions)
