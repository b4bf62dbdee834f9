"""Super-resolution after the training: one image through a network, and networks on the papers' test sets."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srnas_fast.data import benchmark_sets, resize
from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory, count_parameters, multi_adds, super_resolution_quality
from srnas_fast.report import draw_comparison, print_skipped, save_table, show_table
from srnas_fast.spaces.task import SSIM_WINDOW
from srnas_fast.train.checkpoint import Trained
from srnas_fast.train.tiles import upscale_in_tiles

COUNTED_AT = (720, 1280)  # pixels: height and width of the output for which costs are given, as in the papers
TILE = 512
PROBE = 96  # pixels: side of the image on which the memory that a network takes for a pixel is measured
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601


@torch.no_grad()
def upscale_pixels(
    network: nn.Module,
    pixels: np.ndarray,
    device: torch.device,
    tile: int | None = None,
    self_ensemble: bool = False,
) -> np.ndarray:
    """One image through a network that enlarges: (H, W, C) in, (scale H, scale W, C) out, float32, not clipped.

    Any size; gray images go through as colour ones and come back gray.

    Args:
        network: for RGB on the [0, 1] scale, with ``channels``, ``smallest``, ``scale``, ``reach`` and ``grid``; in
            evaluation mode.
        pixels: on the [0, 255] scale.
        device: where the network is.
        tile: height and width in pixels in which larger images are cut, 0 for never; None cuts those in tiles of 512
            for which the free memory is not enough.
        self_ensemble: the mean over the eight symmetries of the image, which takes eight times as long.

    Raises:
        InputError: a tile too small for the network.
    """
    least = network.reach + network.grid
    if tile is not None and tile != 0 and tile < least:
        raise InputError(f"tile is {tile}; give {least} pixels or more, or 0 for no tiles")
    height, width, channels = pixels.shape
    missing = [(0, max(0, network.smallest - height)), (0, max(0, network.smallest - width)), (0, 0)]
    planes = np.pad(pixels, missing, mode="symmetric").repeat(network.channels // channels, axis=2).transpose(2, 0, 1)
    x = torch.from_numpy(np.ascontiguousarray(planes, np.float32) / 255)[None].to(device)
    if tile is None:
        tile = 0 if max(x.shape[-2:]) <= TILE or _fits(network, x) else TILE

    def upscale(image: Tensor) -> Tensor:
        return upscale_in_tiles(network, image, network.scale, tile, network.reach, network.grid, placed=True)

    y = _mean_of_symmetries(upscale, x) if self_ensemble else upscale(x)
    y = y[0, :, : height * network.scale, : width * network.scale].permute(1, 2, 0).mul(255).cpu().numpy()
    return y if channels == network.channels else (y @ _GRAY)[..., None]


def evaluate_super_resolution(
    networks: Mapping[str, Trained],
    root: str | None,
    out: str | None,
    tile: int | None,
    device: torch.device,
    border: int | None = None,
    self_ensemble: bool = False,
) -> list[dict[str, Any]]:
    """What :func:`srnas_fast.train.evaluate` does with networks that enlarge, given by the names in the table.

    PSNR and SSIM are of images rounded to 8 bits, on luma, without the border.
    """
    scales = {name: the.network.scale for name, the in networks.items()}
    scale = next(iter(scales.values()))
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{name} (x{scale})" for name, scale in scales.items())
        raise InputError(f"networks of several scales: {listed}; evaluate those of one scale together")
    border = scale if border is None else border
    if border < 0:
        raise InputError(f"border is {border}; give pixels from 0 up")
    sets = benchmark_sets(root, scale)
    print_skipped([line for pairs in sets.values() for line in pairs.skipped])
    for benchmark, pairs in sets.items():
        for image in pairs.images:
            most = (scale * min(image.size) - SSIM_WINDOW) // 2
            if border > most:
                raise InputError(f"border is {border}; give {most} or less, for {image.name} of {benchmark} is small")
    costs = {name: _costs(the.network, device) for name, the in networks.items()}

    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bicubic": lambda lr: resize(lr, scale)}
    for name, the in networks.items():
        methods[name] = lambda lr, the=the: upscale_pixels(the.network, lr, device, tile, self_ensemble)
    rows: list[dict[str, Any]] = []
    pictures = []
    for benchmark, pairs in sets.items():
        measured = []
        for image in pairs.images:
            lr, hr = image.whole()
            versions: dict[str, Any] = {"original": hr}
            for method, upscale in methods.items():
                began = time.perf_counter()
                result = upscale(lr)
                seconds = time.perf_counter() - began
                quality, similarity = super_resolution_quality(result, hr, border)
                figures = {"psnr": quality, "ssim": similarity, "seconds": seconds}
                measured.append({"set": benchmark, "image": image.name, "method": method} | figures)
                versions[method] = (result, f"{quality:.2f} dB")
            if out is not None and image is pairs.images[0]:
                pictures.append((f"{benchmark}, {image.name}", versions))
        rows += measured
        for method in methods:
            of = [row for row in measured if row["method"] == method]
            mean = {figure: float(np.mean([row[figure] for row in of])) for figure in ("psnr", "ssim", "seconds")}
            rows.append({"set": benchmark, "image": "mean", "method": method} | mean)

    headings = [
        f"{name} ({len(pairs.images)} of {len(pairs.images) + len(pairs.skipped)})" if pairs.skipped else name
        for name, pairs in sets.items()
    ]
    columns = ["method", *headings, "parameters", "Multi-Adds, G", "peak memory, MiB", "seconds per image"]
    table, saved = [], []
    for method in methods:
        of = [row for row in rows if row["method"] == method]
        seconds = float(np.mean([row["seconds"] for row in of if row["image"] != "mean"]))
        parameters, adds, peak = costs.get(method, (None, None, None))
        saved.append([method, parameters, adds, peak, seconds])
        means = [f"{row['psnr']:.2f}  {row['ssim']:.4f}" for row in of if row["image"] == "mean"]
        rounded = [None, None] if adds is None else [adds / 1e9, peak / 2**20]
        table.append([method, *means, parameters, *rounded, seconds])
    height, width = COUNTED_AT
    together = ", mean of eight symmetries" if self_ensemble else ""
    title = (
        f"x{scale}{together}: PSNR in dB, SSIM of luma within a border of {border}; costs of {width}x{height} pixels"
    )
    show_table(title, columns, table)
    if out is not None:
        save_table(f"{out}/evaluation.csv", list(rows[0]), [list(row.values()) for row in rows])
        columns = ["method", "parameters", f"Multi-Adds at {width}x{height}", "peak memory, bytes", "seconds per image"]
        save_table(f"{out}/costs.csv", columns, saved)
        draw_comparison(f"{out}/comparison.png", pictures)
        print(f"written: {out}/evaluation.csv, costs.csv, comparison.png")
    return rows


@torch.no_grad()
def _costs(network: nn.Module, device: torch.device) -> tuple[int, int, int]:
    """Parameters; of an output of the papers' size Multi-Adds and the most bytes of tensors, beside the weights."""
    height, width = (side // network.scale for side in COUNTED_AT)
    adds = multi_adds(network, torch.zeros(1, network.channels, height, width, device=device))
    with LiveMemory() as memory:
        network(torch.zeros(1, network.channels, height, width, device=device))
    return count_parameters(network), adds, memory.peak


def _mean_of_symmetries(upscale: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean of what the eight turned and mirrored images become, each turned and mirrored back.

    Source: EDSR, arXiv 1707.02921, section 3.4 ("geometric self-ensemble").
    """
    total = None
    for turns in range(4):
        turned = x.rot90(turns, (2, 3))
        part = upscale(turned) + upscale(turned.flip(3)).flip(3)
        part = part.rot90(-turns, (2, 3))
        total = part if total is None else total.add_(part)
    return total / 8


def _fits(network: nn.Module, x: Tensor) -> bool:
    """Whether the free memory is surely enough for the whole image."""
    with LiveMemory() as memory:
        network(torch.zeros(1, network.channels, PROBE, PROBE, device=x.device))
    needed = memory.peak * x.shape[2] * x.shape[3] / PROBE**2
    return 2 * needed <= _free_memory(x.device)  # twice: convolutions also need room that is not seen


def _free_memory(device: torch.device) -> int:
    """Bytes that can be taken on the device; 0 where the system does not tell."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return 0
    try:  # what the container may take
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)
