"""A stage of a candidate operation: what is computed by one layer that looks at neighbours and by those around it."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stage:
    """[activation -] convolution or pooling [- batch norm], where the convolution is dense or depthwise - pointwise.

    Attributes:
        activation: nn.ReLU, nn.LeakyReLU, nn.PReLU, Sine, or None.
        depthwise: the depthwise convolution, without bias, of stride 1 or 2; None for the other stages.
        conv: the dense or the pointwise convolution, of stride 1; None for a pooling stage.
        norm: the batch norm, or None.
        pool: nn.MaxPool2d or nn.AvgPool2d, of stride 1 or 2 and an odd size that it is padded for; None for the others.
    """

    activation: nn.Module | None
    depthwise: nn.Conv2d | None
    conv: nn.Conv2d | None
    norm: nn.BatchNorm2d | None
    pool: nn.Module | None = None

    @property
    def kind(self) -> str:
        """One of "dense", "separable" and "pool"."""
        if self.pool is not None:
            return "pool"
        return "dense" if self.depthwise is None else "separable"

    @property
    def spatial(self) -> nn.Module:
        """The layer that looks at neighbours: pooling, depthwise or dense convolution."""
        return self.pool or self.depthwise or self.conv

    @property
    def size(self) -> int:
        """Of its window."""
        return one_of(self.spatial.kernel_size)

    @property
    def dilation(self) -> int:
        """Of its window."""
        return one_of(getattr(self.spatial, "dilation", 1))  # an average pool has none

    @property
    def stride(self) -> int:
        """How many rows and columns of its input make one of its result."""
        return one_of(self.spatial.stride)

    @property
    def activation_name(self) -> str:
        """The activation's class, with its slope where that is fixed."""
        slope = f"({self.activation.negative_slope:g})" if type(self.activation) is nn.LeakyReLU else ""
        return type(self.activation).__name__ + slope

    def __str__(self) -> str:
        parts = [] if self.activation is None else [self.activation_name]
        name = {nn.MaxPool2d: "max pool", nn.AvgPool2d: "average pool"}.get(type(self.spatial))
        name = name or ("dense" if self.depthwise is None else "depthwise")
        parts.append(f"{name} {self.size}x{self.size}")
        parts[-1] += f" dilation {self.dilation}" * (self.dilation != 1) + f" stride {self.stride}" * (self.stride != 1)
        if self.depthwise is not None:
            parts.append("pointwise")
        parts[-1] += " with bias" * (self.conv is not None and self.conv.bias is not None)
        parts[-1] += " with padding" * bool(getattr(self.pool, "count_include_pad", False))
        return " - ".join(parts + ["batch norm"] * (self.norm is not None))


def one_of(value: int | tuple[int, int]) -> int:
    """What is given once or twice."""
    return value if type(value) is int else value[0]
