"""Where the image pairs of super-resolution lie: the folders of EDSR, of BasicSR, of BSDS500, and plain ones."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from srnas_fast.data.images import FORMATS, find_images
from srnas_fast.errors import InputError

BENCHMARKS = {  # as in the papers: the folders' names in small letters
    "Set5": ("set5",),
    "Set14": ("set14",),
    "B100": ("b100", "bsd100", "bsds100"),
    "Urban100": ("urban100",),
    "Manga109": ("manga109",),
}
_TRAINING = ("DIV2K_train_HR", "Flickr2K_HR", "DF2K_train_HR")
_ABOVE_TRAINING = ("", "DIV2K", "Flickr2K", "DF2K")
_BENCHMARK = ("HR", "GTmod12")
_BSDS500 = ("", "images", "data/images", "BSDS500/data/images")
_LOOKED_FOR = (
    f"{', '.join(_TRAINING)} (or those with _sub) in it or in its {', '.join(filter(None, _ABOVE_TRAINING))}; "
    f"{' or '.join(_BENCHMARK)} in it; BSDS500's train beside val or test; images at any depth"
)


class PairPath(NamedTuple):
    """The files of one image; ``name`` is the same wherever the root is, ``lr`` is None where there is no such file."""

    name: str
    hr: Path
    lr: Path | None


def training_paths(roots: list[str], scale: int) -> list[PairPath]:
    """Find the high-resolution images below the roots to learn from, and the low-resolution ones where there are any.

    Of each root, the first of these that is there:

    1. images in the root itself: it is a folder of high-resolution images, or one image;
    2. ``DIV2K_train_HR``, ``Flickr2K_HR``, ``DF2K_train_HR`` (all there are), in it or in its ``DIV2K``,
       ``Flickr2K``, ``DF2K``; of each, BasicSR's ``_sub`` (pieces of the images) before the whole images. Of DIV2K
       the images 1 to 800: the others are for validation;
    3. ``HR`` (EDSR's benchmarks) or ``GTmod12`` (BasicSR's);
    4. BSDS500's ``train``, and never its ``val``, which is the test set B100;
    5. images at any depth.

    The low-resolution images of ``...HR`` are looked for in ``...LR_bicubic/X2`` beside it, those of ``...HR_sub`` in
    ``...LR_bicubic/X2_sub`` and those of ``GTmod12`` in ``LRbicx2`` (for a scale of 2), under the same name with or
    without ``x2`` at its end.

    Raises:
        InputError: a root does not exist, or holds none of these, or of DIV2K only images for validation.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("DIV2K_train_HR/0001.png", "DIV2K_train_HR/0801.png", "DIV2K_train_LR_bicubic/X2/0001x2.png"):
    ...     (root / name).parent.mkdir(parents=True, exist_ok=True)
    ...     (root / name).touch()
    >>> [(pair.name, pair.lr.name) for pair in training_paths([str(root)], 2)]
    [('0001.png', '0001x2.png')]
    """
    folders = [folder for root in roots for folder in _training_folders(_existing(root))]
    found = []
    for folder in folders:
        pairs = _pairs(folder, scale)
        if folder.name.startswith("DIV2K_train"):
            pairs = [pair for pair in pairs if not re.match(r"0(8(?!00)|9)\d\d", pair.name)]
            if not pairs:
                raise InputError(f"{folder} has none of the images 1 to 800 of DIV2K; the others are for validation")
        found += [pair._replace(name=f"{folder.name}/{pair.name}") if len(folders) > 1 else pair for pair in pairs]
    return found


def benchmark_paths(root: str | os.PathLike, scale: int) -> dict[str, list[PairPath]]:
    """Find the test sets below a folder: Set5, Set14, B100, Urban100 and Manga109, in this order.

    A set is a folder of its name (``BENCHMARKS``, in any case; for B100 also the ``val`` of BSDS500): ``root`` itself,
    in ``root`` or one folder deeper, such as EDSR's ``benchmark``. Its high-resolution images lie in it, in its ``HR``
    or in its ``GTmod12``; the low-resolution ones as for :func:`training_paths`. Where there is none of the sets, the
    images of the root are one set of the folder's name.

    Raises:
        InputError: the root does not exist, or there is none of the sets and no other image.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("benchmark/Set5/HR/baby.png", "benchmark/Set5/LR_bicubic/X4/babyx4.png", "bsd100/1.png"):
    ...     (root / name).parent.mkdir(parents=True, exist_ok=True)
    ...     (root / name).touch()
    >>> {name: [(pair.name, pair.lr and pair.lr.name) for pair in pairs]
    ...     for name, pairs in benchmark_paths(root, 4).items()}
    {'Set5': [('baby.png', 'babyx4.png')], 'B100': [('1.png', None)]}
    """
    root = _existing(root)
    near = _subfolders(root)
    candidates = [root, *near, *(below for folder in near for below in _subfolders(folder))]
    found = {}
    for benchmark, names in BENCHMARKS.items():
        named = [_holding(folder) for folder in candidates if folder.name.lower() in names]
        if benchmark == "B100":
            bsds = [folder for folder in candidates if folder.name.lower() in ("bsds500", "bsd500", "bsr")]
            vals = [folder / below / "val" for folder in bsds for below in _BSDS500]
            named += [folder for folder in vals if _has_images(folder)]
        folder = next(filter(None, named), None)
        if folder is not None:
            found[benchmark] = _pairs(folder, scale)
    if found:
        return found
    sought = f"the test sets {', '.join(BENCHMARKS)} in it or one folder deeper; images at any depth"
    folder = _holding(root) or _images_at_any_depth(root, sought)
    return {root.name: _pairs(folder, scale)}


def _training_folders(root: Path) -> list[Path]:
    if root.is_file() or _has_images(root):
        return [root]
    found = []
    for name in _TRAINING:
        places = [root / above / f"{name}{sub}" for sub in ("_sub", "") for above in _ABOVE_TRAINING]
        found += [place for place in places if place.is_dir()][:1]
    if found:
        return found
    benchmark = _holding(root)
    if benchmark is not None:
        return [benchmark]
    for base in (root / below for below in _BSDS500):
        if (base / "train").is_dir() and any((base / other).is_dir() for other in ("val", "test")):
            return [base / "train"]
    return [_images_at_any_depth(root, _LOOKED_FOR)]


def _images_at_any_depth(root: Path, sought: str) -> Path:
    try:
        paths = [path.relative_to(root) for path in find_images(root)] if root.is_dir() else []
    except InputError as error:
        raise InputError(f"{error}; looked for {sought}") from None
    for path in paths:  # to learn from these as if they were whole images would go unnoticed
        if re.search(r"(^|[_/])LR[^/]*/|_LR$", path.with_suffix("").as_posix()):
            raise InputError(
                f"{root} holds low-resolution images ({path}) in a tree that is not known; looked for {sought}. "
                f"Give the folder of the high-resolution images itself"
            )
    return root


def _holding(folder: Path) -> Path | None:
    """The folder of high-resolution images of a benchmark's folder."""
    return next((place for place in (folder, *(folder / name for name in _BENCHMARK)) if _has_images(place)), None)


def _pairs(folder: Path, scale: int) -> list[PairPath]:
    high, low = _by_name(folder), {}
    whole = re.fullmatch(r"(.*)HR(_sub)?", folder.name)
    beside = folder.parent / (f"{whole[1]}LR_bicubic/X{scale}{whole[2] or ''}" if whole else f"LRbicx{scale}")
    if (whole or folder.name.startswith("GTmod")) and _has_images(beside):
        low = _by_name(beside)
        low = {Path(name).with_suffix("").as_posix(): path for name, path in low.items()}
    pairs = []
    for name, path in high.items():
        stem = Path(name).with_suffix("").as_posix()
        pairs.append(PairPath(name, path, low.get(f"{stem}x{scale}") or low.get(stem)))
    return pairs


def _by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder by their paths below it; one image by its name."""
    return {path.name if path == folder else path.relative_to(folder).as_posix(): path for path in find_images(folder)}


def _existing(root: str | os.PathLike) -> Path:
    root = Path(os.path.abspath(root))  # the name of "." counts too
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; give a folder of images or one image")
    return root


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in FORMATS and path.is_file() for path in _entries(folder))


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:  # not a folder, or one that may not be looked into
        return []
