"""How TrilevelNAS shares the images out between its weights and its architecture."""

from srnas_fast.spaces.task import SuperResolution


class HalvedSuperResolution(SuperResolution):
    """Super-resolution whose architecture learns from as many images as its weights."""

    architecture_share = 1 / 2  # the published code: the first and the second half of the file list
