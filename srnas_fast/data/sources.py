"""Which images a command reads: the user's folder, or the photographs that need no download."""

from srnas_fast.data.folder import ImageSet, find_split, load_images
from srnas_fast.data.photographs import photographs


def images_for(root: str | None, split: str, gray: bool = True, minimum: int = 1) -> ImageSet:
    """The images below ``root`` for a split, or the embedded photographs of that split.

    Args:
        root: a folder of images or a BSD500 root; None for the photographs that come with scikit-image.
        split: "search", "train" or "test".
        gray, minimum: as in :func:`load_images`.

    Raises:
        InputError: the folder is missing, holds no images, or none of them can be used.

    >>> len(images_for(None, "test").images)
    4
    """
    if root is None:
        return ImageSet(photographs(split, gray))
    return load_images(find_split(root, "test" if split == "test" else "train"), gray, minimum)
