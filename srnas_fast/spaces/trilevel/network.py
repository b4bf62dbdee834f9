"""The derived TrilevelNAS network: what a genotype is retrained as, and what a search's weights go on in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError, require_whole
from srnas_fast.spaces.reach import shared_by_tiles
from srnas_fast.spaces.trilevel.genotype import Genotype
from srnas_fast.spaces.trilevel.layers import COLOURS, SMALLEST, Frame, added, factors, needed_before, require_frame, up
from srnas_fast.spaces.trilevel.operations import DERIVED, Form, made, require_width, supernet_form

FORMS = ("derived", "supernet")


@dataclass
class NetworkConfig:
    """The size of the derived network; the defaults are those of the published code.

    Args:
        width: channels at the ends of a cell, a multiple of 8 (published: 64).
        scale: how many times larger the result is: 2, 3 or 4 (published: 4).
        output: tanh: (tanh + 1) / 2 (published). plain: what the last convolution makes. added: that, added to the
            image enlarged bicubically, which is ours, and where the network starts.
        form: of the operations. derived: a shortcut is the identity where it can be, and dwsblock widens by its input
            (published). supernet: as in the supernet, a 1x1 convolution and by the full width; the form in which the
            weights of a search go on.

    Raises:
        InputError: a value is out of its range.
    """

    width: int = 64
    scale: int = 4
    output: str = "tanh"
    form: str = "derived"

    smallest: ClassVar[int] = SMALLEST  # pixels of the shorter side of the images it can learn from

    def __post_init__(self):
        require_whole(self, "network.", width=8, scale=2)
        require_width("network.", self.width)
        require_frame("network.", self)
        if self.form not in FORMS:
            raise InputError(f"network.form is {self.form!r}; known: {', '.join(FORMS)}")

    @property
    def operations(self) -> Form:
        """The form of the candidates."""
        return supernet_form(self.width) if self.form == "supernet" else DERIVED


class DerivedCell(nn.Module):
    """Five chosen operations, one after the other, added to their input: (N, C, H, W) in and out."""

    def __init__(self, operations: Sequence[str], channels: Sequence[tuple[int, int]], form: Form, width: int):
        super().__init__()
        self.operations = nn.Sequential(
            *(made(name, *ends, form, width) for name, ends in zip(operations, channels, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        return added(x, self.operations(x))


class DerivedNetwork(nn.Module):
    """The network of a genotype: it enlarges images. It has no batch norm.

    Args:
        genotype: what the search found.
        config: its size.

    Shapes: images (N, 3, H, W), RGB on the [0, 1] scale, of any size, in; (N, 3, scale * H, scale * W) out, in (0, 1)
    after tanh, else not clipped.
    ``forward(x, place=None)``: ``place``, where in a larger image x lies, changes nothing.

    ``channels``, ``smallest``: of the images it takes; pixels of the shorter side. ``scale``: how many times larger.
    ``grid``: parts of an image may start at any pixel.

    Raises:
        InputError: images of another shape; a genotype of variant A whose ups do not make the scale; a candidate of
            the user's own that fails, or changes its input or the shape of it.

    Source: TrilevelNAS, arXiv 2101.06658; the operations are AutoGAN-Distiller's, arXiv 2006.08198.

    >>> from srnas_fast.spaces.trilevel.genotype import B1
    >>> net = DerivedNetwork(B1, NetworkConfig())
    >>> net(torch.rand(1, 3, 5, 7)).shape, sum(p.numel() for p in net.parameters() if p.dim() > 1)
    (torch.Size([1, 3, 20, 28]), 234080)
    """

    channels, smallest, grid = COLOURS, 1, 1

    def __init__(self, genotype: Genotype, config: NetworkConfig):
        super().__init__()
        self.genotype, self.config, self.scale = genotype, config, config.scale
        enlarges = iter(factors(genotype.variant, config.scale, genotype.path.count("1")))
        self.frame = Frame(config.width, genotype.variant, config.scale, config.output)
        self.steps = nn.ModuleList()
        for step in genotype.path:
            if step == "1":
                self.steps.append(up(config.width, genotype.variant, next(enlarges)))
            else:
                cell = sum(isinstance(earlier, DerivedCell) for earlier in self.steps)
                channels = genotype.channels(cell, config.width)
                self.steps.append(DerivedCell(genotype.operations[cell], channels, config.operations, config.width))

    def forward(self, x: Tensor, place: Any = None) -> Tensor:
        features = self.frame.first(x)
        for step in self.steps:
            features = step(features)
        return self.frame.result(features, x)

    @property
    def reach(self) -> int:
        """Low-resolution pixels that neighbouring tiles should share."""
        return shared_by_tiles(self.radius)

    @property
    def radius(self) -> int:
        """How many low-resolution pixels to each side a pixel depends on.

        Exactly so many of the four candidates. Of the user's own it counts the convolutions, as if they stood one
        after the other.
        """
        needed = (0, self.scale - 1) if self.genotype.variant == "A" else (0, 0)  # for all that becomes of pixel 0
        needed = needed_before(needed, self.frame.tail)
        for step in reversed(self.steps):
            if isinstance(step, DerivedCell):
                far = sum(_reach(operation) for operation in step.operations)
                needed = needed[0] - far, needed[1] + far
            else:
                needed = needed_before(needed, step)
        low, high = needed_before(needed, self.frame.head)
        return max(-low, high, 2 if self.config.output == "added" else 0)  # 2: of the bicubic interpolation

    @torch.no_grad()
    def start_from(self, other: "DerivedNetwork") -> None:
        """Take the weights of a trained network, all but those of a last layer that has another size.

        Raises:
            InputError: the other network has another genotype, width or form.

        >>> from srnas_fast.spaces.trilevel.genotype import B1
        >>> x2, x4 = (DerivedNetwork(B1, NetworkConfig(width=8, scale=scale)) for scale in (2, 4))
        >>> x4.start_from(x2)
        >>> torch.equal(x4.frame.head.weight, x2.frame.head.weight)
        True
        """
        for name, mine, theirs in (
            ("genotype", self.genotype, other.genotype),
            ("width", self.config.width, other.config.width),
            ("form", self.config.form, other.config.form),
        ):
            if mine != theirs:
                raise InputError(
                    f"a network of {name} {mine} cannot start from one of {name} {theirs}; give equal ones"
                )
        weights = other.state_dict()
        same = weights["frame.tail.weight"].shape == self.frame.tail.weight.shape
        if not same:
            weights |= {name: value for name, value in self.state_dict().items() if name.startswith("frame.tail.")}
        self.load_state_dict(weights)


def _reach(operation: nn.Module) -> int:
    """Pixels to one side; a shortcut is a convolution of single pixels."""
    return -needed_before((0, 0), operation)[0]
