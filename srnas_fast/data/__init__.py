"""Images and what is made of them: reading and writing files, the default photographs, patches, resized images."""

from srnas_fast.data.denoising import DenoisingData, PatchStream, centre_crop, loader, noisy_image
from srnas_fast.data.folder import ImageSet, NamedImage, digest, find_split, load_images, split_for_search
from srnas_fast.data.images import FORMATS, find_images, read_image, read_with_alpha, write_image
from srnas_fast.data.layouts import BENCHMARKS, PairPath, benchmark_paths, training_paths
from srnas_fast.data.photographs import photographs
from srnas_fast.data.resize import resize
from srnas_fast.data.sources import images_for
from srnas_fast.data.super_resolution import (
    ImagePair,
    PairSet,
    PairStream,
    SuperResolutionData,
    benchmark_sets,
    load_pairs,
    pairs_for,
)

__all__ = [
    "BENCHMARKS",
    "FORMATS",
    "DenoisingData",
    "ImagePair",
    "ImageSet",
    "NamedImage",
    "PairPath",
    "PairSet",
    "PairStream",
    "PatchStream",
    "SuperResolutionData",
    "benchmark_paths",
    "benchmark_sets",
    "centre_crop",
    "digest",
    "find_images",
    "find_split",
    "images_for",
    "load_images",
    "load_pairs",
    "loader",
    "noisy_image",
    "pairs_for",
    "photographs",
    "read_image",
    "read_with_alpha",
    "resize",
    "split_for_search",
    "training_paths",
    "write_image",
]
