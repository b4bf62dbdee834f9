"""One package per published system: candidate operations, supernet, genotype, derived network."""

from srnas_fast.spaces.space import SPACES, Space, find_space
from srnas_fast.spaces.task import Denoising, SuperResolution, Task

__all__ = ["SPACES", "Denoising", "Space", "SuperResolution", "Task", "find_space"]
