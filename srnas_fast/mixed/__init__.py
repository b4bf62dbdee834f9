"""Mixed operations: the weighted sum of candidate operations that stores only its input."""

from srnas_fast.backends.scratch import free_scratch, scratch_held
from srnas_fast.mixed.ahead import compile_ahead
from srnas_fast.mixed.drop_in import Report, accelerate, restore
from srnas_fast.mixed.forms import Form, register_form
from srnas_fast.mixed.layers import Sine, Zero
from srnas_fast.mixed.mixed_op import MixedOp
from srnas_fast.mixed.partial import PartialChannels, edge_normalise
from srnas_fast.mixed.plain import PlainMixedOp
from srnas_fast.mixed.unfold import register_pattern

__all__ = [
    "Form",
    "Report",
    "accelerate",
    "compile_ahead",
    "register_form",
    "restore",
    "MixedOp",
    "PartialChannels",
    "PlainMixedOp",
    "Sine",
    "Zero",
    "edge_normalise",
    "free_scratch",
    "register_pattern",
    "scratch_held",
]
