"""The default images: photographs inside the scikit-image wheel, so that nothing has to be downloaded."""

from importlib.metadata import version
from importlib.resources import as_file, files

from srnas_fast.data.folder import NamedImage
from srnas_fast.data.images import read_image
from srnas_fast.errors import InputError

_SEARCH = (
    "brick.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
)
_SEARCH += ("rocket.jpg",)

# As in HiNAS, the network found is trained on the images it was searched on, and some more; the test
# photographs appear nowhere else. The two views of the motorcycle are one scene and so stay on one side.
SPLITS = {
    "search": _SEARCH,
    "train": (*_SEARCH, "ihc.png", "motorcycle_right.png", "text.png"),
    "test": ("astronaut.png", "camera.png", "chelsea.png", "coins.png"),
}


def photographs(split: str, gray: bool = True) -> list[NamedImage]:
    """Return the photographs of a fixed split: "search" (8), "train" (those and 3 more) or "test" (4 others).

    Args:
        split: which photographs.
        gray: luma only, C = 1; else C as in each file.

    Raises:
        InputError: the split is unknown, or the installed scikit-image does not hold the photographs.

    >>> [(image.name, image.pixels.shape) for image in photographs("test")]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('astronaut', (512, 512, 1)), ('camera', (512, 512, 1)), ('chelsea', (300, 451, 1)),
     ('coins', (303, 384, 1))]
    """
    if split not in SPLITS:
        raise InputError(f"no photographs '{split}'; the splits are {', '.join(SPLITS)}")
    images = []
    for name in SPLITS[split]:
        with as_file(files("skimage") / "data" / name) as path:
            if not path.is_file():
                raise InputError(
                    f"scikit-image {version('scikit-image')} comes without {name}; install 0.26, "
                    f"or give your own images with --data.root"
                )
            images.append(NamedImage(path.stem, read_image(path, gray)))
    return images
