"""DLSR: light super-resolution by hierarchical and differentiable search (arXiv 2105.03939)."""

from srnas_fast.data import SuperResolutionData
from srnas_fast.losses import SuperResolutionLoss
from srnas_fast.spaces.dlsr.genotype import BETA21, BETA_PARA1, Genotype, random_genotype
from srnas_fast.spaces.dlsr.layers import SCALES
from srnas_fast.spaces.dlsr.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.dlsr.presets import SEARCH_PRESETS, TRAIN_PRESETS
from srnas_fast.spaces.dlsr.published import load_published
from srnas_fast.spaces.dlsr.supernet import Supernet, SupernetConfig
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.task import SuperResolution

X2 = Space(
    name="dlsr-x2",
    supernet_config=SupernetConfig,
    supernet=Supernet,
    network_config=NetworkConfig,
    network=DerivedNetwork,
    read_genotype=Genotype.from_dict,
    random_genotype=lambda config, seed: random_genotype(config.cells, seed, config.candidates),
    task=SuperResolution,
    data=SuperResolutionData,
    loss=SuperResolutionLoss,
    search_presets=SEARCH_PRESETS,
    train_presets=TRAIN_PRESETS,
    candidate_costs=Supernet.candidate_costs,
)
SPACES = tuple(X2.at_scale(f"dlsr-x{scale}", scale) for scale in SCALES)

__all__ = [
    "BETA21",
    "BETA_PARA1",
    "SPACES",
    "DerivedNetwork",
    "Genotype",
    "NetworkConfig",
    "Supernet",
    "SupernetConfig",
    "load_published",
    "random_genotype",
]
