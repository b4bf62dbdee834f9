"""The images of a folder or benchmark, read once, with those that cannot be used named and counted."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srnas_fast.data.images import FORMATS, find_images, read_image
from srnas_fast.data.randomness import generator
from srnas_fast.errors import InputError


@dataclass
class NamedImage:
    """An image in memory.

    Args:
        name: path below the folder it was read from, such as ``100075.jpg``: the same wherever the folder is.
        pixels: (H, W, C) on the [0, 255] scale, uint8 or float32.
    """

    name: str
    pixels: np.ndarray


@dataclass
class ImageSet:
    """The usable images of a folder, and the others.

    Args:
        images: in the order of their names.
        skipped: one line "path: reason" for each image left out.
    """

    images: list[NamedImage]
    skipped: list[str] = field(default_factory=list)


def digest(images: Sequence[NamedImage]) -> str:
    """Return a short text that changes when a name or a pixel does: what a resumed run compares.

    >>> images = [NamedImage("a", np.zeros((2, 2, 1), np.uint8)), NamedImage("a", np.ones((2, 2, 1), np.uint8))]
    >>> digest(images[:1]) == digest(images[:1]), digest(images[:1]) == digest(images[1:])
    (True, False)
    """
    total = hashlib.sha256()
    for image in images:
        total.update(f"{image.name} {image.pixels.shape} {image.pixels.dtype} ".encode())
        total.update(np.ascontiguousarray(image.pixels))
    return f"{len(images)} images, {total.hexdigest()[:16]}"


def load_images(root: str | os.PathLike | Sequence[str | os.PathLike], gray: bool = True, minimum: int = 1) -> ImageSet:
    """Read every image below ``root`` once; unreadable and small ones are skipped and listed with the reason.

    Args:
        root: a folder, one image, or several folders as ``find_split`` returns them (the names then start
            with the folder's).
        gray: luma only, C = 1; else C as in each file.
        minimum: images with fewer pixels than this in height or width are skipped.

    Raises:
        InputError: a folder is missing or holds no images, or none of them can be used.

    >>> import tempfile
    >>> from srnas_fast.data import write_image
    >>> folder = Path(tempfile.mkdtemp())
    >>> for side in (8, 64):
    ...     write_image(folder / f"side{side}.png", np.zeros((side, side, 1)))
    >>> found = load_images(folder, minimum=64)
    >>> [image.name for image in found.images], [line.split("/")[-1] for line in found.skipped]
    (['side64.png'], ['side8.png: 8x8 pixels, smaller than 64x64'])
    """
    folders = [Path(root)] if isinstance(root, str | os.PathLike) else [Path(folder) for folder in root]
    images, unreadable, small = [], [], []
    for folder in folders:
        for path in find_images(folder):
            try:
                pixels = read_image(path, gray)
            except InputError as error:
                unreadable.append(str(error))
                continue
            height, width = pixels.shape[:2]
            if min(height, width) < minimum:
                small.append((width, height, path))
                continue
            name = path.name if path == folder else path.relative_to(folder).as_posix()
            images.append(NamedImage(name if len(folders) == 1 else f"{folder.name}/{name}", pixels))
    if not images:
        raise InputError(_nothing_usable(folders, unreadable, small, minimum))
    too_small = [f"{path}: {width}x{height} pixels, smaller than {minimum}x{minimum}" for width, height, path in small]
    return ImageSet(sorted(images, key=lambda image: image.name), sorted(unreadable + too_small))


def find_split(root: str | os.PathLike, split: str) -> list[Path]:
    """Return the folders under ``root`` to read for "train" or for "test".

    A BSD500 root (folders ``train``, ``val``, ``test`` in it, or in ``images`` or ``BSDS500/data/images``
    below as in the published archive) gives train + val (300 images) and test (200), as in HiNAS (arXiv
    1909.08228). Any other folder, or one image, serves both.

    Raises:
        InputError: such a root lacks the folder asked for.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> find_split(root, "train") == [root]
    True
    >>> for name in ("train", "val", "test"):
    ...     (root / name).mkdir()
    >>> [folder.name for folder in find_split(root, "train")]
    ['train', 'val']
    """
    wanted = {"train": ("train", "val"), "test": ("test",)}[split]
    root = Path(root)
    for below in ("", "images", "data/images", "BSDS500/data/images"):
        base = root / below
        if not any((base / name).is_dir() for name in ("train", "test")):
            continue
        if any(path.suffix.lower() in FORMATS for path in base.iterdir()):
            continue  # a plain folder of images that happens to have a subfolder of that name
        if not (base / split).is_dir():
            raise InputError(
                f"{base}: no folder '{split}' beside "
                f"{', '.join(sorted(path.name for path in base.iterdir() if path.is_dir()))}; "
                f"add it, or give a plain folder of images"
            )
        return [base / name for name in wanted if (base / name).is_dir()]
    return [root]


def split_for_search(
    images: Sequence[NamedImage], seed: int, architecture_share: float = 1 / 2
) -> tuple[list[NamedImage], list[NamedImage], list[NamedImage]]:
    """Divide images into three parts: to train weights on, to train the architecture on, and to validate on.

    One image in fifty is for validation; of the others, ``architecture_share`` for the architecture. So the default is
    HiNAS's 147 : 147 : 6. Each part has at least one image. The division depends on the names and the seed alone, not
    on the order of ``images``.

    Raises:
        InputError: there are fewer than 3 images.

    >>> images = [NamedImage(f"{i:03}", np.zeros((1, 1, 1), np.uint8)) for i in range(300)]
    >>> [len(part) for part in split_for_search(images, seed=0)]
    [147, 147, 6]
    """
    if len(images) < 3:
        raise InputError(
            f"at least 3 images are needed (for weights, architecture and validation), "
            f"found {len(images)}; add images to the folder"
        )
    ordered = sorted(images, key=lambda image: image.name)
    shuffled = [ordered[i] for i in generator(int(seed), "split for search").permutation(len(ordered))]
    validation = max(1, round(len(shuffled) / 50))
    middle = validation + max(1, int((len(shuffled) - validation) * architecture_share))
    return shuffled[middle:], shuffled[validation:middle], shuffled[:validation]


def _nothing_usable(folders: list[Path], unreadable: list[str], small: list[tuple], minimum: int) -> str:
    """Say why no image is left, and what to do."""
    where = ", ".join(map(str, folders))
    if small:
        width, height, path = max(small, key=lambda entry: (min(entry[:2]), max(entry[:2])))
        largest = f"(largest: {path.name} {width}x{height}); use a smaller --data.patch or larger images"
        patch = f"smaller than the {minimum}-pixel patch"
        if not unreadable and len(small) == 1:
            return f"the only image in {where} is {patch} {largest}"
        if not unreadable:
            return f"all {len(small)} images in {where} are {patch} {largest}"
        return (
            f"no usable image in {where}: {len(unreadable)} cannot be read (first: {unreadable[0]}), "
            f"{len(small)} {patch} {largest}"
        )
    return f"none of the {len(unreadable)} images in {where} can be read; first: {unreadable[0]}"
