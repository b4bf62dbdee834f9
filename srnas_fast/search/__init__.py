"""Search algorithms and their runs: bilevel search, run folders, resume."""

from srnas_fast.search.bilevel import Bilevel, BilevelConfig
from srnas_fast.search.complexity import ComplexityConfig
from srnas_fast.search.run import RunConfig, RunFolder, read_checkpoint
from srnas_fast.search.search import search

__all__ = ["Bilevel", "BilevelConfig", "ComplexityConfig", "RunConfig", "RunFolder", "read_checkpoint", "search"]
