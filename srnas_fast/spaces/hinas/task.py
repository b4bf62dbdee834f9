"""How HiNAS searches for super-resolution."""

from srnas_fast.spaces.task import SuperResolution


class HiNASSuperResolution(SuperResolution):
    """Super-resolution whose architecture learns from half of the images; scored by SSIM + PSNR / 100.

    Both are measured as everywhere, on the luma inside a border; HiNAS (arXiv 2012.13212) scores them on RGB.

    >>> from srnas_fast.data import SuperResolutionData
    >>> from srnas_fast.spaces.hinas.network import SuperResolutionNetworkConfig
    >>> HiNASSuperResolution(SuperResolutionData(), SuperResolutionNetworkConfig()).score(psnr=30.0, ssim=0.9)
    1.2
    """

    architecture_share = 1 / 2  # HiNAS: 380 of 760

    def score(self, psnr: float, ssim: float) -> float:
        return ssim + psnr / 100
