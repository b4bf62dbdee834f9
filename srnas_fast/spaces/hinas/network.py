"""The derived HiNAS denoising network: what a genotype is retrained as."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.errors import require_whole
from srnas_fast.spaces.hinas.genotype import INPUTS_PER_NODE, WIDTHS, Genotype
from srnas_fast.spaces.hinas.operations import (
    ACTIVATIONS,
    CANDIDATES,
    SpatialPyramid,
    conv_bn,
    reach,
    separable,
)

STEM = 64
HEAD = 128
SKIP = 48
RATES = [2, 4, 6]


@dataclass
class NetworkConfig:
    """The size of the derived network; the defaults are the paper's for denoising.

    Args:
        filters: channels of the narrowest cells (paper: 20, twice those of the search).
        pyramid: whether the head looks at dilated surroundings (rates 2, 4, 6), as in super-resolution.
    """

    filters: int = 20
    pyramid: bool = False

    def __post_init__(self):
        require_whole(self, "network.", filters=2)


class DerivedCell(nn.Module):
    """A cell of chosen operations with affine batch norm: (N, C, H, W) twice in, (N, nodes * C, H, W) out."""

    def __init__(self, edges: list[tuple[str, int]], channels: int, activation: str):
        super().__init__()
        self.sources = [source for _, source in edges]
        self.ops = nn.ModuleList(CANDIDATES[name](channels, activation, True) for name, _ in edges)

    def forward(self, before_previous: Tensor, previous: Tensor) -> Tensor:
        states = [before_previous, previous]
        for first in range(0, len(self.ops), INPUTS_PER_NODE):
            pair = range(first, first + INPUTS_PER_NODE)
            states.append(sum(self.ops[i](states[self.sources[i]]) for i in pair))
        return torch.cat(states[2:], dim=1)

    def reach(self, before_previous: int, previous: int) -> int:
        """Pixels to one side that the output depends on, given those of the inputs."""
        states = [before_previous, previous]
        for first in range(0, len(self.ops), INPUTS_PER_NODE):
            pair = range(first, first + INPUTS_PER_NODE)
            states.append(max(states[self.sources[i]] + reach(self.ops[i]) for i in pair))
        return max(states[2:])


class DerivedNetwork(nn.Module):
    """The network of a genotype: stem, one cell per layer, head; it predicts the noise.

    Args:
        genotype: what the search found.
        config: its size.

    Shapes: noisy gray images (N, 1, H, W) on the [0, 1] scale in, restored ones out (not clipped).
    Source: HiNAS, arXiv 1909.08228, section 4; the decoder follows DeepLabv3+.

    >>> from srnas_fast.spaces.hinas.genotype import random_genotype
    >>> net = DerivedNetwork(random_genotype(layers=2, nodes=2, seed=0), NetworkConfig(filters=4))
    >>> net(torch.rand(1, 1, 9, 13)).shape
    torch.Size([1, 1, 9, 13])
    """

    channels, smallest = 1, 1  # of the images it takes; pixels of the shorter side

    def __init__(self, genotype: Genotype, config: NetworkConfig):
        super().__init__()
        self.genotype, self.config = genotype, config
        activation = genotype.activation
        act = ACTIVATIONS[activation]
        channels = [int(config.filters * WIDTHS[width]) for width in genotype.path]
        outputs = [genotype.nodes * c for c in channels]

        self.stem1 = nn.Sequential(*conv_bn(1, STEM, 3), act())
        self.stem2 = nn.Sequential(act(), *conv_bn(STEM, STEM, 3))
        self.cells, self.scalers = nn.ModuleList(), nn.ModuleList()
        before, previous = STEM, STEM
        for layer, (edges, c) in enumerate(zip(genotype.cells, channels, strict=True)):
            self.scalers.append(
                nn.ModuleList(nn.Sequential(act(), *conv_bn(size, c, 1)) for size in (before, previous))
            )
            self.cells.append(DerivedCell(edges, c, activation))
            # Layer 2 looks back at stem1: both stems count as the one before layer 1.
            before, previous = (STEM if layer == 0 else previous), outputs[layer]

        # The head's skip: the last cell of width 0, unless the head reads that very cell already.
        narrow = [layer for layer, width in enumerate(genotype.path) if width == 0]
        self.skip_from = narrow[-1] if narrow and narrow[-1] != len(genotype.path) - 1 else None
        skip_channels = genotype.nodes * config.filters
        # Part of the published network, and of its parameter count, also where the skip comes from a cell; frozen
        # there, so that data-parallel training does not wait for gradients that never come.
        self.reduce = conv_bn(STEM, skip_channels, 3, affine=False).requires_grad_(self.skip_from is None)
        self.skip = nn.Sequential(*conv_bn(skip_channels, SKIP, 1), act())
        if config.pyramid:
            features = SpatialPyramid(outputs[-1], HEAD, HEAD, RATES, activation, affine=True)
        else:
            features = nn.Sequential(*conv_bn(outputs[-1], HEAD, 1), act())
        self.features = nn.Sequential(act(), features)
        self.head = nn.Sequential(
            separable(HEAD + SKIP, HEAD, activation),
            separable(HEAD, HEAD, activation),
            nn.Conv2d(HEAD, 1, 3, padding=1),
        )

        # It starts as the identity: from random noise on its output, SGD at the paper's rate diverges.
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    @property
    def reach(self) -> int:
        """How many pixels to each side a restored pixel depends on (half the receptive field, rounded down)."""
        stem1 = reach(self.stem1)
        stem2 = stem1 + reach(self.stem2)
        before, previous = stem1, stem2
        for layer, cell in enumerate(self.cells):
            before, previous = (before if layer == 0 else previous), cell.reach(before, previous)
        skip = stem2 + reach(self.reduce) if self.skip_from is None else previous
        features = previous + (max(RATES) if self.config.pyramid else 0)
        return max(features, skip) + reach(self.head)

    def forward(self, x: Tensor) -> Tensor:
        before = self.stem1(x)
        previous = stem2 = self.stem2(before)
        skip = None
        for layer, (cell, (scale_before, scale_previous)) in enumerate(zip(self.cells, self.scalers, strict=True)):
            output = cell(scale_before(before), scale_previous(previous))
            before, previous = (before if layer == 0 else previous), output
            if layer == self.skip_from:
                skip = output
        if skip is None:
            skip = self.reduce(stem2)
        return x - self.head(torch.cat([self.features(previous), self.skip(skip)], dim=1))
