"""HNAS: hierarchical search for super-resolution by a controller that is rewarded (arXiv 2003.04619)."""

from srnas_fast.data import SuperResolutionData
from srnas_fast.losses import SuperResolutionLoss
from srnas_fast.spaces.hnas.controller import Controller
from srnas_fast.spaces.hnas.genotype import HNAS_A, HNAS_B, HNAS_C, Genotype, random_genotype
from srnas_fast.spaces.hnas.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.hnas.operations import SCALES
from srnas_fast.spaces.hnas.presets import search_presets, train_presets
from srnas_fast.spaces.hnas.supernet import Supernet, SupernetConfig
from srnas_fast.spaces.hnas.task import SharedSuperResolution
from srnas_fast.spaces.space import Space


def super_resolution(scale: int) -> Space:
    """The space of a scale.

    >>> super_resolution(4).search_preset("paper")["data"]["patch"]  # 48 pixels, four times larger
    192
    """
    return Space(
        name=f"hnas-x{scale}",
        supernet_config=SupernetConfig,
        supernet=Supernet,
        network_config=NetworkConfig,
        network=DerivedNetwork,
        read_genotype=Genotype.from_dict,
        random_genotype=lambda config, seed: random_genotype(seed, config.names, config.cells),
        task=SharedSuperResolution,
        data=SuperResolutionData,
        loss=SuperResolutionLoss,
        search_presets=search_presets(scale),
        train_presets=train_presets(scale),
        algorithm="reinforce",
        policy=Controller,
    )


SPACES = tuple(map(super_resolution, SCALES))

__all__ = [
    "HNAS_A",
    "HNAS_B",
    "HNAS_C",
    "SPACES",
    "Controller",
    "DerivedNetwork",
    "Genotype",
    "NetworkConfig",
    "Supernet",
    "SupernetConfig",
    "random_genotype",
    "super_resolution",
]
