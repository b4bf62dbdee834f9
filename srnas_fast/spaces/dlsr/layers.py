"""What the supernet and the derived networks share: the cell with its distillation and attention, and the two ends."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srnas_fast.errors import InputError

POSITIONS = 3  # of operations in a cell
SCALES = (2, 3, 4)
SMALLEST = 15  # pixels of an image's side: below, nothing is left of it where the attention pools
COLOURS = 3
RANGE = 255.0  # the published weights see images on the [0, 255] scale
GRID = 6  # pixels from one window to the next where the attention pools

Place = tuple[int, int, int, int]  # of a part in a whole image: top, left; height and width of the whole


def act(x: Tensor) -> Tensor:
    """LeakyReLU 0.05, in place: for a fresh sum or convolution, which no other layer keeps."""
    return F.leaky_relu(x, 0.05, inplace=True)


class Join(nn.Conv2d):
    """A 1x1 convolution of several tensors' concatenation, computed without concatenating them.

    It keeps nothing for the backward pass but the tensors themselves, which several joins may share.

    Args:
        inputs: channels of each tensor.
        outputs: channels of the result.

    ``forward(tensors, weights=None, support=None)``: tensors (N, C_j, H, W) in, which an iterator may make one by one,
    (N, outputs, H, W) out; ``weights``: what each tensor is multiplied with; ``support``: booleans, whose False entries
    have weight zero and are left out.

    >>> join, a, b = Join([2, 3], 4), torch.randn(1, 2, 5, 5), torch.randn(1, 3, 5, 5)
    >>> same = nn.functional.conv2d(torch.cat([0.7 * a, 0.3 * b], dim=1), join.weight, join.bias)
    >>> torch.allclose(join([a, b], torch.tensor([0.7, 0.3])), same, atol=1e-6)
    True
    """

    def __init__(self, inputs: Sequence[int], outputs: int):
        super().__init__(sum(inputs), outputs, 1)
        self.sizes = list(inputs)

    def forward(
        self, tensors: Iterable[Tensor], weights: Tensor | None = None, support: Sequence[bool] | None = None
    ) -> Tensor:
        total = None
        for j, (x, kernel) in enumerate(zip(tensors, self.weight.split(self.sizes, dim=1), strict=True)):
            if support and not support[j]:
                continue
            part = F.conv2d(x, kernel if weights is None else weights[j] * kernel, self.bias if total is None else None)
            total = part if total is None else total.add_(part)
            del x, part  # before the next tensor is made
        return total


class Attention(nn.Module):
    """Enhanced spatial attention: x times a mask in (0, 1), made of a pooled view that is stretched back over x.

    Shapes: (N, C, H, W) in and out, H and W from 15 up. ``place``: where in which larger image x lies, if it is a part
    of one: the part then sees the mask as the whole image does, but for what the view lacks beyond the part's borders.

    Source: RFDN, arXiv 2009.11551.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 4
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.full = nn.Conv2d(inner, inner, 1)  # at full resolution
        self.shrink = nn.Conv2d(inner, inner, 3, stride=2)
        self.pooled = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in range(3))
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        reduced = self.reduce(x)
        view = F.max_pool2d(self.shrink(reduced), 7, stride=3)
        for conv in self.pooled[:-1]:
            view = F.relu(conv(view), inplace=True)
        view = self.pooled[-1](view)
        if place is None:
            view = F.interpolate(view, x.shape[-2:], mode="bilinear", align_corners=False)
        else:
            top, left, height, width = place
            view = _stretched(_stretched(view, 2, x.shape[2], top, height), 3, x.shape[3], left, width)
        return x * self.expand(view + self.full(reduced)).sigmoid_()


def _stretched(view: Tensor, dim: int, size: int, start: int, whole: int) -> Tensor:
    """The view of a part of an image, of ``size`` pixels from ``start`` on, stretched along ``dim`` as by the whole.

    How far F.interpolate moves a pixel depends on where it lies between the borders, since the view of ``whole`` pixels
    has less than a sixth of them.
    """
    entries = ((whole - 3) // 2 + 1 - 7) // 3 + 1
    pixels = torch.arange(start, start + size, dtype=torch.float64, device=view.device)
    positions = ((pixels + 0.5) * (entries / whole) - 0.5).clamp(0, entries - 1) - start // GRID
    positions = positions.clamp(0, view.shape[dim] - 1)
    below = positions.long()
    above = (below + 1).clamp(max=view.shape[dim] - 1)
    fraction = (positions - below).to(view.dtype).view([-1] + [1] * (3 - dim))
    return torch.lerp(view.index_select(dim, below), view.index_select(dim, above), fraction)


class Cell(nn.Module):
    """Residual feature distillation: at each position half of the channels are kept aside, the rest goes on.

    Position i: ``d_i = act(1x1(r))`` with half of the channels, then ``r = act(operation_i(r) + r)``. All ``d_i`` and
    a last 3x3 of r are joined by a 1x1 and attended to; nothing goes around the cell.

    Args:
        operations: what stands at the three positions, mixed or single.
        channels: of the input and of the result, from 4 up.

    ``forward(x, choices=((), (), ()), place=None)``: (N, C, H, W) in and out; ``choices``: for each position what its
    operation takes beside the tensor: the weights and the support of a mixed one; ``place``: see :class:`Attention`.

    Source: DLSR, arXiv 2105.03939; RFDN, arXiv 2009.11551.
    """

    def __init__(self, operations: Iterable[nn.Module], channels: int):
        super().__init__()
        half = channels // 2
        self.operations = nn.ModuleList(operations)
        self.distil = nn.ModuleList(nn.Conv2d(channels, half, 1) for _ in self.operations)
        self.last = nn.Conv2d(channels, half, 3, padding=1)
        self.join = Join([half] * (len(self.operations) + 1), channels)
        self.attention = Attention(channels)

    def forward(self, x: Tensor, choices: Sequence[tuple] = ((),) * POSITIONS, place: Place | None = None) -> Tensor:
        return self.attention(self.join(self._kept_aside(x, choices)), place)

    def _kept_aside(self, x: Tensor, choices: Sequence[tuple]) -> Iterator[Tensor]:
        """What each position keeps aside, and at last what goes on: one by one, so that few are there at a time."""
        for distil, operation, choice in zip(self.distil, self.operations, choices, strict=True):
            yield act(distil(x))
            x = act(operation(x, *choice) + x)
        yield act(self.last(x))


class Head(nn.Module):
    """The first convolution: images (N, 3, H, W) on the [0, 1] scale in, (N, C, H, W) out.

    Raises:
        InputError: no such images, or smaller than 15 pixels a side.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(COLOURS, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != COLOURS or x.shape[2] < SMALLEST or x.shape[3] < SMALLEST:
            raise InputError(
                f"DLSR got images of shape {tuple(x.shape)}; give (N, {COLOURS}, H, W), RGB on the [0, 1] scale, with "
                f"H and W from {SMALLEST} up"
            )
        return self.conv(x * RANGE)


class Tail(nn.Module):
    """All cells joined, the first convolution's result added, and pixels made of channels.

    ``forward(first, outputs)``: (N, C, H, W) of the head and of each cell in, images (N, 3, scale * H, scale * W) on
    the [0, 1] scale out, not clipped.
    """

    def __init__(self, channels: int, cells: int, scale: int):
        super().__init__()
        self.scale = scale
        self.join = Join([channels] * cells, channels)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = nn.Conv2d(channels, COLOURS * scale**2, 3, padding=1)

    def forward(self, first: Tensor, outputs: Iterable[Tensor]) -> Tensor:
        features = self.smooth(act(self.join(outputs))) + first
        return F.pixel_shuffle(self.upsample(features), self.scale) / RANGE
