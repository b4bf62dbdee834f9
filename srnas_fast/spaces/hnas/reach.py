"""How far what enlarges images looks, exactly: which pixels of its input an interval of its output's pixels needs."""

from torch import nn

from srnas_fast.spaces.reach import reach

Interval = tuple[int, int]  # first and last pixel, along one side


def hull(one: Interval | None, other: Interval) -> Interval:
    """What both need together; None: nothing yet.

    >>> hull(None, (0, 1)), hull((-3, 1), (0, 2))
    ((0, 1), (-3, 2))
    """
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


def normal_reads(operation: nn.Module, interval: Interval) -> Interval:
    """What an operation that keeps the size needs: its convolutions, one after the other.

    >>> normal_reads(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=4, dilation=2)), (0, 1))
    (-5, 6)
    """
    far = reach(operation)
    return interval[0] - far, interval[1] + far


def upsampling_reads(name: str, stride: int, interval: Interval) -> Interval:
    """What a candidate of the upsampling cell needs: low-resolution pixels for pixels that are ``stride`` times finer.

    >>> upsampling_reads("nearest", 2, (-1, 2)), upsampling_reads("bilinear", 2, (-1, 2))
    ((-1, 1), (-1, 1))
    >>> upsampling_reads("sub_pixel", 4, (0, 0)), upsampling_reads("deconvolution", 2, (0, 1))
    ((-2, 1), (0, 1))
    """
    low, high = interval
    if name == "deconvolution":
        size, padding = 5 if stride == 4 else 3, 0 if stride == 3 else 1
        # Pixel i reaches from stride * i - padding on size pixels.
        return -((size - 1 - padding - low) // stride), (high + padding) // stride
    if name == "bilinear":
        # Pixel o lies at (o + 1/2) / stride - 1/2, between two or on one.
        return (2 * low + 1 - stride) // (2 * stride), -((stride - 1 - 2 * high) // (2 * stride))
    if name == "sub_pixel":
        for step in {1: [], 4: [2, 2]}.get(stride, [stride]):
            low, high = low // step - 1, high // step + 1
        return low, high
    return low // stride, high // stride
