"""Noisy and clean patches to learn from, and noisy whole images to measure on."""

import math
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from srnas_fast.data.folder import NamedImage
from srnas_fast.data.randomness import generator
from srnas_fast.errors import InputError, require_whole


@dataclass
class DenoisingData:
    """Where the images of a denoising search or training come from, and how patches are made of them.

    Args:
        root: folder of images (PNG, JPEG, BMP, TIFF, WebP; at any depth) or a BSD500 root; without it, the
            photographs that come with scikit-image.
        patch: height and width of a training patch, in pixels.
        batch: patches in one step.
        sigma: standard deviations of the Gaussian noise, on the [0, 255] scale; each patch draws one of them.
        rescale: resize half of the patches by a random factor from 0.8 to 1.2.
        workers: processes that prepare patches beside the training; 0 prepares them in the training process.
            The patches are the same whatever the number.
        validation_crop: height and width of the centre of each validation image that is used, in pixels; 0
            uses the whole image.

    Raises:
        InputError: a value is out of its range.
    """

    root: str | None = None
    patch: int = 64
    batch: int = 6
    sigma: list[float] = field(default_factory=lambda: [30.0, 50.0, 70.0])
    rescale: bool = True
    workers: int = 0
    validation_crop: int = 256

    def __post_init__(self):
        require_whole(self, "data.", patch=1, batch=1, workers=0, validation_crop=0)
        if 0 < self.validation_crop < 11:
            raise InputError(f"data.validation_crop is {self.validation_crop}; SSIM needs 11 pixels, or 0 for no crop")
        if not self.sigma:
            raise InputError("data.sigma is empty; give one or more standard deviations, such as [30, 50, 70]")
        for sigma in self.sigma:
            if not (math.isfinite(sigma) and sigma >= 0):
                raise InputError(f"data.sigma holds {sigma}; give numbers from 0 up, on the [0, 255] scale")


class PatchStream(Dataset):
    """An endless row of training patches, each a pure function of the seed, the stream's name and its number.

    Patch ``n = step * batch + i`` is the i-th of its step. Item n is a pair (noisy, clean) of float32 tensors
    (C, patch, patch) on the [0, 1] scale, noise unclipped: an image drawn at random, a crop of it, with
    probability 1/2 rescaled by 0.8 to 1.2 (bicubic), rotated by a multiple of 90 degrees, mirrored or not,
    and Gaussian noise of a standard deviation drawn from ``data.sigma`` (HiNAS, arXiv 1909.08228).

    Args:
        images: (H, W, C) pixels on the [0, 255] scale, all with the same C.
        data: patch, sigma and rescale are used.
        seed: of the whole run.
        stream: a name, so that two streams of one run ("weights", "architecture") are independent.

    Raises:
        InputError: there is no image, or one is smaller than the patch.

    >>> image = NamedImage("flat", np.full((40, 50, 1), 51, np.uint8))
    >>> noisy, clean = PatchStream([image], DenoisingData(patch=32), seed=0, stream="weights")[1000]
    >>> noisy.shape, round(float(clean.mean()), 4)
    (torch.Size([1, 32, 32]), 0.2)
    """

    def __init__(self, images: Sequence[NamedImage], data: DenoisingData, seed: int, stream: str):
        if not images:
            raise InputError(f"no images to take patches from ({stream})")
        for image in images:
            height, width = image.pixels.shape[:2]
            if min(height, width) < data.patch:
                raise InputError(
                    f"{image.name} ({width}x{height}) is smaller than the {data.patch}-pixel patch; "
                    f"use a smaller --data.patch or larger images"
                )
        self.images, self.data, self.seed, self.stream = list(images), data, int(seed), stream

    def __getitem__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(self.seed, self.stream, int(n))
        pixels = self.images[random.integers(len(self.images))].pixels
        rescaled = self.data.rescale and random.random() < 0.5
        crop = (_rescaled_crop if rescaled else _crop)(pixels, self.data.patch, random)
        crop = np.rot90(crop, random.integers(4))
        crop = crop[:, ::-1] if random.random() < 0.5 else crop
        clean = np.ascontiguousarray(crop.transpose(2, 0, 1)) / np.float32(255)
        sigma = np.float32(self.data.sigma[random.integers(len(self.data.sigma))] / 255)
        noisy = clean + sigma * random.standard_normal(clean.shape, dtype=np.float32)
        return torch.from_numpy(noisy), torch.from_numpy(clean)


def loader(stream: PatchStream, first_step: int, last_step: int, batch: int, workers: int = 0) -> DataLoader:
    """Return the batches of the steps from ``first_step`` up to, not including, ``last_step``.

    One loader serves a whole run, across epochs, so that its workers start once. Batches depend neither on
    ``first_step`` nor on ``workers``: a resumed run sees what the interrupted one would have seen.

    >>> image = NamedImage("flat", np.full((8, 8, 1), 51, np.uint8))
    >>> stream = PatchStream([image], DenoisingData(patch=4), seed=0, stream="weights")
    >>> whole, resumed = list(loader(stream, 0, 5, batch=2)), list(loader(stream, 3, 5, batch=2))
    >>> len(whole), bool((whole[3][0] == resumed[0][0]).all())
    (5, True)
    """
    return DataLoader(
        stream,
        sampler=range(first_step * batch, last_step * batch),
        batch_size=batch,
        num_workers=workers,
        # Forked workers share the decoded images; other start methods would send each a copy.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=_leave_stopping_to_the_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each loader would draw from, and so move, the global generator
    )


def noisy_image(pixels: np.ndarray, sigma: float, seed: int, name: str) -> np.ndarray:
    """Return pixels with Gaussian noise added, float32 on the [0, 255] scale, unclipped.

    The noise is a pure function of seed, name and sigma (and the shape), so that every method is measured on
    the same noisy image.

    >>> flat = np.full((100, 100, 1), 128, np.uint8)
    >>> noisy = noisy_image(flat, 50, seed=0, name="flat.png")
    >>> noisy.dtype, bool(abs(noisy.std() - 50) < 1.5), bool(noisy.max() > 255)
    (dtype('float32'), True, True)
    """
    random = generator(int(seed), "evaluation", name, float(sigma))
    return pixels.astype(np.float32) + np.float32(sigma) * random.standard_normal(pixels.shape, dtype=np.float32)


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the central ``size`` x ``size`` pixels, or what there is of them; size 0 returns all.

    >>> centre_crop(np.arange(5).reshape(1, 5, 1), 3)[..., 0]
    array([[1, 2, 3]])
    """
    if size == 0:
        return pixels
    top, left = (max(0, (length - size) // 2) for length in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _crop(pixels: np.ndarray, patch: int, random: np.random.Generator) -> np.ndarray:
    top, left = (random.integers(length - patch + 1) for length in pixels.shape[:2])
    return pixels[top : top + patch, left : left + patch].astype(np.float32)


def _rescaled_crop(pixels: np.ndarray, patch: int, random: np.random.Generator) -> np.ndarray:
    """Return a crop of the image as if the whole of it had been resized by a factor from 0.8 to 1.2."""
    height, width = pixels.shape[:2]
    side = patch / random.uniform(max(0.8, patch / min(height, width)), 1.2)
    top, left = (random.uniform(0, max(0.0, length - side)) for length in (height, width))
    margin = 3  # pixels beyond the region that the bicubic filter reads: 2 / 0.8, rounded up
    y, x = max(0, int(top) - margin), max(0, int(left) - margin)
    region = pixels[y : math.ceil(top + side) + margin, x : math.ceil(left + side) + margin].astype(np.float32)
    box = (left - x, top - y, min(left - x + side, region.shape[1]), min(top - y + side, region.shape[0]))
    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize((patch, patch), Image.Resampling.BICUBIC, box)
        for channel in region.transpose(2, 0, 1)
    ]
    return np.stack(channels, axis=2).clip(0, 255)  # bicubic overshoots at edges


def _leave_stopping_to_the_parent(_worker: int) -> None:
    """Ctrl-C, or a job's SIGTERM, reach every process of the group: the parent saves and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
