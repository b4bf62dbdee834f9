"""HiNAS: memory-efficient hierarchical search for image restoration (arXiv 1909.08228, 2012.13212)."""

from srnas_fast.data import DenoisingData
from srnas_fast.losses import DenoisingLoss
from srnas_fast.spaces.hinas.genotype import Genotype, random_genotype
from srnas_fast.spaces.hinas.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.hinas.presets import SEARCH_PRESETS, TRAIN_PRESETS
from srnas_fast.spaces.hinas.supernet import Supernet, SupernetConfig
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.task import Denoising

SPACE = Space(
    name="hinas-denoise",
    supernet_config=SupernetConfig,
    supernet=Supernet,
    network_config=NetworkConfig,
    network=DerivedNetwork,
    read_genotype=Genotype.from_dict,
    random_genotype=lambda config, seed: random_genotype(config.layers, config.nodes, seed, config.activation),
    task=Denoising,
    data=DenoisingData,
    loss=DenoisingLoss,
    search_presets=SEARCH_PRESETS,
    train_presets=TRAIN_PRESETS,
)

__all__ = [
    "SPACE",
    "DerivedNetwork",
    "Genotype",
    "NetworkConfig",
    "Supernet",
    "SupernetConfig",
    "random_genotype",
]
