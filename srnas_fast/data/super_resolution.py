"""High- and low-resolution images in pairs: whole ones to measure on, and patches of them to learn from."""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from srnas_fast.data.folder import digest
from srnas_fast.data.images import read_image, write_image
from srnas_fast.data.layouts import PairPath, benchmark_paths, training_paths
from srnas_fast.data.photographs import photographs
from srnas_fast.data.randomness import generator
from srnas_fast.data.resize import resize
from srnas_fast.errors import InputError, require_whole

MEMORY = 4 * 2**30  # bytes of decoded images that are kept
_MARGIN = 2  # low-resolution pixels: half of the kernel's width, which is 4 of them whatever the scale


@dataclass
class SuperResolutionData:
    """Where the images of a super-resolution search or training come from, and how patches are made of them.

    The defaults are those of DLSR's search (arXiv 2105.03939); its retraining takes patches of 128 in batches of 32,
    repeated 18 times.

    Args:
        root: folders of high-resolution images, or roots of the trees of EDSR, BasicSR or BSDS500; several are read as
            one set (DF2K is DIV2K and Flickr2K). Without one, the photographs that come with scikit-image.
        patch: height and width of a high-resolution training patch, in pixels; what exceeds a multiple of the
            network's scale is left out (128 at x3 makes 126).
        batch: patches in one step.
        repeat: patches that are taken of each image in an epoch, on average.
        memory: bytes of decoded images that are kept; the images beyond are decoded for each patch anew.
        cache: folder to keep low-resolution images in that do not come with the high-resolution ones. Without one,
            each patch is made when it is needed, with the same pixels.
        workers: processes that prepare patches beside the training; 0 prepares them in the training process.
            The patches are the same whatever the number.
        validation_crop: height and width of the centre of each validation image that is used, in high-resolution
            pixels; 0 uses the whole image.

    Raises:
        InputError: a value is out of its range.
    """

    root: list[str] = field(default_factory=list)
    patch: int = 64
    batch: int = 64
    repeat: int = 21
    memory: int = MEMORY
    cache: str | None = None
    workers: int = 0
    validation_crop: int = 256

    def __post_init__(self):
        self.root = [self.root] if isinstance(self.root, str) else list(self.root or [])
        require_whole(self, "data.", patch=1, batch=1, repeat=1, memory=0, workers=0, validation_crop=0)

    def steps(self, images: int) -> int:
        """Steps in an epoch over so many images.

        >>> SuperResolutionData(batch=32, patch=128, repeat=18).steps(3450)
        1941
        """
        return math.ceil(images * self.repeat / self.batch)


class ImagePair:
    """A high-resolution image and its low-resolution twin, in memory or read from their files when needed.

    Args:
        name: path below the folder it was read from: the same wherever the folder is.
        scale: of the pair.
        size: height and width of the low-resolution image. High-resolution pixels beyond its multiple, at the bottom
            and on the right, are left out.
        hr: (H, W, 3) uint8 pixels or their file.
        lr: uint8 pixels or their file; None makes what is asked for with :func:`resize`.

    >>> pair = ImagePair("ramp", 2, (3, 4), np.arange(63, dtype=np.uint8).repeat(3).reshape(7, 9, 3))
    >>> lr, hr = pair.whole()
    >>> lr.shape, hr.shape
    ((3, 4, 3), (6, 8, 3))
    >>> all(np.array_equal(*both) for both in zip(pair.crop(1, 2, 2, 2), (lr[1:3, 2:4], hr[2:6, 4:8])))
    True
    """

    def __init__(
        self, name: str, scale: int, size: tuple[int, int], hr: np.ndarray | Path, lr: np.ndarray | Path | None = None
    ):
        self.name, self.scale, self.size, self.hr, self.lr = name, scale, size, hr, lr

    @property
    def memory(self) -> int:
        """Bytes of the pixels that are kept."""
        return sum(image.nbytes for image in (self.hr, self.lr) if isinstance(image, np.ndarray))

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """The two images, uint8: (h, w, 3) and (h * scale, w * scale, 3)."""
        return self.crop(0, 0, *self.size)

    def centre(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The middle of both, ``size`` high-resolution pixels or a little less a side, or what there is; 0 gives all.

        >>> lr, hr = ImagePair("flat", 3, (30, 10), np.zeros((90, 30, 3), np.uint8)).centre(50)
        >>> lr.shape, hr.shape
        ((16, 10, 3), (48, 30, 3))
        """
        if size == 0:
            return self.whole()
        height, width = (min(length, size // self.scale) for length in self.size)
        return self.crop((self.size[0] - height) // 2, (self.size[1] - width) // 2, height, width)

    def crop(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A part of both, given in low-resolution pixels: (height, width, 3) and ``scale`` times as high and wide."""
        scale, (h, w) = self.scale, self.size
        hr = _pixels(self.hr)[: h * scale, : w * scale]
        fine = hr[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
        if self.lr is not None:
            return _pixels(self.lr)[top : top + height, left : left + width], fine
        # As many pixels around it as the kernel reads give it the very pixels of the whole image, resized.
        y, x = max(0, top - _MARGIN), max(0, left - _MARGIN)
        around = hr[y * scale : (top + height + _MARGIN) * scale, x * scale : (left + width + _MARGIN) * scale]
        return resize(around, Fraction(1, scale))[top - y :, left - x :][:height, :width], fine


@dataclass
class PairSet:
    """The usable image pairs of some folders, and the others.

    Args:
        images: in the order of the folders, then of their names.
        skipped: one line "path: reason" for each image left out.
        digest: a short text that changes when a name or a pixel does: what a resumed run compares.
    """

    images: list[ImagePair]
    skipped: list[str]
    digest: str


def load_pairs(
    paths: Sequence[PairPath],
    scale: int,
    memory: int = MEMORY,
    cache: str | os.PathLike | None = None,
    minimum: int = 1,
) -> PairSet:
    """Decode every pair once, several at a time, and keep what the memory allows; gray images become RGB.

    Pairs that cannot be read or do not fit each other are skipped and listed with the reason, and so are small ones.
    16-bit images are rounded to 8 bits. A pair that is not kept is decoded again whenever it is used.

    Args:
        paths: as ``training_paths`` finds them.
        scale: of the pairs.
        memory: bytes of decoded images to keep, of the first pairs that fit.
        cache: folder to keep low-resolution images in that ``paths`` lacks; each is made if it is not there.
        minimum: images with fewer high-resolution pixels than this in height or width are skipped.

    Raises:
        InputError: no pair can be used.
        OSError: the cache cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "flat.png"
    >>> write_image(path, np.full((9, 7, 1), 50))
    >>> lr, hr = load_pairs([PairPath("flat.png", path, None)], scale=2).images[0].whole()
    >>> lr.shape, hr.shape, int(lr.min())
    ((4, 3, 3), (8, 6, 3), 50)
    """
    images, skipped, total = [], [], hashlib.sha256(str(scale).encode())
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), 4 * threads):  # not all at once: a result waits in memory
            some = paths[start : start + 4 * threads]
            for path, found in zip(some, pool.map(lambda path: _load(path, scale, cache, minimum), some), strict=True):
                if isinstance(found, str):
                    skipped.append(found)
                    continue
                pair, on_disk, fingerprint = found
                total.update(fingerprint)
                if pair.memory > memory:
                    pair = ImagePair(path.name, scale, pair.size, path.hr, on_disk)
                memory -= pair.memory
                images.append(pair)
    if not images:
        first = f"; first: {skipped[0]}" if skipped else ""
        raise InputError(f"none of {len(paths)} images can be used for x{scale}{first}")
    return PairSet(images, skipped, f"{len(images)} pairs, x{scale}, {total.hexdigest()[:16]}")


def pairs_for(data: SuperResolutionData, scale: int, split: str) -> PairSet:
    """The pairs below the roots, or of the embedded photographs of a split ("search", "train" or "test").

    Args:
        data: root, patch, memory and cache are used.
        scale: of the pairs.
        split: which of the embedded photographs.

    Raises:
        InputError: a root is missing or holds no tree that is known, or none of its images can be used.

    >>> pairs = pairs_for(SuperResolutionData(), 4, "test")
    >>> [(pair.name, pair.size) for pair in pairs.images]
    [('astronaut', (128, 128)), ('camera', (128, 128)), ('chelsea', (75, 112)), ('coins', (75, 96))]
    """
    minimum = max(data.patch // scale * scale, _least(scale))
    if not data.root:
        return _photographs(split, scale, minimum)
    return load_pairs(training_paths(data.root, scale), scale, data.memory, data.cache, minimum)


def benchmark_sets(
    root: str | os.PathLike | None, scale: int, memory: int = MEMORY, cache: str | os.PathLike | None = None
) -> dict[str, PairSet]:
    """The test sets below a root by their names in the papers, or the embedded photographs.

    Args:
        root: as for ``benchmark_paths``; None for the photographs that no training sees.
        scale, memory, cache: as for :func:`load_pairs`; the memory is that of all sets together.

    Raises:
        InputError: the root is missing or holds no images, or none of a set's images can be used.

    >>> {name: len(pairs.images) for name, pairs in benchmark_sets(None, scale=2).items()}
    {'photographs': 4}
    """
    if root is None:
        return {"photographs": _photographs("test", scale, _least(scale))}
    sets = {}
    for name, paths in benchmark_paths(root, scale).items():
        sets[name] = load_pairs(paths, scale, memory, cache, _least(scale))
        memory -= sum(pair.memory for pair in sets[name].images)
    return sets


class PairStream(Dataset):
    """An endless row of training patches in pairs, each a pure function of the seed, the stream's name and its number.

    Item n is a pair (lr, hr) of float32 tensors (3, side, side) and (3, side * scale, side * scale) on the [0, 1]
    scale, with side = patch // scale: an image drawn at random, a crop of it on whole low-resolution pixels, in one of
    the eight symmetries.
    ``loader`` makes batches of it, as of ``PatchStream``.

    Args:
        images: pairs of one scale.
        data: patch is used.
        seed: of the whole run.
        stream: a name, so that two streams of one run ("weights", "architecture") are independent.

    Raises:
        InputError: there is no image, or one is smaller than the patch, or of another scale.

    >>> image = ImagePair("flat", 2, (20, 30), np.full((40, 60, 3), 51, np.uint8))
    >>> lr, hr = PairStream([image], SuperResolutionData(patch=16), seed=0, stream="weights")[1000]
    >>> lr.shape, hr.shape, round(float(lr.mean()), 4)
    (torch.Size([3, 8, 8]), torch.Size([3, 16, 16]), 0.2)
    """

    def __init__(self, images: Sequence[ImagePair], data: SuperResolutionData, seed: int, stream: str):
        if not images:
            raise InputError(f"no images to take patches from ({stream})")
        side = data.patch // images[0].scale
        if side < 1:
            raise InputError(f"data.patch is {data.patch}; give a whole number from the scale {images[0].scale} up")
        for image in images:
            if image.scale != images[0].scale:
                first = f"{images[0].name} one of scale {images[0].scale}"
                raise InputError(f"{image.name} is a pair of scale {image.scale}, {first}; give pairs of one scale")
            if min(image.size) < side:
                height, width = (length * image.scale for length in image.size)
                raise InputError(
                    f"{image.name} ({width}x{height}) is smaller than the {data.patch}-pixel patch; "
                    f"use a smaller --data.patch or larger images"
                )
        self.images, self.side, self.seed, self.stream = list(images), side, int(seed), stream

    def __getitem__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(self.seed, self.stream, int(n))
        image = self.images[random.integers(len(self.images))]
        top, left = (random.integers(length - self.side + 1) for length in image.size)
        turns, mirror = random.integers(4), random.random() < 0.5
        patches = []
        for crop in image.crop(top, left, self.side, self.side):
            crop = np.rot90(crop, turns)
            crop = crop[:, ::-1] if mirror else crop
            patches.append(torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)) / np.float32(255)))
        return tuple(patches)


def _load(
    path: PairPath, scale: int, cache: str | os.PathLike | None, minimum: int
) -> tuple[ImagePair, Path | None, bytes] | str:
    """The pair in memory, the file of its low-resolution image if there is one, and what tells it from others.

    A text says why there is no such pair.
    """
    try:
        hr = _pixels(path.hr)
        lr = None if path.lr is None else _pixels(path.lr)
    except InputError as error:
        return str(error)
    height, width = hr.shape[:2]
    h, w = height // scale, width // scale
    if min(h, w) * scale < max(minimum, scale):
        least = max(minimum, scale)
        return f"{path.hr}: {width}x{height} pixels, smaller than {least}x{least}"
    if lr is not None and not (
        0 <= lr.shape[0] - h <= (height % scale > 0) and 0 <= lr.shape[1] - w <= (width % scale > 0)
    ):
        return f"{path.lr}: {lr.shape[1]}x{lr.shape[0]} pixels, but {path.hr.name} of {width}x{height} gives {w}x{h}"
    fingerprint = hashlib.sha256(f"{path.name} {h} {w} ".encode())
    fingerprint.update(hr := np.ascontiguousarray(hr[: h * scale, : w * scale]))
    on_disk = path.lr
    if lr is not None:
        fingerprint.update(lr := np.ascontiguousarray(lr[:h, :w]))
    elif cache is not None:
        lr, on_disk = _cached(hr, scale, Path(cache) / f"X{scale}", path.hr.stem)
    return ImagePair(path.name, scale, (h, w), hr, lr), on_disk, fingerprint.digest()


def _cached(hr: np.ndarray, scale: int, folder: Path, stem: str) -> tuple[np.ndarray, Path]:
    """The low-resolution image from its file, which is named by the pixels it was made of, or made and written."""
    path = folder / f"{stem}x{scale}-{hashlib.sha256(f'{hr.shape}'.encode() + hr.tobytes()).hexdigest()[:16]}.png"
    try:
        return _pixels(path), path
    except InputError:  # not there, or damaged
        lr = resize(hr, Fraction(1, scale))
        write_image(path, lr)
        return lr, path


def _photographs(split: str, scale: int, minimum: int) -> PairSet:
    images, small = [], []
    for image in photographs(split, gray=False):
        height, width = image.pixels.shape[:2]
        if min(height, width) < minimum:
            small.append(f"{image.name}: {width}x{height} pixels, smaller than {minimum}x{minimum}")
        else:
            images.append(image)
    if not images:
        raise InputError(
            f"none of the photographs of scikit-image has {minimum} pixels a side; use a smaller --data.patch, or "
            "larger images by --data.root"
        )
    pairs = []
    for image in images:
        size = tuple(length // scale for length in image.pixels.shape[:2])
        pairs.append(ImagePair(image.name, scale, size, _rgb(image.pixels)))
    return PairSet(pairs, small, f"{digest(images)}, x{scale}")


def _least(scale: int) -> int:
    """Pixels that an image needs on a side: SSIM's window inside the widest border that is left out."""
    return 11 + 4 * scale


def _pixels(image: np.ndarray | Path) -> np.ndarray:
    return _rgb(read_image(image)) if isinstance(image, Path) else image


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) in 8 bits, whatever the file held."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
