"""The opaque branch: candidates nothing is known about, run one at a time and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # it has no public home
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from srnas_fast.errors import InputError
from srnas_fast.mixed.call import Return


class Opaque:
    """The opaque candidates of one call: what their forward pass leaves to run them again, no activation among it.

    Args:
        ops: all candidates. live: the numbers of the opaque ones that run.
        places: for each opaque candidate, the slot of each of its named parameters.
    """

    def __init__(self, ops: nn.ModuleList, live: list[int], places: dict[int, dict[str, int]]):
        self.ops, self.live, self.places = {k: ops[k] for k in live}, live, places
        self.autocast, self.modes, self.buffers, self.random = {}, {}, {}, {}

    def forward(
        self, y: Tensor | None, x: Tensor, weights: Tensor, autocast: dict
    ) -> tuple[Tensor | None, list[torch.dtype]]:
        """y + the weighted sum of the opaque candidates, and the types of the terms."""
        self.autocast, kinds = autocast, []
        if not self.live:
            return y, kinds
        with torch.autocast(**autocast):
            for k in self.live:
                self.modes[k], self.buffers[k] = _modes(self.ops[k]), _buffers_read(self.ops[k])
                random, version = _random_state(x), _version(x)
                z = self.ops[k](x)
                _check_result(self.ops[k], k, z, y, changed_x=_version(x) != version)
                if not all(map(torch.equal, random, _random_state(x))):
                    self.random[k] = random
                kinds.append(torch.result_type(weights[k], z))
                y = _plus_weighted(y, weights[k], z, like=x)
                del z  # before the next candidate makes its own
        return y, kinds

    def backward(self, call: Return, dx: Tensor | None, dy: Tensor, x: Tensor, weights: Tensor) -> Tensor | None:
        """dx with the share of the opaque candidates; gives the gradients of weights and parameters."""
        dx_is_ours = dx is not None
        for k in self.live:
            place = self.places[k]
            wanted = [slot for slot in place.values() if call.wanted[slot]]
            weight_wanted = call.dweights is not None
            if not (call.x_wanted or weight_wanted or wanted):
                continue
            # Aliases, so that hooks on the user's tensors run once, in the user's own backward pass.
            alias = x.detach().requires_grad_(call.x_wanted)
            used = {slot: call.parameters[slot].detach().requires_grad_(call.wanted[slot]) for slot in place.values()}
            state = {name: used[slot] for name, slot in place.items()}
            state |= _spare_buffers(self.ops[k], self.buffers[k])
            with (
                torch.set_grad_enabled(bool(call.x_wanted or wanted)),
                torch.autocast(**self.autocast),
                _random_state_set(x, self.random.get(k)),
                _modes_set(self.modes[k]),
            ):
                z = functional_call(self.ops[k], state, (alias,), tie_weights=False)  # each place is named once
            if weight_wanted:
                call.give_weight(k, (dy * z.detach()).sum(dtype=call.dweights.dtype))
            if not z.requires_grad:
                continue
            targets = [alias] * call.x_wanted + [used[slot] for slot in wanted]
            dz = (weights[k] * dy).to(z.dtype)
            found = list(torch.autograd.grad(z, targets, dz, allow_unused=True))
            if call.x_wanted and (part := found.pop(0)) is not None:
                # The first part may be an expanded view or belong to autograd, so the first sum is a new tensor.
                dx, dx_is_ours = (part, False) if dx is None else (dx.add_(part) if dx_is_ours else dx + part, True)
            for slot, part in zip(wanted, found, strict=True):
                call.give(slot, part)
        return dx


def autocast_of(x: Tensor) -> dict:
    """The caller's autocast, to be entered again; without its cache, which would hand casts made here, where no
    graph is recorded, to the modules that come later."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return {"device_type": "cpu", "enabled": False}
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": False,
    }


def _random_state(x: Tensor) -> list[Tensor]:
    """The states of the generators that a candidate may draw from; none where only shapes are computed.

    Raises:
        RuntimeError: a CUDA graph is being captured, which moves them on at each replay and leaves nothing to read.
    """
    if isinstance(x, FakeTensor):
        return []
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("opaque candidates of a MixedOp read random states, which a graph cannot")
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])


@contextmanager
def _random_state_set(x: Tensor, state: list[Tensor] | None) -> Iterator[None]:
    """Draw the random numbers of the forward pass again, and leave the generators as they were."""
    if state is None:  # the candidate drew none
        yield
        return
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.set_rng_state(state[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(state[1], x.device)
        yield


def _modes(op: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Which of its modules are in training mode."""
    return [(module, module.training) for module in op.modules()]


@contextmanager
def _modes_set(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """The modes of the forward pass again, whatever ``train()`` and ``eval()`` were called in between."""
    now = [(module, module.training) for module, _ in modes]
    for module, mode in modes:
        module.training = mode
    try:
        yield
    finally:
        for module, mode in now:
            module.training = mode


def places_of(op: nn.Module, kind: str) -> dict[str, Tensor]:
    """Every place in ``op`` that holds a tensor, by its name; a submodule that is used twice is named once.

    Args:
        kind: "_parameters" or "_buffers".
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in op.named_modules()
        for name, tensor in getattr(module, kind).items()
        if tensor is not None
    }


def _buffers_read(op: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that the forward pass reads, which something may change before the backward pass.

    A norm layer in training mode only writes its running statistics.
    """
    written = {
        id(buffer)
        for module in op.modules()
        if isinstance(module, _NormBase) and module.training
        for buffer in module.buffers(recurse=False)
    }
    return {name: buffer.clone() for name, buffer in places_of(op, "_buffers").items() if id(buffer) not in written}


def _spare_buffers(op: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers for the recomputation to read and to spoil, so that running statistics move once per step."""
    now = places_of(op, "_buffers")
    # One copy per tensor, also where several modules hold it.
    spare = {id(buffer): before.get(name, buffer).clone() for name, buffer in now.items()}
    return {name: spare[id(buffer)] for name, buffer in now.items()}


def channels_last(x: Tensor) -> bool:
    """Whether x is laid out channels_last and not in the ordinary way as well."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _version(x: Tensor) -> int | None:
    """Counts the in-place changes of x; inference tensors have no such count."""
    return None if x.is_inference() else x._version


def _check_result(op: nn.Module, k: int, z: object, y: Tensor | None, changed_x: bool) -> None:
    """Refuse what cannot be summed or recomputed, by the candidate's number and class."""
    candidate = f"MixedOp candidate {k} ({type(op).__name__})"
    if not isinstance(z, Tensor):
        raise InputError(f"{candidate} returned {type(z).__name__}; a candidate operation returns one tensor")
    if changed_x:
        raise InputError(
            f"{candidate} changed its input in place, and the other candidates read the same input; "
            "build it with inplace=False"
        )
    if y is not None and z.shape != y.shape:
        raise InputError(
            f"{candidate} returned shape {tuple(z.shape)} and the candidates before it {tuple(y.shape)}; "
            "all candidates must agree on it"
        )


def _plus_weighted(y: Tensor | None, weight: Tensor, z: Tensor, like: Tensor) -> Tensor:
    """``y + weight * z``, in place where the number types allow, in the memory format of ``like``."""
    if y is None:
        y = weight * z
        if channels_last(like) and y.dim() == 4:
            y = y.contiguous(memory_format=torch.channels_last)
        return y
    if torch.result_type(y, z) == y.dtype and torch.result_type(weight, z) == z.dtype:
        return y.addcmul_(z.to(y.dtype), weight.to(y.dtype))
    return y + weight * z
