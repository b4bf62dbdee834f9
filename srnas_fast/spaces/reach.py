"""How far layers look, and what tiles of an image must therefore share."""

from torch import nn

FARTHEST = 240  # pixels that tiles of 512 can share and still advance


def reach(module: nn.Module) -> int:
    """How far a chain of layers looks past the pixel it computes, in pixels to one side: as far as its convolutions.

    >>> reach(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=4, dilation=2)))
    5
    """
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return sum(conv.dilation[0] * (conv.kernel_size[0] // 2) for conv in convolutions)


def shared_by_tiles(radius: int) -> int:
    """Low-resolution pixels that tiles of a network that enlarges should share: they blend in the middle third of them.

    With three times the radius their result is that of the whole image; deep networks, whose farthest pixels count for
    next to nothing, get by with 240.

    >>> shared_by_tiles(10), shared_by_tiles(170)
    (30, 240)
    """
    return min(3 * radius, FARTHEST)
