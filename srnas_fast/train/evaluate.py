"""``evaluate``: trained networks on images they have not seen, beside a classical method."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.restoration import denoise_nl_means

from srnas_fast.data import images_for, noisy_image
from srnas_fast.errors import InputError
from srnas_fast.metrics import count_parameters, multi_adds, psnr, ssim
from srnas_fast.report import draw_comparison, print_skipped, save_table, show_table
from srnas_fast.search.run import choose_device
from srnas_fast.search.validation import SSIM_WINDOW
from srnas_fast.train.checkpoint import load_network
from srnas_fast.train.restore import restore_pixels

COUNTED_AT = 64  # pixels: height and width of the input for which Multi-Adds are given


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


def evaluate(
    runs: str | os.PathLike | Sequence[str | os.PathLike],
    root: str | None = None,
    sigma: float | Sequence[float] = (),
    out: str | None = None,
    nlm: bool = True,
    seed: int = 0,
    tile: int = 512,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Measure trained networks on noisy test images and print the table.

    Args:
        runs: folders of trainings, or their checkpoints, of one search space.
        root: folder of test images or a BSD500 root (default: the photographs held out from training).
        sigma: standard deviations of the noise on the [0, 255] scale (default: those of the first run's training).
        out: folder for ``evaluation.csv``, ``costs.csv`` and ``comparison.png`` (default: nothing is written).
        nlm: also measure scikit-image's non-local means, which is told the noise level.
        seed: of the noise, which is the same for all methods.
        tile: height and width in pixels in which large images are cut, 0 for never; the result is the same.
        device: auto, cpu or cuda.

    Returns:
        One row per image, method and sigma: image, sigma, method, psnr (dB), ssim; the rows named "mean" are the means.

    Raises:
        InputError: a checkpoint or an image folder that cannot be used.
        OSError: ``out`` cannot be written.

    PSNR and SSIM are of gray images clipped to [0, 255], not rounded, without a border crop.
    """
    runs = [runs] if isinstance(runs, str | os.PathLike) else runs
    sigma = [sigma] if isinstance(sigma, int | float) else sigma
    trained, target = [load_network(run) for run in runs], choose_device(device)
    if not trained:
        raise InputError("no network to evaluate; give the folder of a training")
    sigma = list(dict.fromkeys(sigma)) or trained[0].config["data"]["sigma"]
    for level in sigma:
        if not (math.isfinite(level) and level >= 0):
            raise InputError(f"sigma holds {level}; give numbers from 0 up, on the [0, 255] scale")
    found = images_for(root, "test", minimum=SSIM_WINDOW)
    print_skipped(found.skipped)
    names = [the.name for the in trained]
    if len({"noisy", "non-local means", *names}) < len(names) + 2:  # folders of one name in different places
        names = [os.fspath(run) for run in runs]
        if len(set(names)) < len(names):
            raise InputError(f"the same network twice in {', '.join(names)}; name each once")
    for the in trained:
        the.network.to(target)

    if out is not None:  # before the work, not after it
        Path(out).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pictures = []
    for level in sigma:
        for image in found.images:
            clean = image.pixels
            noisy = noisy_image(clean, level, seed, image.name)
            restored = {"noisy": noisy}
            if nlm:
                restored["non-local means"] = non_local_means(noisy, level)
            for name, the in zip(names, trained, strict=True):
                restored[name] = restore_pixels(the.network, noisy, target, tile)
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

    x = torch.zeros(1, 1, COUNTED_AT, COUNTED_AT, device=target)
    costs = [
        [name, count_parameters(the.network), multi_adds(the.network, x)]
        for name, the in zip(names, trained, strict=True)
    ]
    columns = ["network", "parameters", f"Multi-Adds at {COUNTED_AT}x{COUNTED_AT}"]
    show_table("cost", columns, costs)
    if out is not None:
        save_table(f"{out}/evaluation.csv", list(rows[0]), [list(row.values()) for row in rows])
        save_table(f"{out}/costs.csv", columns, costs)
        draw_comparison(f"{out}/comparison.png", pictures)
        print(f"written: {out}/evaluation.csv, costs.csv, comparison.png")
    return rows
