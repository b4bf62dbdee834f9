"""The opaque branch: candidates nothing is known about, run one at a time and run again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from srnas_fast.errors import InputError


class OpaqueSum(torch.autograd.Function):
    """``sum_k weights[k] * ops[k](x)`` over the live candidates; saves ``x``, ``weights`` and no activation.

    ``places[k]`` says at which place among ``parameters`` each named parameter of candidate k stands.
    """

    @staticmethod
    def forward(ctx, ops, live, places, x, weights, *parameters):
        ctx.ops, ctx.live, ctx.places = ops, live, places
        ctx.autocast, ctx.modes, ctx.buffers, ctx.random = _autocast_of(x), {}, {}, {}
        y = None
        with torch.autocast(**ctx.autocast):
            for k in live:
                ctx.modes[k], ctx.buffers[k] = _modes(ops[k]), _buffers_read(ops[k])
                random, version = _random_state(x), _version(x)
                z = ops[k](x)
                _check_result(ops[k], k, z, y, changed_x=_version(x) != version)
                if not all(map(torch.equal, random, _random_state(x))):
                    ctx.random[k] = random
                y = _plus_weighted(y, weights[k], z, like=x)
                del z  # before the next candidate makes its own
        ctx.save_for_backward(x, weights, *parameters)
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "MixedOp has first-order gradients only: its backward pass recomputes the candidates and keeps no "
                "graph, so create_graph=True cannot work; use srnas_fast.mixed.PlainMixedOp for second order"
            )
        x, weights, *parameters = ctx.saved_tensors
        x_wanted, weights_wanted, *parameter_wanted = ctx.needs_input_grad[3:]
        dx, dx_is_ours = None, False
        dweights = torch.zeros_like(weights) if weights_wanted else None
        dparameters = [None] * len(parameters)
        for k, place in enumerate(ctx.places):
            wanted = [i for i in set(place.values()) if parameter_wanted[i]]
            if k not in ctx.live:
                # Zeros, not None: with weight zero these parameters are in use, so that decay and momentum act.
                for i in wanted:
                    if dparameters[i] is None:
                        dparameters[i] = torch.zeros_like(parameters[i])
                continue
            if not (x_wanted or weights_wanted or wanted):
                continue
            # Aliases, so that hooks on the user's tensors run once, in the user's own backward pass.
            alias = x.detach().requires_grad_(x_wanted)
            used = {i: parameters[i].detach().requires_grad_(i in wanted) for i in place.values()}
            state = {name: used[i] for name, i in place.items()} | _spare_buffers(ctx.ops[k], ctx.buffers[k])
            with (
                torch.set_grad_enabled(bool(x_wanted or wanted)),
                torch.autocast(**ctx.autocast),
                _random_state_set(x, ctx.random.get(k)),
                _modes_set(ctx.ops[k], ctx.modes[k]),
            ):
                z = functional_call(ctx.ops[k], state, (alias,), tie_weights=False)  # each place is named once
            if weights_wanted:
                dweights[k] = (dy * z.detach()).sum(dtype=torch.promote_types(weights.dtype, torch.float32))
            if not z.requires_grad:
                continue
            targets = [alias] * x_wanted + [used[i] for i in wanted]
            dz = (weights[k] * dy).to(z.dtype)
            found = list(torch.autograd.grad(z, targets, dz, allow_unused=True))
            if x_wanted and (part := found.pop(0)) is not None:
                # The first part may be an expanded view or belong to autograd, so the first sum is a new tensor.
                dx, dx_is_ours = (part, False) if dx is None else (dx.add_(part) if dx_is_ours else dx + part, True)
            for i, part in zip(wanted, found, strict=True):
                if part is not None:
                    dparameters[i] = part if dparameters[i] is None else dparameters[i] + part
        return None, None, None, dx, dweights, *dparameters


def _autocast_of(x: Tensor) -> dict:
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
    """The states of the generators that a candidate may draw from."""
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


def _modes(op: nn.Module) -> list[bool]:
    """Which of its modules are in training mode."""
    return [module.training for module in op.modules()]


@contextmanager
def _modes_set(op: nn.Module, modes: list[bool]) -> Iterator[None]:
    """The modes of the forward pass again, whatever ``train()`` and ``eval()`` were called in between."""
    now = _modes(op)
    for module, mode in zip(op.modules(), modes, strict=True):
        module.training = mode
    try:
        yield
    finally:
        for module, mode in zip(op.modules(), now, strict=True):
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
        channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
        if channels_last and not like.is_contiguous() and y.dim() == 4:
            y = y.contiguous(memory_format=torch.channels_last)
        return y
    if torch.result_type(y, z) == y.dtype and torch.result_type(weight, z) == z.dtype:
        return y.addcmul_(z.to(y.dtype), weight.to(y.dtype))
    return y + weight * z
