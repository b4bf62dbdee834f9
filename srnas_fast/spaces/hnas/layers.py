"""What the supernet and the derived networks share: the two ends, and what a cell reads its inputs through."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.hnas.genotype import NODES, STEM, Genotype
from srnas_fast.spaces.hnas.operations import batch_norm

RANGE = 255.0  # inside, images are on the published scale: the last convolution then learns slower than the cells
MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's red, green and blue
COLOURS = 3

Inputs = tuple[Tensor | None, Tensor | None]  # of a cell; None: one that no edge reads


def width(channels: int) -> int:
    """Channels of what goes from cell to cell: all nodes, side by side."""
    return len(NODES) * channels


def reader(channels: int, search: bool) -> nn.Sequential:
    """What makes a cell's state of one of its inputs: (N, 4 C, H, W) in, (N, C, H, W) out."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width(channels), channels, 1, bias=False), *batch_norm(channels, search))


class Frame(nn.Module):
    """Everything but the cells: the image's mean off, a first convolution, a last one, and the mean on again.

    Args:
        channels: of a cell's nodes.
        search: whether the first convolution has a batch norm.
        smallest: pixels of the shorter side of the images it takes.

    ``forward(x, genotype, run)``: images (N, 3, H, W) on the [0, 1] scale in, what is made of them out, not clipped;
    ``run(cell, inputs)`` makes the output of a cell of its two inputs.

    Raises:
        InputError: no such images.
    """

    def __init__(self, channels: int, search: bool, smallest: int):
        super().__init__()
        self.smallest = smallest
        self.register_buffer("mean", RANGE * torch.tensor(MEAN).view(-1, 1, 1), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(COLOURS, width(channels), 3, padding=1, bias=False),
            *batch_norm(width(channels), search, affine=True),
        )
        self.tail = nn.Conv2d(width(channels), COLOURS, 3, padding=1)

    def forward(self, x: Tensor, genotype: Genotype, run: Callable[[int, Inputs], Tensor]) -> Tensor:
        if x.dim() != 4 or x.shape[1] != COLOURS or x.shape[2] < self.smallest or x.shape[3] < self.smallest:
            raise InputError(
                f"HNAS got images of shape {tuple(x.shape)}; give (N, {COLOURS}, H, W), RGB on the [0, 1] scale, with "
                f"H and W from {self.smallest} up"
            )
        held = {STEM: self.stem(RANGE * x - self.mean)}
        for cell, (first, second) in genotype.wiring():
            held[cell] = run(cell, (held.get(first), held.get(second)))
            held = {earlier: y for earlier, y in held.items() if earlier >= cell - 1}  # no later cell reads the others
        return (self.tail(held[genotype.cells - 1]) + self.mean) / RANGE
