"""What restoring, measuring and exporting differ in from task to task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srnas_fast.errors import InputError
from srnas_fast.spaces import Denoising, Space, SuperResolution
from srnas_fast.train.denoising import evaluate_denoising, restore_pixels
from srnas_fast.train.super_resolution import evaluate_super_resolution, upscale_pixels


@dataclass(frozen=True)
class Use:
    """What a trained network is for.

    Args:
        name: for messages.
        restore: ``restore(network, pixels, device, tile)`` is the image that the network makes of an image.
        evaluate: measures networks, prints the table and returns its rows.
        options: keywords of ``evaluate`` that are the task's own.
    """

    name: str
    restore: Callable[..., Any]
    evaluate: Callable[..., Any]
    options: tuple[str, ...]


_USES = {
    Denoising: Use("denoising", restore_pixels, evaluate_denoising, ("sigma", "nlm", "seed")),
    SuperResolution: Use(
        "super-resolution",
        upscale_pixels,
        evaluate_super_resolution,
        ("border", "self_ensemble"),
    ),
}


def use_of(space: Space) -> Use:
    """What the trained networks of a search space are used for; raises InputError for a task of somebody's own.

    >>> from srnas_fast.spaces import find_space
    >>> use_of(find_space("hinas-denoise")).name
    'denoising'
    """
    use = next((use for task, use in _USES.items() if issubclass(space.task, task)), None)
    if use is None:
        raise InputError(f"{space.name} has a task of its own, {space.task.__name__}, which only searches and trains")
    return use
