"""Images side by side: what went in, what came out, what it should be."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from srnas_fast.errors import InputError
from srnas_fast.files import replacing

SMALL = 160  # images with a longer side under this are enlarged by a whole factor, pixels
LARGE = 512  # of images with a longer side the middle is shown, pixels
GAP = 8
LINE = 20
INK, QUIET, PAPER = "#1a1a1a", "#5f5f5f", "#ffffff"

Picture = np.ndarray | tuple[np.ndarray, str]


def draw_comparison(file: str | os.PathLike, rows: Sequence[tuple[str, Mapping[str, Picture]]]) -> None:
    """One PNG with a row per image and a column per version of it, every pixel shown as a square.

    Images show 1:1; small ones grow by a whole factor, of large ones the middle 512 x 512 pixels are shown.

    Args:
        file: the picture to write; replaced whole.
        rows: (name, versions) with versions as column title -> (H, W, 1 or 3) array on the [0, 255] scale,
            clipped to it, or -> (array, caption), e.g. ``(restored, "26.41 dB")``. A row may lack a column.

    Raises:
        InputError: there is no row or no version, or an array is not (H, W, 1) or (H, W, 3), or holds NaN.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "comparison.png"
    >>> clean = np.full((200, 300, 1), 128.0)
    >>> draw_comparison(file, [("boat", {"clean": clean, "noisy": (clean + 300, "6.0 dB")})])
    >>> Image.open(file).width > 600
    True
    """
    titles = list(dict.fromkeys(title for _, versions in rows for title in versions))
    if not titles:
        raise InputError("a comparison of no images; give at least one row with one version")
    cells = [
        {title: _cell(f"{name}, {title}", picture) for title, picture in versions.items()} for name, versions in rows
    ]
    font, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    widths = [max(row[title][0].width for row in cells if title in row) for title in titles]
    # A title or caption wider than its images must not run into the next column.
    for column, title in enumerate(titles):
        texts = [bold.getlength(title)] + [font.getlength(row[title][1]) for row in cells if title in row]
        widths[column] = max(widths[column], int(max(texts)) + 1)
    heights = [max((image.height for image, _ in row.values()), default=0) for row in cells]
    name_width = int(max(bold.getlength(name) for name, _ in rows)) + 1
    lefts = [2 * GAP + name_width + sum(widths[:c]) + c * GAP for c in range(len(titles))]
    captions = [LINE if any(caption for _, caption in row.values()) else 0 for row in cells]

    width = lefts[-1] + widths[-1] + GAP
    height = 2 * GAP + LINE + sum(heights) + sum(captions) + len(rows) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, GAP), title, INK, bold)
    top = GAP + LINE + GAP
    for (name, _), row, row_height, caption_height in zip(rows, cells, heights, captions, strict=True):
        draw.text((GAP, top), name, INK, bold)
        for left, title in zip(lefts, titles, strict=True):
            if title in row:
                image, caption = row[title]
                sheet.paste(image, (left, top))
                draw.text((left, top + image.height + 2), caption, QUIET, font)
        top += row_height + caption_height + GAP
    with replacing(file) as temporary:
        sheet.save(temporary, format="PNG")


def _cell(name: str, picture: Picture) -> tuple[Image.Image, str]:
    """The image as it is pasted, and its caption."""
    array, caption = picture if isinstance(picture, tuple) else (picture, "")
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise InputError(f"{name}: an image of shape {array.shape}; give (H, W, C) with C = 1 or 3")
    if np.isnan(array).any():
        raise InputError(f"{name}: the image holds NaN; give numbers on the [0, 255] scale")
    top, left = (max(0, (side - LARGE) // 2) for side in array.shape[:2])
    array = array[top : top + LARGE, left : left + LARGE]
    pixels = np.rint(array.astype(np.float64).clip(0, 255)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    factor = max(1, -(-SMALL // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), caption
