"""Whether a foreign mixed operation computes what ``MixedOp`` does: both run on made-up inputs, and are compared."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from srnas_fast.metrics.memory import LiveMemory
from srnas_fast.mixed.forms import Form, forms_of, is_registered, required, signature_of
from srnas_fast.mixed.stand_in import install, remove

# Training and evaluation; weights as a softmax gives them and any others, one of them zero.
_DRAWS = ((True, False), (True, True), (False, True))
_PARTS = (1, 4, 2, 8)  # of the channels, into which partial channels may cut them
_SIZES = ((8, 6), (32, 24))  # of images; some candidates need the larger ones
# How far results may be apart, as a share of the largest number among those of one kind.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        form: in which both versions agree; None: in none.
        why: why the module stays as it is; empty where it does not.
        before, after: what the graph of one call holds for the backward pass beside its input, as a multiple of that.
    """

    form: Form | None
    why: str = ""
    before: float | None = None
    after: float | None = None


def probe(module: nn.Module, seen: dict[str, Any] | None, merge: bool) -> Finding:
    """Find a form in which ``module`` is the weighted sum of its candidates; works on a copy.

    Args:
        module: what may be a mixed operation.
        seen: the arguments of one of its calls by name, where one was seen.
        merge: as of ``MixedOp``.
    """
    if next(forms_of(module), None) is None:
        return Finding(None, _why_none(module, []))
    if any(is_lazy(tensor) for tensor in [*module.parameters(), *module.buffers()]):
        return Finding(None, "its parameters are still to be initialised; run the model once before")
    try:
        twin = copy.deepcopy(module)
    except Exception as failure:
        return Finding(None, f"it cannot be copied for a probe: {_line(failure)}")
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    tensors = [*twin.parameters(), *twin.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    disagreed, failed = [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        for dtype in dict.fromkeys((torch.float64, own)):
            twin.to(dtype).train()
            for form in forms_of(module):
                for cut, given in _calls(form, module, seen):
                    try:  # a wrong guess fails in ways of its own
                        with torch.no_grad():
                            twin(**_draw(given, dtype, device, signed=False)[0])
                    except Exception as failure:
                        failed.append(_line(failure))
                        continue
                    finding = _compare(twin, cut, given, dtype, device, merge)
                    twin.train()
                    if finding.form is not None:
                        return finding
                    disagreed.append(finding)
                    if seen is None:  # the arguments fit, so further guesses at them are idle
                        break
            if disagreed:
                return disagreed[0]  # that of the likeliest guess
            if not any("double" in line.lower() for line in failed):
                break  # another type would not help
    return Finding(None, _why_none(module, failed))


def _why_none(module: nn.Module, failed: list[str]) -> str:
    """Why no call of the module could be compared."""
    cls = type(module)
    names = required(cls)
    takes = f"its forward takes ({', '.join(map(str, signature_of(cls).parameters.values()))})"
    if failed:
        return f"{takes}, and no call with an image and weights ran: {failed[0]}"
    if is_registered(cls):
        return "what its form reads is not known; give accelerate() example inputs of the model"
    if names is not None and len(names) < 2:
        return f"{takes}, no argument for the weights; register_form can teach it"
    if names is None or len(names) > 3:
        return f"{takes}, too much to guess from; register_form can teach it"
    return f"{takes}, in the example no image and weights for its candidates"


def _line(failure: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"[:160]


# --- which calls to try -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """Where an argument takes the image: a small one, and the one that memory is measured with."""

    shape: tuple[int, ...]
    full: tuple[int, ...]


@dataclass(frozen=True)
class _Weights:
    """Where it takes weights."""

    shape: tuple[int, ...]
    as_list: bool = False


def _calls(form: Form, module: nn.Module, seen: dict[str, Any] | None) -> Iterator[tuple[Form, dict[str, Any]]]:
    """The form, with the partial channels it may have, and arguments: such as were seen, or such as fit."""
    candidates = form.candidates(module)
    for parts in [form.parts(module)] if is_registered(type(module)) else _PARTS:
        cut = form if parts == form.parts(module) else replace(form, partial=parts)
        if seen is not None:
            given = _seen(form, seen, module, len(candidates))
            if given is not None and given[form.x].shape[1] % parts == 0:
                yield from ((cut, given | {form.x: image}) for image in _smaller(given[form.x]))
        elif not callable(form.weights):
            for image in _images(candidates, parts):
                yield from ((cut, {form.x: image} | w) for w in _weights(form, module, len(candidates)))


def _weights(form: Form, module: nn.Module, count: int) -> list[dict[str, Any]]:
    """The arguments that carry the weights, in the ways in which they may be given."""
    if form.index is None:
        return [{form.weights: _Weights((count,))}, {form.weights: _Weights((count,), as_list=True)}]
    if form.index in signature_of(type(module)).parameters:
        return [{form.weights: _Weights((3, count)), form.index: 1}]
    return [{form.weights: _Weights((getattr(module, form.index) + 2, count))}]


def _images(candidates: list[nn.Module], parts: int) -> list[_Image]:
    """Inputs that fit the first layer with parameters, whose channels are one of so many parts."""
    for layer in (layer for candidate in candidates for layer in candidate.modules()):
        if isinstance(layer, nn.Linear):
            return [_Image((6, layer.in_features * parts), (64, layer.in_features * parts))]
        if channels := getattr(layer, "in_channels", None) or getattr(layer, "num_features", None):
            break
    else:
        channels = 4
    sizes = _SIZES if parts == 1 else _SIZES[:1]
    return [_Image((2, channels * parts, *size), (4, channels * parts, 32, 32)) for size in sizes]


def _seen(form: Form, seen: dict[str, Any], module: nn.Module, count: int) -> dict[str, Any] | None:
    """The arguments of a call that was seen, with places for images and weights; None where it does not fit."""
    x = seen.get(form.x)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        return None
    if form.read(module, seen, count) is None:
        return None

    def place(value: Any) -> Any:
        return _Weights(tuple(value.shape)) if isinstance(value, Tensor) and value.is_floating_point() else value

    given = {name: tree_map(place, value) for name, value in seen.items() if name != form.x}
    scalars = seen.get(form.weights) if isinstance(form.weights, str) and form.index is None else None
    if isinstance(scalars, list | tuple):
        given[form.weights] = _Weights((count,), as_list=True)
    return {form.x: _Image(tuple(x.shape), tuple(x.shape))} | given


def _smaller(image: _Image) -> list[_Image]:
    """A small image of as many channels, which is tried first, and the image."""
    small = (min(2, image.shape[0]), image.shape[1], *(min(16, size) for size in image.shape[2:]))
    return list(dict.fromkeys((_Image(small, image.full), image)))


def _draw(
    given: dict[str, Any], dtype: torch.dtype, device: torch.device, signed: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments with random numbers in their places, and the tensors among them by name, which want gradients."""
    drawn: dict[str, Tensor] = {}

    def fill(name: str, value: Any) -> Any:
        if not isinstance(value, _Image | _Weights):
            return value
        tensor = torch.randn(value.shape, dtype=torch.float64)
        if isinstance(value, _Weights) and value.shape:
            if signed:
                tensor[..., tensor.shape[-1] // 2] = 0
            else:
                tensor = tensor.softmax(-1)
        tensor = tensor.to(device, dtype).requires_grad_()
        drawn[name if name not in drawn else f"{name}, {len(drawn)}"] = tensor
        return list(tensor.unbind()) if isinstance(value, _Weights) and value.as_list else tensor

    arguments = {name: tree_map(lambda value, name=name: fill(name, value), value) for name, value in given.items()}
    return arguments, drawn


# --- both versions, side by side --------------------------------------------------------------------------------------


def _compare(
    twin: nn.Module, form: Form, given: dict[str, Any], dtype: torch.dtype, device: torch.device, merge: bool
) -> Finding:
    """Run the module as it is and with ``MixedOp`` in its place: results, gradients, buffers, in both modes."""
    for training, signed in _DRAWS:
        twin.train(training)
        arguments, drawn = _draw(given, dtype, device, signed)
        if form.read(twin, arguments, len(form.candidates(twin))) is None:
            return Finding(None, f"'{form.weights}' gives no row of {len(form.candidates(twin))} weights")
        seed, before = torch.randint(2**31, ()).item(), [buffer.clone() for buffer in twin.buffers()]

        def run() -> dict[str, dict[str, Tensor | None]]:
            torch.manual_seed(seed)  # noqa: B023 it is called in this round
            for buffer, value in zip(twin.buffers(), before, strict=True):  # noqa: B023
                buffer.data.copy_(value)
            return _results(twin, arguments, drawn)  # noqa: B023

        try:
            theirs = run()
        except Exception as failure:
            return Finding(None, f"it does not run {_circumstances(training, signed)}: {_line(failure)}")
        install(twin, form, merge)
        try:
            ours = run()
        except Exception as failure:
            return Finding(None, f"MixedOp does not run in its place: {_line(failure)}")
        finally:
            remove(twin)
        if difference := _difference(theirs, ours, _TOLERANCE[dtype]):
            return Finding(None, f"{difference} {_circumstances(training, signed)}")
    before = _held(twin, form, given, dtype, device)
    install(twin, form, merge)
    return Finding(form, "", before, _held(twin, form, given, dtype, device))


def _held(module: nn.Module, form: Form, given: dict[str, Any], dtype: torch.dtype, device: torch.device) -> float:
    """What the graph of a call keeps beside its arguments and its result, as a multiple of the image."""
    image = given[form.x]
    arguments, drawn = _draw(given | {form.x: replace(image, shape=image.full)}, dtype, device, signed=False)
    module.train()
    with LiveMemory() as memory:
        y = module(**arguments)
        return (memory.live - y.untyped_storage().nbytes()) / drawn[form.x].nbytes


def _circumstances(training: bool, signed: bool) -> str:
    kind = "are no softmax (signed, one is zero)" if signed else "are a softmax"
    return f"where the weights {kind}, in {'training' if training else 'eval'} mode"


def _results(
    module: nn.Module, arguments: dict[str, Any], drawn: dict[str, Tensor]
) -> dict[str, dict[str, Tensor | None]]:
    """What a call and its backward pass leave, by kind and name."""
    y = module(**arguments)
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns {type(y).__name__}, not one tensor")
    dy = torch.randn(y.shape, dtype=torch.float64).to(y)
    parameters = dict(module.named_parameters())
    targets = [*drawn.values(), *parameters.values()]
    gradients = torch.autograd.grad(y, targets, dy, allow_unused=True)
    inputs = gradients[: len(drawn)]
    return {
        "its result": {"": y.detach()},
        "the gradient of": {
            # An argument that has no gradient has a gradient of zero; a parameter's is also a matter of momentum.
            f" '{name}'": torch.zeros_like(tensor) if found is None else found
            for (name, tensor), found in zip(drawn.items(), inputs, strict=True)
        },
        "the parameter gradient of": {
            f" '{name}'": found for name, found in zip(parameters, gradients[len(drawn) :], strict=True)
        },
        "the buffer": {f" '{name}'": buffer.clone() for name, buffer in module.named_buffers()},
    }


def _difference(
    theirs: dict[str, dict[str, Tensor | None]], ours: dict[str, dict[str, Tensor | None]], tolerance: float
) -> str | None:
    """What differs between the results of the two versions, and by how much; None where nothing does."""
    for kind, expected in theirs.items():
        scale = max((_largest(value) for value in expected.values() if value is not None), default=0.0)
        if scale != scale or scale == float("inf"):
            return f"{kind}{next(iter(expected))} is not finite"
        for name, value in expected.items():
            found = ours[kind][name]
            if (value is None) != (found is None):
                return f"{kind}{name} is {'missing' if value is None else 'there'}, with MixedOp it is not,"
            if value is None:
                continue
            if value.shape != found.shape or value.dtype != found.dtype:
                return (
                    f"{kind}{name} is {value.dtype} {tuple(value.shape)}, with MixedOp {found.dtype} "
                    f"{tuple(found.shape)},"
                )
            apart = _largest(value.double() - found.double())
            if not apart <= tolerance * scale:
                share = apart / scale if scale else float("inf")
                return f"{kind}{name} is not that of the weighted sum (off by {share:.1%} of the largest)"
    return None


def _largest(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0
