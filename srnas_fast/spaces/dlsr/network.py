"""The derived DLSR network: what a genotype is retrained as."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.spaces.dlsr.genotype import FIRST_JOIN, Genotype
from srnas_fast.spaces.dlsr.layers import COLOURS, GRID, SCALES, SMALLEST, Cell, Head, Join, Place, Tail, act
from srnas_fast.spaces.dlsr.operations import CANDIDATES


@dataclass
class NetworkConfig:
    """The size of the derived network; the defaults are the paper's.

    Args:
        width: channels of the cells, from 4 up (paper: 48; its tiny network: 18).
        scale: how many times larger the result is: 2, 3 or 4.
    """

    width: int = 48
    scale: int = 2

    def __post_init__(self):
        require_whole(self, "network.", width=4)
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
    ``grid``: pixels of which ``top`` and ``left`` must be multiples. ``reach``: the
    pixels that a part should have around what is kept of its result. The attention looks further, but hardly: with so
    many, the result of the published tiny network is that of the whole image to 0.001/255, with half of them to
    0.2/255.

    Raises:
        InputError: images of another shape, or smaller; a place off the grid.

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
            Cell([CANDIDATES[name](width) for name in genotype.operations], width) for _ in range(genotype.cells)
        )
        self.joins = nn.ModuleList(Join([width] * len(pair), width) for pair in genotype.inputs)
        self.tail = Tail(width, genotype.cells, config.scale)

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        if place is not None and (place[0] % GRID or place[1] % GRID):
            raise InputError(f"a part that starts at {place[:2]} of an image; give multiples of {GRID} pixels")
        first = self.head(x)
        outputs: list[Tensor] = []
        for k, cell in enumerate(self.cells):
            join = k - FIRST_JOIN + 1
            if join < 0:
                read = outputs[-1] if outputs else first
            else:
                read = act(self.joins[join]([outputs[j - 1] for j in self.genotype.inputs[join]]))
            outputs.append(cell(read, place=place))
        return self.tail(first, outputs)

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
