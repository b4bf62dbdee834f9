"""One package per published system: candidate operations, supernet, genotype, derived network."""

from srnas_fast.spaces.space import SPACES, Space, find_space

__all__ = ["SPACES", "Space", "find_space"]
