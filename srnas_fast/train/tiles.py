"""Images of any size through a network, in tiles where they are large."""

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError


@torch.no_grad()
def restore_tiled(network: nn.Module, x: Tensor, tile: int = 512) -> Tensor:
    """``network(x)``, computed tile by tile with equal result.

    Each tile is read with a margin of ``network.reach`` pixels, the most that any of its pixels depends on, and only
    its inside is kept; so tiles leave no seams.

    Args:
        network: keeps height and width, in evaluation mode; ``network.reach`` in pixels.
        x: (N, C, H, W), any size.
        tile: height and width of a tile without its margin, in pixels; 0 for the whole image at once.

    Raises:
        InputError: a negative tile.

    >>> net = torch.nn.Conv2d(1, 1, 3, padding=1)
    >>> net.reach = 1
    >>> x = torch.rand(1, 1, 21, 30)
    >>> torch.allclose(restore_tiled(net, x, tile=8), net(x), atol=1e-6)
    True
    """
    if tile < 0:
        raise InputError(f"tile is {tile}; give its side in pixels, or 0 for no tiles")
    height, width = x.shape[-2:]
    if tile == 0 or max(height, width) <= tile:
        return network(x)
    y, margin = torch.empty_like(x), network.reach
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = min(margin, top), min(margin, left)
            part = x[..., top - above : top + tile + margin, left - before : left + tile + margin]
            inside = network(part)[..., above : above + tile, before : before + tile]
            y[..., top : top + tile, left : left + tile] = inside
    return y
