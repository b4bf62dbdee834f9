"""``restore``: a user's own images through a trained network."""

import os
from collections.abc import Sequence
from pathlib import Path

from srnas_fast.data import FORMATS, find_images, read_with_alpha, resize, write_image
from srnas_fast.errors import InputError
from srnas_fast.report import print_skipped
from srnas_fast.search.run import choose_device, memory_format
from srnas_fast.train.load import load
from srnas_fast.train.uses import use_of


def restore(
    run: str,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str = "restored",
    tile: int | None = None,
    device: str = "auto",
) -> list[str]:
    """Restore images with a trained network and write them, 8 bits a channel, under the same names.

    PNG and TIFF keep their format; the others become PNG, which adds no loss.

    Gray and colour images of any size; a gray network takes colour channel by channel; transparency is kept, enlarged
    bicubically by a network that enlarges. Images that cannot be read are named, skipped and counted.

    Args:
        run: what :func:`srnas_fast.train.load` takes.
        images: image files, and folders of them.
        out: folder for the results, none of which may exist already; what lies there is no input.
        tile: height and width in pixels in which large images are cut, 0 for never (default: 512; for networks that
            enlarge the whole image where memory allows). The result is the same; of networks that enlarge nearly.
        device: auto, cpu or cuda.

    Returns:
        The files written.

    Raises:
        InputError: a checkpoint or an image folder that cannot be used; no image could be read; a result exists
            already, or two images would have the same.
        OSError: the folder cannot be written.
    """
    images = [images] if isinstance(images, str | os.PathLike) else images
    if not images:
        raise InputError("no images to restore; give image files or folders of them")
    trained, target = load(run), choose_device(device)
    use = use_of(trained.space)
    trained.network.to(target, memory_format=memory_format(target))
    jobs: dict[Path, Path] = {}
    for root in map(Path, images):
        within = Path(out).resolve() if root.resolve() in Path(out).resolve().parents else None
        for path in find_images(root):
            if within and within in path.resolve().parents:  # the results of an earlier call
                continue
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            result = Path(out) / (
                name if FORMATS.get(path.suffix.lower()) in ("PNG", "TIFF") else name.with_suffix(".png")
            )
            if result in jobs:
                raise InputError(f"{path} and {jobs[result]} would both become {result}; restore them one by one")
            if result.exists():
                raise InputError(
                    f"{result} exists already and would be overwritten; choose another --out, or delete it"
                )
            jobs[result] = path
    if not jobs:
        raise InputError(f"no images beside those in {out}; give others, or another --out")
    written, skipped = [], []
    for result, path in jobs.items():
        try:
            pixels, alpha = read_with_alpha(path)
        except InputError as error:
            skipped.append(str(error))
            continue
        restored = use.restore(trained.network, pixels, target, tile)
        if alpha is not None:
            alpha = resize(alpha[..., None], len(restored) // len(alpha))[..., 0]
        write_image(result, restored, alpha)
        print(f"{path} -> {result}")
        written.append(str(result))
    print_skipped(skipped)
    if not written:
        raise InputError(f"none of the {len(skipped)} images could be read")
    return written
