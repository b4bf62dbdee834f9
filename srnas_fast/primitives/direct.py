"""A short way to a custom op's implementation: torch's dispatcher costs more than a small kernel takes."""

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Private to torch, so looked for: without it every call takes the ordinary way.
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def call(op: torch.library.CustomOpDef, first: torch.Tensor, *rest):
    """``op(first, *rest)``; where nothing would see the difference, by a call of the Python function behind it.

    What would see it: a graph that is recorded, autocast, dispatch modes (counters, fake tensors), function transforms,
    the profiler, compilers, tensors of other classes.
    """
    watched = (
        torch.is_grad_enabled()
        or type(first) not in (torch.Tensor, torch.nn.Parameter)
        or torch.is_autocast_enabled(first.device.type)
        or _get_current_dispatch_mode() is not None
        or _transforming()
        or torch.autograd.profiler._is_profiler_enabled
        or torch.compiler.is_compiling()
    )
    return op(first, *rest) if watched else op._init_fn(first, *rest)
