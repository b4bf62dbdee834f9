"""Mixed operations: the weighted sum of candidate operations that stores only its input."""

from srnas_fast.mixed.layers import Sine, Zero
from srnas_fast.mixed.mixed_op import MixedOp
from srnas_fast.mixed.patterns import register_pattern
from srnas_fast.mixed.plain import PlainMixedOp

__all__ = ["MixedOp", "PlainMixedOp", "Sine", "Zero", "register_pattern"]
