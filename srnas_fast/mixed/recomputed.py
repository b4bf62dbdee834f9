"""A fixed layer that keeps only its input for the backward pass, as a ``MixedOp`` does with its candidates."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, of which only ``x`` is held: what lies between is computed again in the backward pass.

    Values and gradients are those of ``module(x)``, and running statistics move once. Under ``torch.compile`` it is
    ``module(x)``. The module must draw no random
    numbers, as dropout would: they would be others the second time.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> y = recomputed(net, torch.rand(2, 1, 8, 8))
    >>> y.sum().backward()
    >>> net[0].weight.grad.shape, net[1].num_batches_tracked.item()
    (torch.Size([4, 1, 3, 3]), 1)
    """
    if torch.compiler.is_compiling():  # a compiler chooses itself what to keep
        return module(x)
    return checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # reading it would wait for a GPU
        determinism_check="none",
        context_fn=lambda: (nullcontext(), _buffers_spared(module)),
    )


@contextmanager
def _buffers_spared(module: nn.Module) -> Iterator[None]:
    """The module works on copies of its buffers, so that running statistics move once per step."""
    held = [(child, dict(child._buffers)) for child in module.modules() if child._buffers]
    for child, buffers in held:
        child._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for child, buffers in held:
            child._buffers.update(buffers)
