"""One image file to a pixel array and back; finding the image files of a folder.

Pixels are (H, W, C) with C = 1 or 3 on the [0, 255] scale: uint8, or float32 where the file holds 16 bits.
"""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffFileError

from srnas_fast.errors import InputError
from srnas_fast.files import replacing

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
# What a restored image must not lose: WebP is lossy by default and JPEG halves the colour resolution.
_SAVING = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}


def find_images(root: str | os.PathLike) -> list[Path]:
    """List the image files below a folder, at any depth, sorted; a single file is accepted as it is.

    Files are chosen by suffix (``FORMATS``, in any case). Hidden files and folders are left out, links are
    followed.

    Raises:
        InputError: ``root`` does not exist, cannot be listed, or holds no image.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
    ...     _ = (folder / name).write_bytes(b"")
    >>> [path.name for path in find_images(folder)]
    ['a.jpg', 'b.PNG']
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; give a folder of images or one image")

    def refuse(error: OSError):
        raise InputError(f"{error.filename}: this folder cannot be listed ({error.strerror})") from error

    found, visited = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        visited.add(os.path.realpath(folder))  # a link back up would otherwise be walked for ever
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in visited
        ]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in FORMATS]
    if not found:
        wanted = ", ".join(f"*{suffix}" for suffix in FORMATS)
        raise InputError(f"{root}: no images in this folder; looked for {wanted} in it and all its subfolders")
    return sorted(found)


def read_image(path: str | os.PathLike, gray: bool = False) -> np.ndarray:
    """Read an image as (H, W, C) pixels on the [0, 255] scale; transparency is dropped.

    C is what the file holds: 1 for gray (1-bit ones too), 3 for colour (palettes and CMYK too). 8-bit files
    give uint8; 16-bit gray files and 16-bit colour TIFF give float32 (value * 255 / 65535); 16-bit colour PNG
    loses its lower 8 bits. The EXIF orientation is applied.

    Args:
        path: a PNG, JPEG, BMP, TIFF or WebP file; the content decides, not the suffix.
        gray: turn colour into luma, 0.2989 R + 0.5870 G + 0.1140 B as MATLAB's rgb2gray, rounded for uint8.

    Raises:
        InputError: the file is missing, empty, truncated or otherwise unreadable; the message starts with the
            path.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "red.png"
    >>> write_image(path, np.full((2, 3, 3), (255, 0, 0)))
    >>> read_image(path).shape, read_image(path, gray=True)[0, 0]
    ((2, 3, 3), array([76], dtype=uint8))
    """
    pixels, _ = read_with_alpha(path)
    return _luma(pixels) if gray else pixels


def read_with_alpha(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image as ``read_image`` does, and its transparency: uint8 (H, W), or None where it has none.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "glass.png"
    >>> write_image(path, np.full((2, 3, 1), 200), alpha=np.full((2, 3), 128))
    >>> pixels, alpha = read_with_alpha(path)
    >>> pixels.shape, alpha[0]
    ((2, 3, 1), array([128, 128, 128], dtype=uint8))
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError("the file is empty (0 bytes)")
        deep = _deep_colour_tiff(path)
        return deep if deep is not None else _decode(path)
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not a readable PNG, JPEG, BMP, TIFF or WebP image") from error
    except Exception as error:  # decoders meet damaged files with all sorts of exceptions
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: {' '.join(reason.split())}") from error


def write_image(path: str | os.PathLike, pixels: np.ndarray, alpha: np.ndarray | None = None) -> None:
    """Write (H, W, C) pixels of [0, 255], rounded and clipped to 8 bits; the suffix gives the format.

    WebP is written without loss, JPEG at quality 95 with full colour resolution. An older file at ``path``
    stays as it is until the new one is whole.

    Args:
        path: ends in one of ``FORMATS``.
        pixels: (H, W, 1) gray or (H, W, 3) colour, any number type.
        alpha: (H, W) transparency on the [0, 255] scale, for PNG, TIFF and WebP.

    Raises:
        InputError: the suffix names no supported format, or the format keeps no transparency.
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: cannot write '{path.suffix}' images; use one of {', '.join(FORMATS)}")
    if alpha is not None:
        if kind in ("JPEG", "BMP"):
            raise InputError(f"{path}: {kind} keeps no transparency; use .png, .tif or .webp")
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    image = Image.fromarray(rounded[..., 0] if rounded.shape[2] == 1 else rounded)
    with replacing(path) as temporary:
        image.save(temporary, format=kind, **_SAVING.get(kind, {}))


def _luma(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[2] == 1:
        return pixels
    if pixels.dtype == np.uint8:  # whole numbers: exact, with halves rounded up as MATLAB does
        return ((pixels.astype(np.uint32) @ np.array([[2989], [5870], [1140]], np.uint32) + 5000) // 10000).astype(
            np.uint8
        )
    return pixels @ np.array([[0.2989], [0.5870], [0.1140]], np.float32)


def _decode(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
        kind, mode = image.format, image.mode
        # Pillow has no 16-bit gray with alpha and calls such a PNG colour; its raw mode still tells.
        gray = mode in ("1", "L", "LA", "La") or any("LA;16B" in str(tile) for tile in image.tile)
        white_is_zero = kind == "TIFF" and image.tag_v2.get(262) == PHOTOMETRIC.MINISWHITE
        image = ImageOps.exif_transpose(image)
        if mode.startswith("I;16") or (mode == "I" and kind == "PNG"):
            samples = np.asarray(image).astype(np.float32)
            samples = 65535 - samples if white_is_zero else samples  # Pillow inverts 8-bit gray only
            return (samples * np.float32(255 / 65535))[..., None], None
        if mode in ("I", "F"):
            raise InputError("32-bit pixels have no agreed range; convert the image to 8 or 16 bits")
        if image.has_transparency_data:
            samples = np.array(image.convert("RGBA" if mode not in ("1", "L", "LA", "La") else "LA"))
            return np.ascontiguousarray(samples[..., : 1 if gray else 3]), samples[..., -1].copy()
        samples = np.array(image.convert("L" if gray else "RGB"))
        return samples.reshape(*samples.shape[:2], -1), None


def _deep_colour_tiff(path: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Read a TIFF of several 16-bit samples a pixel, which Pillow would cut to 8 bits or refuse.

    None for every other file, also where tifffile lacks the codec: Pillow then has the last word.
    """
    with open(path, "rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
    try:
        with TiffFile(path) as tiff:
            page = tiff.pages[0]
            colours = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1}.get(page.photometric)
            if page.dtype != np.uint16 or page.samplesperpixel < 2 or colours is None:
                return None
            samples = page.asarray()
    except (TiffFileError, ValueError, OSError, struct.error, zlib.error):
        return None
    samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
    orientation = page.tags.valueof("Orientation", 1)
    has_alpha = any(kind in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA) for kind in page.extrasamples[:1])
    samples = _upright(samples, orientation).astype(np.float32) * np.float32(255 / 65535)
    pixels = np.ascontiguousarray(samples[..., :colours])
    alpha = np.rint(samples[..., colours]).astype(np.uint8) if has_alpha else None
    return (255 - pixels if page.photometric == PHOTOMETRIC.MINISWHITE else pixels), alpha


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the orientation of TIFF tag 274 as Pillow does for what it reads."""
    if orientation in (5, 6, 7, 8):
        pixels, orientation = pixels.swapaxes(0, 1), {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    if orientation in (3, 4):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3) else pixels
