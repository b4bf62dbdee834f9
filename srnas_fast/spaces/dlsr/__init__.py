"""DLSR: light super-resolution by hierarchical and differentiable search (arXiv 2105.03939)."""

from srnas_fast.spaces.dlsr.genotype import BETA21, BETA_PARA1, Genotype, random_genotype
from srnas_fast.spaces.dlsr.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.dlsr.published import load_published
from srnas_fast.spaces.dlsr.supernet import Supernet, SupernetConfig

__all__ = [
    "BETA21",
    "BETA_PARA1",
    "DerivedNetwork",
    "Genotype",
    "NetworkConfig",
    "Supernet",
    "SupernetConfig",
    "load_published",
    "random_genotype",
]
