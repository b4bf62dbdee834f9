"""TrilevelNAS: network, cell and kernel level in one search (arXiv 2101.06658)."""

from srnas_fast.data import SuperResolutionData
from srnas_fast.losses import SuperResolutionLoss
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.trilevel.genotype import B1, Genotype, random_genotype
from srnas_fast.spaces.trilevel.inherit import inherit
from srnas_fast.spaces.trilevel.layers import SCALES
from srnas_fast.spaces.trilevel.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.trilevel.presets import search_presets, train_presets
from srnas_fast.spaces.trilevel.supernet import Supernet, SupernetConfig
from srnas_fast.spaces.trilevel.task import HalvedSuperResolution
from srnas_fast.spaces.trilevel.tree import Lattice, Tree


def super_resolution(scale: int) -> Space:
    """The space of a scale.

    >>> super_resolution(3).search_preset("paper")["data"]["patch"]  # 32 pixels, three times larger
    96
    """
    return Space(
        name=f"trilevel-x{scale}",
        supernet_config=SupernetConfig,
        supernet=Supernet,
        network_config=NetworkConfig,
        network=DerivedNetwork,
        read_genotype=Genotype.from_dict,
        random_genotype=lambda config, seed: random_genotype(config.tree, config.variant, seed, config.candidates),
        task=HalvedSuperResolution,
        data=SuperResolutionData,
        loss=SuperResolutionLoss,
        search_presets=search_presets(scale),
        train_presets=train_presets(scale),
        expected_cost=Supernet.cost,
    )


SPACES = tuple(map(super_resolution, SCALES))

__all__ = [
    "B1",
    "SPACES",
    "DerivedNetwork",
    "Genotype",
    "HalvedSuperResolution",
    "Lattice",
    "NetworkConfig",
    "Supernet",
    "SupernetConfig",
    "Tree",
    "inherit",
    "random_genotype",
    "super_resolution",
]
