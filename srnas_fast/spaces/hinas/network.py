"""The derived HiNAS network: what a genotype is retrained as."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import require_whole
from srnas_fast.spaces.hinas.candidates import make
from srnas_fast.spaces.hinas.genotype import INPUTS_PER_NODE, WIDTHS, Genotype
from srnas_fast.spaces.hinas.heads import SMALLEST, Denoise, Enlarge, require_scale
from srnas_fast.spaces.hinas.operations import ACTIVATIONS, SpatialPyramid, conv_bn, conv_bn_act, separable
from srnas_fast.spaces.reach import reach

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

    @property
    def finish(self) -> Denoise | Enlarge:
        """What becomes of the last features."""
        return Denoise(sigmoid=False)


@dataclass
class SuperResolutionNetworkConfig(NetworkConfig):
    """The size of the derived network; the defaults are the paper's for super-resolution.

    Args:
        filters: channels of the narrowest cells (paper: 16, twice those of the search).
        pyramid: whether the head looks at dilated surroundings (rates 2, 4, 6), as the paper's does.
        scale: how many times larger the result is: 2, 3 or 4.
    """

    filters: int = 16
    pyramid: bool = True
    scale: int = 4

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it can learn from

    def __post_init__(self):
        super().__post_init__()
        require_scale("network.", self.scale)

    @property
    def finish(self) -> Enlarge:
        return Enlarge(self.scale, "bicubic", sigmoid=False)


class DerivedCell(nn.Module):
    """A cell of chosen operations with affine batch norm: (N, C, H, W) twice in, (N, nodes * C, H, W) out."""

    def __init__(self, edges: list[tuple[str, int]], channels: int, activation: str):
        super().__init__()
        self.sources = [source for _, source in edges]
        self.ops = nn.ModuleList(make(name, channels, activation, affine=True) for name, _ in edges)

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
    """The network of a genotype: stem, one cell per layer, head; it predicts the noise, or what bicubic interpolation
    leaves out.

    Args:
        genotype: what the search found.
        config: its size; its type tells the task.

    Shapes: noisy gray images (N, 1, H, W) on the [0, 1] scale in, restored ones out; or RGB images (N, 3, H, W) in and
    (N, 3, scale * H, scale * W) out. Neither is clipped.

    ``channels``, ``smallest``: of the images it takes; pixels of the shorter side. ``scale``: how many times larger the
    result is. ``radius``: how many pixels to each side a result depends on (half the receptive field, rounded down).
    ``reach``: what the tiles of a large image must share for a result equal to that of the whole image; ``grid``: their
    starts may be any pixels, so ``place``, where a tile lies in the image, changes nothing.

    Source: HiNAS, arXiv 1909.08228, section 4; the decoder follows DeepLabv3+.

    >>> from srnas_fast.spaces.hinas.genotype import random_genotype
    >>> genotype = random_genotype(layers=2, nodes=2, seed=0)
    >>> DerivedNetwork(genotype, NetworkConfig(filters=4))(torch.rand(1, 1, 9, 13)).shape
    torch.Size([1, 1, 9, 13])
    >>> DerivedNetwork(genotype, SuperResolutionNetworkConfig(filters=4, scale=3))(torch.rand(1, 3, 9, 13)).shape
    torch.Size([1, 3, 27, 39])
    """

    smallest, grid = 1, 1

    def __init__(self, genotype: Genotype, config: NetworkConfig):
        super().__init__()
        self.genotype, self.config, self.finish = genotype, config, config.finish
        self.channels, self.scale = self.finish.colours, self.finish.scale
        activation = genotype.activation
        act = ACTIVATIONS[activation]
        channels = [int(config.filters * WIDTHS[width]) for width in genotype.path]
        outputs = [genotype.nodes * c for c in channels]

        self.stem1 = conv_bn_act(self.channels, STEM, 3, activation)
        self.stem2 = nn.Sequential(act(), *conv_bn(STEM, STEM, 3))
        self.cells, self.scalers = nn.ModuleList(), nn.ModuleList()
        before, previous = STEM, STEM
        for edges, c, made in zip(genotype.cells, channels, outputs, strict=True):
            self.scalers.append(
                nn.ModuleList(nn.Sequential(act(), *conv_bn(size, c, 1)) for size in (before, previous))
            )
            self.cells.append(DerivedCell(edges, c, activation))
            before, previous = previous, made

        # The head's skip: the last cell of width 0, unless the head reads that very cell already.
        narrow = [layer for layer, width in enumerate(genotype.path) if width == 0]
        self.skip_from = narrow[-1] if narrow and narrow[-1] != len(genotype.path) - 1 else None
        skip_channels = genotype.nodes * config.filters
        # Part of the published network, and of its parameter count, also where the skip comes from a cell; frozen
        # there, so that data-parallel training does not wait for gradients that never come.
        self.reduce = conv_bn(STEM, skip_channels, 3, affine=False).requires_grad_(self.skip_from is None)
        self.skip = conv_bn_act(skip_channels, SKIP, 1, activation)
        if config.pyramid:
            features = SpatialPyramid(outputs[-1], HEAD, HEAD, RATES, activation, affine=True)
        else:
            features = conv_bn_act(outputs[-1], HEAD, 1, activation)
        self.features = nn.Sequential(act(), features)
        self.head = nn.Sequential(
            separable(HEAD + SKIP, HEAD, activation),
            separable(HEAD, HEAD, activation),
            nn.Conv2d(HEAD, self.finish.predictions, 3, padding=1),
        )

        # It starts as the identity or as bicubic: from random noise on its output, SGD at the paper's rate diverges.
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def _before_next(self, layer: int, before: Any, previous: Any) -> Any:
        """What the next layer sees of before this one: what this one saw as the previous, stem2 for layer 2."""
        return before if layer == 0 and self.genotype.layer2_reads == "stem1" else previous

    @property
    def radius(self) -> int:
        before = reach(self.stem1)
        previous = stem2 = before + reach(self.stem2)
        for layer, cell in enumerate(self.cells):
            before, previous = self._before_next(layer, before, previous), cell.reach(before, previous)
        skip = stem2 + reach(self.reduce) if self.skip_from is None else previous
        features = previous + (max(RATES) if self.config.pyramid else 0)
        return max(features, skip) + reach(self.head)

    @property
    def reach(self) -> int:
        # Tiles of enlarged images blend in the middle third of what they share.
        return self.radius if self.scale == 1 else 3 * self.radius

    def forward(self, x: Tensor, place: Any = None) -> Tensor:
        before = self.stem1(x)
        previous = stem2 = self.stem2(before)
        skip = None
        for layer, (cell, (scale_before, scale_previous)) in enumerate(zip(self.cells, self.scalers, strict=True)):
            output = cell(scale_before(before), scale_previous(previous))
            before, previous = self._before_next(layer, before, previous), output
            if layer == self.skip_from:
                skip = output
        if skip is None:
            skip = self.reduce(stem2)
        return self.finish(x, self.head(torch.cat([self.features(previous), self.skip(skip)], dim=1)))
