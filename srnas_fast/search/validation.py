"""How good a network is on the images held out from a run."""

import numpy as np
import torch
from torch import nn

from srnas_fast.spaces import Task
from srnas_fast.spaces.task import SSIM_WINDOW

__all__ = ["SSIM_WINDOW", "validate"]


def validate(
    model: nn.Module, device: torch.device, pairs: list[tuple[np.ndarray, np.ndarray]], task: Task
) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the model in evaluation mode, as the task measures them, and the task's score.

    Args:
        model: makes targets of inputs, both on the [0, 1] scale.
        device: the model's.
        pairs: of the task, on the [0, 255] scale.
        task: measures.
    """
    model.eval()
    figures = []
    with torch.no_grad():
        for given, target in pairs:
            x = torch.from_numpy(given).permute(2, 0, 1)[None].to(device) / 255
            restored = model(x)[0].float().permute(1, 2, 0).cpu().numpy() * 255
            figures.append(task.quality(restored, target))
    model.train()
    quality, similarity = (float(mean) for mean in np.mean(figures, axis=0))
    return {"psnr": quality, "ssim": similarity, "score": task.score(quality, similarity)}
