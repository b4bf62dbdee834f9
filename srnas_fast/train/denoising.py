"""Denoising after the training: one image through a network, and networks beside a classical method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import nn

from srnas_fast.data import images_for, noisy_image
from srnas_fast.errors import InputError
from srnas_fast.metrics import count_parameters, multi_adds, psnr, ssim
from srnas_fast.report import draw_comparison, print_skipped, save_table, show_table
from srnas_fast.search.validation import SSIM_WINDOW
from srnas_fast.train.checkpoint import Trained
from srnas_fast.train.tiles import restore_tiled

COUNTED_AT = 64  # pixels: height and width of the input for which Multi-Adds are given
TILE = 512

# Pixels of mirror image around what the network sees: the SSIM in its loss hardly looks at the outermost pixels of a
# patch, so without it a line along the borders stays noisy.
MIRROR = 8


def restore_pixels(network: nn.Module, pixels: np.ndarray, device: torch.device, tile: int | None = None) -> np.ndarray:
    """One image through the network: (H, W, C) on the [0, 255] scale in and out, channel by channel, float32."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels.astype(np.float32) / 255, [(MIRROR, MIRROR), (MIRROR, MIRROR), (0, 0)], mode="reflect")
    x = torch.from_numpy(padded).permute(2, 0, 1)[:, None]
    tile = TILE if tile is None else tile
    planes = [restore_tiled(network, plane[None].to(device), tile)[0].cpu() for plane in x]
    restored = torch.cat(planes).permute(1, 2, 0).numpy() * 255
    return restored[MIRROR : MIRROR + height, MIRROR : MIRROR + width]


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """scikit-image's non-local means, told the noise level: (H, W, 1) on the [0, 255] scale in and out.

    Patches of 5 pixels, a search window of 13, h = 0.8 sigma, fast mode: the settings of scikit-image's own example
    for a known noise level. Source: Buades et al., A non-local algorithm for image denoising, CVPR 2005.
    """
    restored = denoise_nl_means(
        noisy[..., 0] / 255,
        patch_size=5,
        patch_distance=6,
        h=0.8 * sigma / 255,
        sigma=sigma / 255,
        fast_mode=True,
    )
    return restored[..., None] * 255


def evaluate_denoising(
    networks: Mapping[str, Trained],
    root: str | None,
    out: str | None,
    tile: int | None,
    device: torch.device,
    sigma: float | Sequence[float] = (),
    nlm: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What :func:`srnas_fast.train.evaluate` does with denoising networks, given by the names in the table.

    PSNR and SSIM are of gray images clipped to [0, 255], not rounded, without a border crop.
    """
    sigma = [sigma] if isinstance(sigma, int | float) else sigma
    sigma = list(dict.fromkeys(sigma)) or _training_noise(next(iter(networks.values())))
    for level in sigma:
        if not (math.isfinite(level) and level >= 0):
            raise InputError(f"sigma holds {level}; give numbers from 0 up, on the [0, 255] scale")
    found = images_for(root, "test", minimum=SSIM_WINDOW)
    print_skipped(found.skipped)

    rows: list[dict[str, Any]] = []
    pictures = []
    for level in sigma:
        for image in found.images:
            clean = image.pixels
            noisy = noisy_image(clean, level, seed, image.name)
            restored = {"noisy": noisy}
            if nlm:
                restored["non-local means"] = non_local_means(noisy, level)
            for name, the in networks.items():
                restored[name] = restore_pixels(the.network, noisy, device, tile)
            row = [
                {
                    "image": image.name,
                    "sigma": level,
                    "method": method,
                    "psnr": psnr(result, clean),
                    "ssim": ssim(result, clean),
                }
                for method, result in restored.items()
            ]
            rows += row
            if out is not None:
                captioned = {r["method"]: (restored[r["method"]], f"{r['psnr']:.2f} dB") for r in row}
                pictures.append((f"{image.name}, sigma {level:g}", {"clean": clean} | captioned))
        methods = list(restored)
        for method in methods:
            of = [r for r in rows if r["method"] == method and r["sigma"] == level]
            mean = {figure: float(np.mean([r[figure] for r in of])) for figure in ("psnr", "ssim")}
            rows.append({"image": "mean", "sigma": level, "method": method} | mean)
        table = []
        for name in [image.name for image in found.images] + ["mean"]:
            of = [r for r in rows if r["image"] == name and r["sigma"] == level]
            table.append([name] + [f"{r['psnr']:.2f}  {r['ssim']:.4f}" for r in of])
        show_table(f"gray, sigma {level:g} of 255: PSNR in dB, SSIM", ["image", *methods], table)

    x = torch.zeros(1, 1, COUNTED_AT, COUNTED_AT, device=device)
    costs = [[name, count_parameters(the.network), multi_adds(the.network, x)] for name, the in networks.items()]
    columns = ["network", "parameters", f"Multi-Adds at {COUNTED_AT}x{COUNTED_AT}"]
    show_table("cost", columns, costs)
    if out is not None:
        save_table(f"{out}/evaluation.csv", list(rows[0]), [list(row.values()) for row in rows])
        save_table(f"{out}/costs.csv", columns, costs)
        draw_comparison(f"{out}/comparison.png", pictures)
        print(f"written: {out}/evaluation.csv, costs.csv, comparison.png")
    return rows


def _training_noise(trained: Trained) -> list[float]:
    try:
        return trained.config["data"]["sigma"]
    except KeyError:  # an exported network
        raise InputError(f"{trained.name} does not tell the noise it was trained for; give sigma") from None
