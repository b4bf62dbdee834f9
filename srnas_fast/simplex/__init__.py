"""Maps from logits (architecture parameters) to weights on the probability simplex."""

from srnas_fast.simplex.softmax import masked_softmax

__all__ = ["masked_softmax"]
