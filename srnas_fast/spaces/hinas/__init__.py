"""HiNAS: memory-efficient hierarchical search for image restoration (arXiv 1909.08228, 2012.13212)."""

from srnas_fast.data import DenoisingData, SuperResolutionData
from srnas_fast.losses import DenoisingLoss, L1SSIMLoss
from srnas_fast.spaces.hinas import presets
from srnas_fast.spaces.hinas.candidates import names_of
from srnas_fast.spaces.hinas.genotype import Genotype, random_genotype
from srnas_fast.spaces.hinas.heads import SCALES
from srnas_fast.spaces.hinas.network import DerivedNetwork, NetworkConfig, SuperResolutionNetworkConfig
from srnas_fast.spaces.hinas.supernet import Supernet, SupernetConfig, SuperResolutionSupernetConfig
from srnas_fast.spaces.hinas.task import HiNASSuperResolution
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.task import Denoising


def _random(config: SupernetConfig, seed: int) -> Genotype:
    return random_genotype(config.layers, config.nodes, seed, config.activation, names_of(config.candidates))


DENOISING = Space(
    name="hinas-denoise",
    supernet_config=SupernetConfig,
    supernet=Supernet,
    network_config=NetworkConfig,
    network=DerivedNetwork,
    read_genotype=Genotype.from_dict,
    random_genotype=_random,
    task=Denoising,
    data=DenoisingData,
    loss=DenoisingLoss,
    search_presets=presets.SEARCH_PRESETS,
    train_presets=presets.TRAIN_PRESETS,
)


def super_resolution(scale: int) -> Space:
    """The space of a scale.

    >>> super_resolution(3).search_preset("paper")["data"]["patch"]  # 64 pixels, three times larger
    192
    """
    return Space(
        name=f"hinas-sr-x{scale}",
        supernet_config=SuperResolutionSupernetConfig,
        supernet=Supernet,
        network_config=SuperResolutionNetworkConfig,
        network=DerivedNetwork,
        read_genotype=Genotype.from_dict,
        random_genotype=_random,
        task=HiNASSuperResolution,
        data=SuperResolutionData,
        loss=L1SSIMLoss,
        search_presets=presets.enlarging_search(scale),
        train_presets=presets.enlarging_training(scale),
    )


SPACES = (DENOISING, *map(super_resolution, SCALES))

__all__ = [
    "DENOISING",
    "SPACES",
    "DerivedNetwork",
    "Genotype",
    "HiNASSuperResolution",
    "NetworkConfig",
    "SuperResolutionNetworkConfig",
    "SuperResolutionSupernetConfig",
    "Supernet",
    "SupernetConfig",
    "random_genotype",
    "super_resolution",
]
