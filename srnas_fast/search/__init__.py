"""Search algorithms and their runs: bilevel search, reinforcement, run folders, resume.

An algorithm of one's own is a class like :class:`Algorithm`, which a space names.
"""

from srnas_fast.search.algorithm import Algorithm, Best, Problem
from srnas_fast.search.bilevel import Bilevel, BilevelConfig
from srnas_fast.search.complexity import ComplexityConfig
from srnas_fast.search.reinforce import ReinforceConfig, RewardConfig
from srnas_fast.search.run import RunConfig, RunFolder, read_checkpoint
from srnas_fast.search.search import search, search_groups

__all__ = [
    "Algorithm",
    "Best",
    "Bilevel",
    "BilevelConfig",
    "ComplexityConfig",
    "Problem",
    "ReinforceConfig",
    "RewardConfig",
    "RunConfig",
    "RunFolder",
    "read_checkpoint",
    "search",
    "search_groups",
]
