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


def _spans(length: int, tile: int, overlap: int, grid: int) -> list[tuple[int, int]]:
    """Start and stop of the tiles along one side: starts on the grid, evenly spread, neighbours sharing ``overlap``."""
    if length <= tile:
        return [(0, length)]
    last = -(-(length - tile) // grid)  # where the last tile starts, in steps of the grid
    gaps = -(-last // ((tile - overlap) // grid))
    starts = [i * last // gaps * grid for i in range(gaps + 1)]
    return [(start, min(start + tile, length)) for start in starts]


def _shares(spans: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """How much of each pixel a tile gives, tile by tile: linear ramps that sum to one over the tiles."""
    length, margin = spans[-1][1], overlap // 3
    middle, shares = torch.arange(length, dtype=torch.float64) + 0.5, []
    for start, stop in spans:
        inside = torch.full_like(middle, torch.inf)  # how far from the tile's cut edges; the image's own do not count
        if start > 0:
            inside = middle - start
        if stop < length:
            inside = inside.minimum(stop - middle)
        shares.append(((inside - margin) / max(overlap - 2 * margin, 1)).clamp(0, 1))
    total = sum(shares)
    return [(share / total)[start:stop] for share, (start, stop) in zip(shares, spans, strict=True)]


@torch.no_grad()
def upscale_in_tiles(
    network: nn.Module,
    image: Tensor,
    scale: int,
    tile: int = 512,
    overlap: int = 96,
    grid: int = 1,
    placed: bool = False,
) -> Tensor:
    """``network(image)`` of a network that enlarges ``scale`` times, computed in tiles that blend into each other.

    For networks that see too far for the margins of ``restore_tiled``. Of an overlap, the third next to a tile's cut
    edge is dropped and the third in the middle is a linear ramp from one tile to the other. So the result is that of
    the whole image wherever a pixel is ``overlap`` or further from the cut edges and depends on nothing beyond, and
    everywhere if it depends on no more than a third of the overlap. Memory: image, result and one tile.

    A network that pools over the image needs tiles that start on its grid, the product of its strides, to pool the
    same windows. ESA, the attention of DLSR (arXiv 2105.03939), takes steps of 2 and 3, so its grid is 6; where it
    enlarges the pooled map again, it also has to know how large the whole image is: see ``placed``.

    Args:
        network: (N, C, H, W) -> (N, D, scale * H, scale * W), in evaluation mode.
        image: (N, C, H, W), any size that the network takes.
        scale: of the network, a whole number.
        tile: largest height and width of a tile in pixels of ``image``, overlaps included; 0 for the whole at once.
        overlap: pixels of ``image`` that neighbouring tiles share at least.
        grid: pixels of ``image``; tiles start at multiples of it.
        placed: call ``network(part, (top, left, H, W))``, telling where in the whole image the part begins and how
            large that is. A whole image is ``network(image)``.

    Raises:
        InputError: a scale or grid below 1, a negative tile or overlap, tiles that would not advance by the grid, or a
            result that is not ``scale`` times as large.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.PixelShuffle(2))
    >>> x = torch.rand(1, 1, 21, 30)
    >>> torch.allclose(upscale_in_tiles(net, x, scale=2, tile=12, overlap=3), net(x), atol=1e-6)
    True
    """
    if scale < 1 or grid < 1:
        raise InputError(f"scale is {scale} and grid {grid}; give whole numbers from 1 up")
    if tile < 0 or overlap < 0:
        raise InputError(f"tile is {tile} and overlap {overlap}; give pixels from 0 up, tile 0 for no tiles")
    height, width = image.shape[-2:]
    if tile == 0 or max(height, width) <= tile:
        return network(image)
    if tile - overlap < grid:
        raise InputError(
            f"tiles of {tile} pixels with an overlap of {overlap} cannot advance on a grid of {grid}; "
            f"give a tile of {overlap + grid} pixels or more, or a smaller overlap"
        )
    rows, columns = (_spans(side, tile, overlap, grid) for side in (height, width))
    down, across = (
        _shares([(scale * start, scale * stop) for start, stop in spans], scale * overlap) for spans in (rows, columns)
    )
    y = None
    for (top, bottom), of_row in zip(rows, down, strict=True):
        for (left, right), of_column in zip(columns, across, strict=True):
            part = image[..., top:bottom, left:right]
            large = network(part, (top, left, height, width)) if placed else network(part)
            if large.shape[-2:] != (scale * (bottom - top), scale * (right - left)):
                raise InputError(f"scale is {scale}, but the network makes {large.shape[-2:]} of {part.shape[-2:]}")
            if y is None:
                y = large.new_zeros(*large.shape[:2], scale * height, scale * width)
            share = torch.outer(of_row, of_column).to(large)
            y[..., scale * top : scale * bottom, scale * left : scale * right].addcmul_(large, share)
            del large  # before the next tile is computed
    return y
