"""Bicubic resizing as MATLAB's imresize does it: what the low-resolution images of the benchmarks were made with."""

from collections.abc import Iterator
from fractions import Fraction
from numbers import Rational

import numpy as np

from srnas_fast.errors import InputError

_BLOCK = 1 << 17  # numbers that are summed at a time: 1 MiB of float64 stays in the processor's cache


def resize(image: np.ndarray, scale: int | Fraction) -> np.ndarray:
    """Return the image with height and width times ``scale``, rounded up: bicubic, antialiased when it shrinks.

    Cubic kernel with a = -0.5 (Keys, 1981), widened by 1 / scale below 1; weights normalised to a sum of 1,
    borders mirrored, sums in float64; height first, then width. For uint8 each of the two passes ends with
    rounding (halves up) and clipping, as in MATLAB; floats are neither rounded nor clipped. A pixel depends on the
    pixels under its kernel alone, to the last bit: a crop gives what the crop of the whole would.

    Equivalent to, for floats and away from the borders:
    ``F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)``.

    Args:
        image: (H, W, C), uint8 or floating point.
        scale: above 0, an int or a ``Fraction``; ``Fraction(1, 3)`` makes images of a third of the size.

    Raises:
        InputError: a scale that is not such a number, or an image of another shape or type.

    >>> ramp = np.arange(0, 240, 10, np.uint8).reshape(1, 24, 1)
    >>> resize(ramp, Fraction(1, 4))[0, :, 0]
    array([ 14,  55,  95, 135, 175, 216], dtype=uint8)
    >>> resize(np.ones((3, 5, 3), np.float32), 2).shape
    (6, 10, 3)
    """
    if not isinstance(scale, Rational) or scale <= 0:
        raise InputError(f"scale is {scale!r}; give an int or a Fraction above 0, such as 2 or Fraction(1, 3)")
    if image.ndim != 3 or not image.size:
        raise InputError(f"an image of shape {image.shape}; give (H, W, C) with H, W and C from 1 up")
    eight_bit = image.dtype == np.uint8
    if not eight_bit and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"an image of {image.dtype}; give uint8 or floating point")
    up, down = int(scale.numerator), int(scale.denominator)
    between = np.uint8 if eight_bit else np.float64
    result = _resize_rows(image, up, down, between)
    return np.ascontiguousarray(_resize_rows(result.swapaxes(0, 1), up, down, image.dtype).swapaxes(0, 1))


def _resize_rows(image: np.ndarray, up: int, down: int, dtype: np.dtype) -> np.ndarray:
    """One pass, along the first axis, by ``up / down``; the result has ``dtype``, rounded if that is uint8."""
    length, *rest = image.shape
    out = -(-length * up // down)
    taps = list(_kernels(up, down, out))
    before = max(0, -min(first for first, _ in taps))
    last = max((out - 1 - phase) // up * down + first + len(weights) for phase, (first, weights) in enumerate(taps))
    padded = image[_mirrored(np.arange(-before, max(length, last)), length)].reshape(-1, int(np.prod(rest)))
    result = np.empty((out, padded.shape[1]), dtype)
    for phase, (first, weights) in enumerate(taps):
        rows = result[phase::up]
        block = max(1, _BLOCK // padded.shape[1])
        for start in range(0, len(rows), block):
            sums = np.zeros((min(block, len(rows) - start), padded.shape[1]))
            top = before + first + start * down
            for k, weight in enumerate(weights):
                sums += padded[top + k : top + k + (len(sums) - 1) * down + 1 : down] * weight
            if dtype == np.uint8:
                sums = np.clip(sums + 0.5, 0, 255)  # the conversion then cuts: halves go up
            rows[start : start + len(sums)] = sums
    return result.reshape(out, *rest)


def _kernels(up: int, down: int, out: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first input row and the weights of outputs 0 to ``up - 1``, or of all ``out`` where those are fewer.

    Output ``i + up`` has the weights of output i, ``down`` rows further.
    Output i lies at ((2 i + 1) down - up) / (2 up) on the input's axis. All of it is whole numbers up to the
    kernel's argument, so that equal distances get equal weights wherever they are.
    """
    reach = 2 * max(up, down)  # of a distance of 1 in the kernel's argument, in units of 1 / (2 up) input pixels
    for phase in range(min(up, out)):
        centre = (2 * phase + 1) * down - up
        first = (centre - 2 * reach) // (2 * up) + 1
        beyond = -((-centre - 2 * reach) // (2 * up))
        weights = _cubic(np.abs(centre - 2 * up * np.arange(first, beyond)) / reach)
        yield first, weights / weights.sum()


def _cubic(t: np.ndarray) -> np.ndarray:
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices beyond the ends, reflected with the last pixel repeated: -1 is 0, -2 is 1, as often as needed."""
    index = index % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)
