"""The derived DLSR network: what a genotype is retrained as."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.spaces.dlsr.genotype import FIRST_JOIN, Genotype
from srnas_fast.spaces.dlsr.layers import COLOURS, GRID, SCALES, SMALLEST, Cell, Head, Join, Place, Tail, act
from srnas_fast.spaces.dlsr.operations import made


@dataclass
class NetworkConfig:
    """The size of the derived network; the defaults are the paper's.

    Args:
        width: channels of the cells, from 4 up (paper: 48; its tiny network: 18).
        scale: how many times larger the result is: 2, 3 or 4.
    """

    width: int = 48
    scale: int = 2

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it takes

    def __post_init__(self):
        require_whole(self, "network.", width=4, scale=2)
        if self.scale not in SCALES:
            raise InputError(f"network.scale is {self.scale!r}; known: {', '.join(map(str, SCALES))}")


class DerivedNetwork(nn.Module):
    """The network of a genotype: it enlarges images.

    A large image can be enlarged in parts. The attention of each cell stretches a pooled view over the whole image, so
    a part must be told its place, and start on the grid of the pooling: ``network(part, (top, left, height, width))``,
    with height and width of the whole.

    Args:
        genotype: what the search found.
        config: its size.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, H and W from 15 up, in; (N, 3, scale * H, scale * W) out, not
    clipped.

    ``channels``, ``smallest``: of the images it takes; pixels of the shorter side. ``scale``: how many times larger.
    ``grid``: pixels of which ``top`` and ``left`` must be multiples. ``reach``: the pixels that neighbouring parts
    should share. The attention looks further, but hardly: blended by :func:`srnas_fast.train.tiles.upscale_in_tiles`,
    parts of 512 pixels gave the published tiny network's result of the whole image to 0.02/255 on Set14.

    Raises:
        InputError: images of another shape, or smaller; a place off the grid or beyond the image.

    Source: DLSR, arXiv 2105.03939.

    >>> from srnas_fast.spaces.dlsr.genotype import BETA21
    >>> net = DerivedNetwork(BETA21, NetworkConfig(width=18, scale=2))
    >>> net(torch.rand(1, 3, 15, 20)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([1, 3, 30, 40]), 56268)
    """

    channels, smallest, grid, reach = COLOURS, SMALLEST, GRID, 96

    def __init__(self, genotype: Genotype, config: NetworkConfig):
        super().__init__()
        self.genotype, self.config, self.scale = genotype, config, config.scale
        width = config.width
        self.head = Head(width)
        self.cells = nn.ModuleList(
            Cell([made(name, width) for name in genotype.operations], width) for _ in range(genotype.cells)
        )
        self.joins = nn.ModuleList(Join([width] * len(pair), width) for pair in genotype.inputs)
        self.tail = Tail(width, genotype.cells, config.scale)

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        if place is not None:
            for start, side, whole in zip(place[:2], x.shape[2:], place[2:], strict=True):
                if start % GRID or not 0 <= start <= whole - side:
                    raise InputError(
                        f"a part of {tuple(x.shape[2:])} pixels that starts at {place[:2]} of an image of {place[2:]}; "
                        f"give a part of the image that starts at multiples of {GRID} pixels"
                    )
        first = self.head(x)
        return self.tail(first, self._outputs(first, place))

    def _outputs(self, first: Tensor, place: Place | None) -> Iterator[Tensor]:
        """What the cells make, one after the other: each is held no longer than a later one reads it."""
        inputs = [(0,), (1,), *self.genotype.inputs]  # 0 is the head's
        held = {0: first}
        for k, cell in enumerate(self.cells, 1):
            tensors = [held[j] for j in inputs[k - 1]]
            read = tensors[0] if k < FIRST_JOIN else act(self.joins[k - FIRST_JOIN](tensors))
            held[k] = cell(read, place=place)
            del tensors, read
            yield held[k]
            later = {j for pair in inputs[k:] for j in pair}
            held = {j: tensor for j, tensor in held.items() if j in later}

    @torch.no_grad()
    def start_from(self, other: "DerivedNetwork") -> None:
        """Take the weights of a trained network, all but those of the last layer where its scale is another.

        Raises:
            InputError: the other network has another genotype or width.

        >>> from srnas_fast.spaces.dlsr.genotype import BETA21
        >>> x2, x4 = (DerivedNetwork(BETA21, NetworkConfig(width=8, scale=scale)) for scale in (2, 4))
        >>> x4.start_from(x2)
        >>> torch.equal(x4.head.conv.weight, x2.head.conv.weight)
        True
        """
        if self.genotype != other.genotype or self.config.width != other.config.width:
            raise InputError(
                f"a network of {self.genotype} and width {self.config.width} cannot start from one of "
                f"{other.genotype} and width {other.config.width}; give equal ones"
            )
        weights = other.state_dict()
        if self.config.scale != other.config.scale:
            weights |= {name: value for name, value in self.state_dict().items() if name.startswith("tail.upsample.")}
        self.load_state_dict(weights)
