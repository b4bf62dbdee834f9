"""How HNAS shares the images out between its weights and its controller."""

from srnas_fast.spaces.task import SuperResolution


class SharedSuperResolution(SuperResolution):
    """Super-resolution, with more images for the controller than for the weights.

    >>> round(800 * SharedSuperResolution.architecture_share)
    480
    """

    architecture_share = 480 / 800  # HNAS: images 1 to 320 of DIV2K for the weights, 321 to 800 for the controller
