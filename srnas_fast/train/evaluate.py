"""``evaluate``: trained networks on images they have not seen, beside a classical method."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srnas_fast.errors import InputError
from srnas_fast.search.run import choose_device, memory_format
from srnas_fast.train.load import load
from srnas_fast.train.uses import use_of

_TAKEN = {"original", "clean", "noisy", "non-local means", "bicubic"}  # names of others in tables and pictures


def evaluate(
    runs: str | os.PathLike | Sequence[str | os.PathLike],
    root: str | None = None,
    sigma: float | Sequence[float] | None = None,
    out: str | None = None,
    nlm: bool | None = None,
    seed: int | None = None,
    tile: int | None = None,
    device: str = "auto",
    border: int | None = None,
    self_ensemble: bool | None = None,
) -> list[dict[str, Any]]:
    """Measure trained networks on test images, beside a classical method, and print the table.

    Args:
        runs: what :func:`srnas_fast.train.load` takes; networks of one task.
        root: for denoising a folder of test images or a BSD500 root; for super-resolution a folder that holds Set5,
            Set14, B100, Urban100 or Manga109, or images (default: the photographs held out from training).
        sigma: denoising: standard deviations of the noise on the [0, 255] scale (default: those of the first run's
            training).
        out: folder for ``evaluation.csv``, ``costs.csv`` and ``comparison.png`` (default: nothing is written).
        nlm: denoising: also measure scikit-image's non-local means, which is told the noise level (default: True).
        seed: denoising: of the noise, which is the same for all methods (default: 0).
        tile: height and width in pixels in which large images are cut, 0 for never (default: 512; for
            super-resolution the whole image where memory allows).
        device: auto, cpu or cuda.
        border: super-resolution: pixels left out at each side of the compared images (default: the scale).
        self_ensemble: super-resolution: the networks' mean over the eight symmetries of the image (default: False).

    Returns:
        One row per image and method; denoising: image, sigma, method, psnr (dB), ssim; super-resolution: set, image,
        method, psnr, ssim, seconds. The rows whose image is "mean" are the means.

    Raises:
        InputError: a network or an image folder that cannot be used, or an option of another task.
        OSError: ``out`` cannot be written.
    """
    runs = [runs] if isinstance(runs, str | os.PathLike) else runs
    trained, target = [load(run) for run in runs], choose_device(device)
    if not trained:
        raise InputError("no network to evaluate; give the folder of a training")
    names = [the.name for the in trained]
    if len({*names} - _TAKEN) < len(names):  # folders of one name in different places
        names = [os.fspath(run) for run in runs]
        if len(set(names)) < len(names):
            raise InputError(f"the same network twice in {', '.join(names)}; name each once")
    uses = [use_of(the.space) for the in trained]
    use = uses[0]
    if any(other is not use for other in uses):
        listed = ", ".join(f"{name} ({use.name})" for name, use in zip(names, uses, strict=True))
        raise InputError(f"networks of several tasks: {listed}; evaluate those of one task together")
    options = {"sigma": sigma, "nlm": nlm, "seed": seed, "border": border, "self_ensemble": self_ensemble}
    given = {name: value for name, value in options.items() if value is not None}
    foreign = [name for name in given if name not in use.options]
    if foreign:
        raise InputError(f"{', '.join(foreign)}: no option of {use.name}, which {names[0]} is for; leave it out")
    for the in trained:
        the.network.to(target, memory_format=memory_format(target))
    if out is not None:  # before the work, not after it
        Path(out).mkdir(parents=True, exist_ok=True)
    return use.evaluate(dict(zip(names, trained, strict=True)), root, out, tile, target, **given)
