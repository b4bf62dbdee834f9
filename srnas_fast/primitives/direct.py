"""A short way to a custom op's implementation: torch's dispatcher costs more than a small kernel takes."""

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # these two have no public home
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Whether a function transform of torch.func is at work, which does not know our autograd functions. Private to torch,
# so looked for: without it every call takes the ordinary way.
transforms_are_on = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def autocast_is_on(tensor: torch.Tensor) -> bool:
    """Whether autocast is on for the tensor's device; false for devices that know none."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether one may look at a tensor's numbers: not where only shapes are computed, or a graph is recorded."""
    return not (
        type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or isinstance(_get_current_dispatch_mode(), (FakeTensorMode, ProxyTorchDispatchMode))
        or transforms_are_on()
        or torch.compiler.is_compiling()
    )


def watched(tensor: torch.Tensor) -> bool:
    """Whether something would see the difference between a custom op and the Python function behind it.

    What would: a graph that is recorded, autocast, dispatch modes (counters, fake tensors), function transforms, the
    profiler, compilers, tensors of other classes.
    """
    return (
        torch.is_grad_enabled()
        or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or autocast_is_on(tensor)
        or _get_current_dispatch_mode() is not None
        or transforms_are_on()
        or torch.autograd.profiler._is_profiler_enabled
        or torch.compiler.is_compiling()
    )


def call(op: torch.library.CustomOpDef, first: torch.Tensor | Sequence[torch.Tensor], *rest, mutates: bool = False):
    """``op(first, *rest)``; where nothing is ``watched``, by a call of the Python function behind it.

    ``mutates``: the op writes to ``first``, and autograd is told so.
    """
    if watched(first if isinstance(first, torch.Tensor) else first[0]):
        return op(first, *rest)
    result = op._init_fn(first, *rest)
    if mutates and not first.is_inference():
        torch.autograd.graph.increment_version(first)
    return result
