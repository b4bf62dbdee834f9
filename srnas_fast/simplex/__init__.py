"""Maps from logits (architecture parameters) to weights on the probability simplex."""

from srnas_fast.simplex.gumbel import gumbel_softmax
from srnas_fast.simplex.order import order_penalty, sorted_sparsestmax
from srnas_fast.simplex.radius import linear_radius, radius_of
from srnas_fast.simplex.softmax import masked_softmax, softmax
from srnas_fast.simplex.sparsestmax import sparsemax, sparsestmax
from srnas_fast.simplex.tables import sparsestmax_tables

__all__ = [
    "gumbel_softmax",
    "linear_radius",
    "masked_softmax",
    "order_penalty",
    "radius_of",
    "softmax",
    "sorted_sparsestmax",
    "sparsemax",
    "sparsestmax",
    "sparsestmax_tables",
]
