"""What a search and a training do with images: the same steps for every task, each in the task's own way."""

import math
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from srnas_fast.data import (
    DenoisingData,
    ImagePair,
    NamedImage,
    PairStream,
    PatchStream,
    SuperResolutionData,
    centre_crop,
    digest,
    images_for,
    noisy_image,
    pairs_for,
)
from srnas_fast.errors import InputError
from srnas_fast.metrics import psnr, ssim, super_resolution_quality

SSIM_WINDOW = 11  # pixels: an image with fewer on a side has no SSIM


class Task(Protocol):
    """A task with its settings: ``Task(data, size)`` of the data's and of the supernet's or network's configuration.

    ``architecture_share``: of the images that a search learns from, those from which the architecture does.
    ``border``: pixels at each side of a patch that a reward leaves out.
    """

    architecture_share: float
    border: int

    def __init__(self, data: Any, size: Any): ...

    def images(self, split: str) -> tuple[list[Any], list[str], str]:
        """The images of a split ("search" or "train"), each with a ``name``; why others are left out; a digest."""

    def steps(self, images: int) -> int:
        """Steps in an epoch over so many images."""

    def stream(self, images: list[Any], seed: int, name: str) -> Dataset:
        """Training patches (input, target): a function of seed, name and number alone, as ``data.loader`` takes it."""

    def pairs(self, images: list[Any], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(input, target) to measure on: (H, W, C) on the [0, 255] scale."""

    def quality(self, restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        """PSNR in dB and SSIM of (H, W, C) on the [0, 255] scale, as the task's papers give them."""

    def score(self, psnr: float, ssim: float) -> float:
        """One number of both: of all genotypes of a search the one with the highest is kept."""


class Denoising:
    """Gray images with Gaussian noise; measured unrounded, and by HiNAS's score SSIM + PSNR / 100.

    >>> images, skipped, _ = Denoising(DenoisingData()).images("train")
    >>> noisy, clean = Denoising(DenoisingData(validation_crop=20)).pairs(images[:1], seed=0)[0]
    >>> noisy.shape, clean.shape
    ((20, 20, 1), (20, 20, 1))
    """

    architecture_share = 1 / 2  # HiNAS: 147 of 294
    border = 0

    def __init__(self, data: DenoisingData, size: Any = None):
        self.data = data

    def images(self, split: str) -> tuple[list[NamedImage], list[str], str]:
        found = images_for(self.data.root, split, minimum=max(self.data.patch, SSIM_WINDOW))
        return found.images, found.skipped, digest(found.images)

    def steps(self, images: int) -> int:
        return math.ceil(images / self.data.batch)

    def stream(self, images: list[NamedImage], seed: int, name: str) -> PatchStream:
        return PatchStream(images, self.data, seed, name)

    def pairs(self, images: list[NamedImage], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Centre crops; the noise levels take turns."""
        pairs = []
        for i, image in enumerate(images):
            clean = centre_crop(image.pixels, self.data.validation_crop)
            sigma = self.data.sigma[i % len(self.data.sigma)]
            pairs.append((noisy_image(clean, sigma, seed, image.name), clean))
        return pairs

    def quality(self, restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        return psnr(restored, target), ssim(restored, target)

    def score(self, psnr: float, ssim: float) -> float:
        return ssim + psnr / 100


class SuperResolution:
    """Images to enlarge, of the network's scale; measured on the luma inside a border of the scale, by PSNR.

    Raises:
        InputError: patches or validation crops smaller than the network takes.

    >>> from srnas_fast.spaces.dlsr import NetworkConfig
    >>> task = SuperResolution(SuperResolutionData(validation_crop=60), NetworkConfig(scale=4))
    >>> lr, hr = task.pairs(task.images("train")[0][:1], seed=0)[0]
    >>> lr.shape, hr.shape
    ((15, 15, 3), (60, 60, 3))
    """

    architecture_share = 450 / 3450  # DLSR: the last 450 images of DF2K

    def __init__(self, data: SuperResolutionData, size: Any):
        self.data, self.scale, least = data, size.scale, size.scale * size.smallest
        self.border = self.scale + 6  # as EDSR and HNAS measure training patches
        if data.patch < least:
            raise InputError(
                f"data.patch is {data.patch}; give {least} or more, which this network needs at x{size.scale}"
            )
        if 0 < data.validation_crop < least:
            raise InputError(
                f"data.validation_crop is {data.validation_crop}; give {least} or more, which this network needs at "
                f"x{size.scale}, or 0 for no crop"
            )

    def images(self, split: str) -> tuple[list[ImagePair], list[str], str]:
        found = pairs_for(self.data, self.scale, split)
        return found.images, found.skipped, found.digest

    def steps(self, images: int) -> int:
        return self.data.steps(images)

    def stream(self, images: list[ImagePair], seed: int, name: str) -> PairStream:
        return PairStream(images, self.data, seed, name)

    def pairs(self, images: list[ImagePair], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [image.centre(self.data.validation_crop) for image in images]

    def quality(self, restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        return super_resolution_quality(restored, target, border=self.scale)

    def score(self, psnr: float, ssim: float) -> float:
        return psnr
