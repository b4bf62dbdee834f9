"""``restore``: a user's own images through a trained network."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from srnas_fast.data import FORMATS, find_images, read_with_alpha, write_image
from srnas_fast.errors import InputError
from srnas_fast.report import print_skipped
from srnas_fast.search.run import choose_device
from srnas_fast.train.checkpoint import load_network
from srnas_fast.train.tiles import restore_tiled

# Pixels of mirror image around what the network sees: the SSIM in its loss hardly looks at the outermost pixels of a
# patch, so without it a line along the borders stays noisy.
MIRROR = 8


def restore_pixels(network: nn.Module, pixels: np.ndarray, device: torch.device, tile: int = 512) -> np.ndarray:
    """One image through the network: (H, W, C) on the [0, 255] scale in and out, channel by channel, float32."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels.astype(np.float32) / 255, [(MIRROR, MIRROR), (MIRROR, MIRROR), (0, 0)], mode="reflect")
    x = torch.from_numpy(padded).permute(2, 0, 1)[:, None]
    planes = [restore_tiled(network, plane[None].to(device), tile)[0].cpu() for plane in x]
    restored = torch.cat(planes).permute(1, 2, 0).numpy() * 255
    return restored[MIRROR : MIRROR + height, MIRROR : MIRROR + width]


def restore(
    run: str,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str = "restored",
    tile: int = 512,
    device: str = "auto",
) -> list[str]:
    """Restore images with a trained network and write them, 8 bits a channel, under the same names.

    PNG and TIFF keep their format; the others become PNG, which adds no loss.

    Gray and colour images of any size; colour channel by channel, since the network is a gray one; transparency is
    kept. Images that cannot be read are named, skipped and counted.

    Args:
        run: folder of a training, or its checkpoint.pt.
        images: image files, and folders of them.
        out: folder for the results; must not be the one the images come from.
        tile: height and width in pixels in which large images are cut, 0 for never; the result is the same.
        device: auto, cpu or cuda.

    Returns:
        The files written.

    Raises:
        InputError: a checkpoint or an image folder that cannot be used; no image could be read; a result would
            overwrite an image it was made from, or another result.
        OSError: the folder cannot be written.
    """
    images = [images] if isinstance(images, str | os.PathLike) else images
    if not images:
        raise InputError("no images to restore; give image files or folders of them")
    trained, target = load_network(run), choose_device(device)
    trained.network.to(target)
    jobs: dict[Path, Path] = {}
    for root in map(Path, images):
        for path in find_images(root):
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            result = Path(out) / (
                name if FORMATS.get(path.suffix.lower()) in ("PNG", "TIFF") else name.with_suffix(".png")
            )
            if result.resolve() == path.resolve():
                raise InputError(f"{result} would overwrite the image it is made from; choose another --out")
            if result in jobs:
                raise InputError(f"{path} and {jobs[result]} would both become {result}; restore them one by one")
            jobs[result] = path
    written, skipped = [], []
    for result, path in jobs.items():
        try:
            pixels, alpha = read_with_alpha(path)
        except InputError as error:
            skipped.append(str(error))
            continue
        write_image(result, restore_pixels(trained.network, pixels, target, tile), alpha)
        print(f"{path} -> {result}")
        written.append(str(result))
    print_skipped(skipped)
    if not written:
        raise InputError(f"none of the {len(skipped)} images could be read")
    return written
