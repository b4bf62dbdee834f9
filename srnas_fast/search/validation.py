"""How good a network is on the images held out from a run."""

from typing import Any

import numpy as np
import torch
from torch import nn

from srnas_fast.data import NamedImage, centre_crop, noisy_image
from srnas_fast.metrics import psnr, ssim

SSIM_WINDOW = 11  # pixels: an image with fewer on a side has no SSIM


def validation_pairs(images: list[NamedImage], data: Any, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(noisy, clean) centre crops, (H, W, C) on the [0, 255] scale; the noise levels take turns."""
    pairs = []
    for i, image in enumerate(images):
        clean = centre_crop(image.pixels, data.validation_crop)
        pairs.append((noisy_image(clean, data.sigma[i % len(data.sigma)], seed, image.name), clean))
    return pairs


def validate(model: nn.Module, device: torch.device, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the model in evaluation mode, and HiNAS's score SSIM + PSNR / 100."""
    model.eval()
    figures = []
    with torch.no_grad():
        for noisy, clean in pairs:
            x = torch.from_numpy(noisy).permute(2, 0, 1)[None].to(device) / 255
            restored = model(x)[0].float().permute(1, 2, 0).cpu().numpy() * 255
            figures.append((psnr(restored, clean), ssim(restored, clean)))
    model.train()
    quality, similarity = (float(mean) for mean in np.mean(figures, axis=0))
    return {"psnr": quality, "ssim": similarity, "score": similarity + quality / 100}
