"""Images and what is made of them: reading and writing files, the default photographs, denoising patches."""

from srnas_fast.data.denoising import DenoisingData, PatchStream, centre_crop, loader, noisy_image
from srnas_fast.data.folder import ImageSet, NamedImage, digest, find_split, load_images, split_for_search
from srnas_fast.data.images import FORMATS, find_images, read_image, read_with_alpha, write_image
from srnas_fast.data.photographs import photographs
from srnas_fast.data.sources import images_for

__all__ = [
    "FORMATS",
    "DenoisingData",
    "ImageSet",
    "NamedImage",
    "PatchStream",
    "centre_crop",
    "digest",
    "find_images",
    "find_split",
    "images_for",
    "load_images",
    "loader",
    "noisy_image",
    "photographs",
    "read_image",
    "read_with_alpha",
    "split_for_search",
    "write_image",
]
