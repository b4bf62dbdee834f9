"""One file per primitive: reference in plain torch, custom op, autograd, FLOP formula. Empty in 0.1.0."""
