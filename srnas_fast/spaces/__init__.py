"""One package per published system: candidate operations, supernet, genotype, derived network.

Spaces of one's own: docs/own-space.md.
"""

from srnas_fast.spaces.check import check_space
from srnas_fast.spaces.choices import Choices, ChoiceSupernet, random_choices
from srnas_fast.spaces.known import find_space, known_spaces, load_space, register_code, register_space
from srnas_fast.spaces.own import load_code
from srnas_fast.spaces.policy import Policy, Sample
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.supernet import DifferentiableSupernet
from srnas_fast.spaces.task import Denoising, SuperResolution, Task

__all__ = [
    "ChoiceSupernet",
    "Choices",
    "Denoising",
    "DifferentiableSupernet",
    "Policy",
    "Sample",
    "Space",
    "SuperResolution",
    "Task",
    "check_space",
    "find_space",
    "known_spaces",
    "load_code",
    "load_space",
    "random_choices",
    "register_code",
    "register_space",
]
