"""Whether a foreign mixed operation computes what ``MixedOp`` does: both run on made-up inputs, and are compared."""

import copy
import inspect
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from srnas_fast.mixed.forms import Form, forms_of, is_registered, required, signature_of
from srnas_fast.mixed.stand_in import around, install, remove, stand_in_of

_PARTS = (1, 4, 2, 8)  # of the channels, into which partial channels may cut them
_SIZES = ((8, 6), (32, 24))  # of images; some candidates need the larger ones
_SMALL = 4096  # numbers of a tensor that is kept as it was seen; of a larger one only its shape counts
# How far results may be apart, as a share of the largest number among those of one kind.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        form: in which both versions agree; None: in none.
        why: why the module stays as it is; empty where it does not.
        one_type: whether they agree only where all numbers are of one type, and not under autocast.
        before, after: what the graph of one call holds for the backward pass beside its input, as a multiple of that.
    """

    form: Form | None
    why: str = ""
    one_type: bool = False
    before: float | None = None
    after: float | None = None


def probe(module: nn.Module, seen: dict[str, Any] | None, merge: bool) -> Finding:
    """Find a form in which ``module`` is the weighted sum of its candidates; works on a copy.

    Args:
        module: what may be a mixed operation.
        seen: the arguments of one of its calls by name, as ``remembered``, where one was seen.
        merge: as of ``MixedOp``.
    """
    try:
        if "forward" in vars(module):
            return Finding(None, "it has a forward of its own, set as an attribute")
        if next(forms_of(module), None) is None:
            return Finding(None, _why_none(module, []))
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=_cards(module)):
            return _probe(module, seen, merge)
    except Exception as failure:  # whatever a stranger's module may do: it stays as it is
        return Finding(None, f"a probe failed: {_line(failure)}")


def remembered(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call without their large tensors' numbers, so that they keep no memory."""

    def small(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone() if value.numel() <= _SMALL else value.detach().to("meta")

    return {name: tree_map(small, value) for name, value in given.items()}


def _probe(module: nn.Module, seen: dict[str, Any] | None, merge: bool) -> Finding:
    tensors = [*module.parameters(), *module.buffers()]
    if any(map(is_lazy, tensors)):
        return Finding(None, "its parameters are still to be initialised; run the model once before")
    if any(tensor.is_meta for tensor in tensors):
        return Finding(None, "it is on the meta device, where nothing can be compared")
    twin = _twin(module)
    device = tensors[0].device if tensors else torch.device("cpu")
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    disagreed, failed, row_fits = [], [], False
    for dtype in dict.fromkeys((torch.float64, own)):
        twin.to(dtype)
        for form in forms_of(module):
            if row_fits and form.index is not None:
                break  # no table was meant
            for cut, given in _calls(form, module, seen):
                if held := _holds_tensors(twin, cut):
                    return Finding(None, f"it holds {held} beside its candidates")
                try:  # a wrong guess fails in ways of its own
                    with torch.no_grad():
                        _Call(twin.train(), given, _DRAWS[0], dtype, device).run()
                except Exception as failure:
                    failed.append(_line(failure))
                    continue
                finding = _compare(twin, cut, given, dtype, own, device, merge)
                if finding.form is not None:
                    return finding
                disagreed.append(finding)
                if seen is None:  # the arguments fit, so further guesses at them are idle
                    row_fits = row_fits or form.index is None
                    break
        if disagreed:
            return disagreed[0]  # that of the likeliest guess
    return Finding(None, _why_none(module, failed))


def _twin(module: nn.Module) -> nn.Module:
    """A copy to experiment with: without hooks, all parameters wanting gradients and none of them zero."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
            if not parameter.any():  # a candidate that starts at zero would agree with anything
                nn.init.normal_(parameter)
    return twin


def _holds_tensors(module: nn.Module, form: Form) -> str | None:
    """The name of a parameter, buffer or other tensor that is not a candidate's: it may change what is computed."""
    for path, part in around(module, form):
        for name, value in (*part._parameters.items(), *part._buffers.items(), *vars(part).items()):
            if isinstance(value, Tensor):
                return f"'{path}.{name}'" if path else f"'{name}'"
    return None


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


def _cards(module: nn.Module) -> set[torch.device]:
    """The GPUs whose random numbers a module may draw."""
    return {parameter.device for parameter in module.parameters() if parameter.is_cuda}


# --- which calls to try -----------------------------------------------------------------------------------------------


class _Draw(NamedTuple):
    """How a comparison is made: the mode, the kind of weights, and whose gradients are recorded."""

    training: bool
    weights: str
    gradients: str = "all"

    def __str__(self) -> str:
        mode = "training" if self.training else "eval"
        rest = {"all": "", "not the weights'": ", which want no gradient", "none": ", without gradients"}
        return f"where the weights are {self.weights}{rest[self.gradients]}, in {mode} mode"


_DRAWS = (
    _Draw(True, "a softmax"),
    _Draw(True, "signed, one of them zero"),
    _Draw(False, "evenly spaced from -1.5 to 2.5"),
    _Draw(True, "one-hot", "not the weights'"),
    _Draw(False, "a softmax", "none"),
)


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

    def draw(self, kind: str) -> Tensor:
        """Of one of the kinds of ``_DRAWS``, along the last dimension."""
        numbers = torch.randn(self.shape, dtype=torch.float64)
        if not self.shape:
            return numbers
        count = self.shape[-1]
        if kind == "a softmax":
            return numbers.softmax(-1)
        if kind == "one-hot":
            return nn.functional.one_hot(numbers.argmax(-1), count).double()
        if kind == "signed, one of them zero":
            numbers[..., count // 2] = 0
            return 3 * numbers
        return torch.linspace(-1.5, 2.5, count, dtype=torch.float64).expand(self.shape).clone()


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
    return [{form.weights: _Weights((getattr(module, form.index) + 3, count))}]


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
    """A small image of as many channels, which is tried first, and the image; of either a few."""
    few = (min(2, image.shape[0]), image.shape[1])
    small = _Image((*few, *(min(16, size) for size in image.shape[2:])), image.full)
    return list(dict.fromkeys((small, _Image((*few, *image.shape[2:]), image.full))))


class _Call:
    """A call of a module: arguments with random numbers in their places.

    Attributes:
        arguments: by name.
        drawn: the tensors among them, by a name that tells them apart.
    """

    def __init__(self, module: nn.Module, given: dict[str, Any], draw: _Draw, dtype: torch.dtype, device: torch.device):
        self.module, self.drawn = module, {}

        def fill(name: str, value: Any) -> Any:
            if not isinstance(value, _Image | _Weights):
                return value
            is_weights = isinstance(value, _Weights)
            numbers = value.draw(draw.weights) if is_weights else torch.randn(value.shape, dtype=torch.float64)
            tensor = numbers.to(device, dtype)
            tensor.requires_grad_(draw.gradients == "all" or (draw.gradients != "none" and not is_weights))
            self.drawn[name if name not in self.drawn else f"{name}[{len(self.drawn)}]"] = tensor
            return list(tensor.unbind()) if is_weights and value.as_list else tensor

        self.arguments = {
            name: tree_map(lambda value, name=name: fill(name, value), value) for name, value in given.items()
        }

    def run(self) -> Any:
        """What the module returns."""
        signature = signature_of(type(self.module))
        bound = inspect.BoundArguments(
            signature, {name: self.arguments[name] for name in signature.parameters if name in self.arguments}
        )
        return self.module(*bound.args, **bound.kwargs)


# --- both versions, side by side --------------------------------------------------------------------------------------


def _compare(
    twin: nn.Module,
    form: Form,
    given: dict[str, Any],
    dtype: torch.dtype,
    own: torch.dtype,
    device: torch.device,
    merge: bool,
) -> Finding:
    """Run the module as it is and with ``MixedOp`` in its place: results, gradients, buffers, in both modes."""
    for draw in _DRAWS:
        call = _Call(twin.train(draw.training), given, draw, dtype, device)
        if form.read(twin, call.arguments, len(form.candidates(twin))) is None:
            return Finding(None, f"'{form.weights}' gives no row of {len(form.candidates(twin))} weights")
        if why := _difference(call, form, merge, draw, _TOLERANCE[dtype]):
            return Finding(None, f"{why} {draw}")
        if draw is _DRAWS[0] and form.index in vars(twin):
            # The attribute that picks the row, or one that happened to have its value? From now on it is another.
            row = getattr(twin, form.index)
            setattr(twin, form.index, row - 1 if row else 1)
    one_type = _wants_one_type(twin, form, given, own, device, merge)
    twin.to(dtype).train()
    image = given[form.x]
    for shape in (image.full, image.shape):  # some candidates take images of one size only
        try:
            call = _Call(twin, given | {form.x: replace(image, shape=shape)}, _DRAWS[0], dtype, device)
            before = _held(call, form)
            with _installed(twin, form, merge):
                return Finding(form, "", one_type, before, _held(call, form))
        except Exception as failure:
            why = _line(failure)
    return Finding(None, f"its memory cannot be measured: {why}")


@contextmanager
def _installed(module: nn.Module, form: Form, merge: bool) -> Iterator[None]:
    install(module, form, merge, one_type=False)
    try:
        yield
    finally:
        remove(module)


def _held(call: _Call, form: Form) -> float:
    """What the graph of a call keeps beside its arguments and its result, as a multiple of the image."""
    from srnas_fast.metrics import LiveMemory  # not before it is needed: scikit-image comes with it

    with LiveMemory() as memory:
        y = call.run()
        return (memory.live - y.untyped_storage().nbytes()) / call.drawn[form.x].nbytes


def _wants_one_type(
    twin: nn.Module, form: Form, given: dict[str, Any], own: torch.dtype, device: torch.device, merge: bool
) -> bool:
    """Whether, under autocast, the module's result is of another type than that of ``MixedOp``, or another."""
    dtype = torch.bfloat16 if torch.amp.is_autocast_available(device.type) else None
    if dtype is None or own == torch.float64:
        return True
    call = _Call(twin.to(torch.float32).eval(), given, _DRAWS[-1], torch.float32, device)
    try:
        with torch.autocast(device.type, dtype):
            return bool(_difference(call, form, merge, _DRAWS[-1], _TOLERANCE[dtype]))
    except Exception:
        return True


Results = dict[str, dict[str, Tensor | None]]  # by kind and name


def _difference(call: _Call, form: Form, merge: bool, draw: _Draw, tolerance: float) -> str | None:
    """How the module's own run differs from one with ``MixedOp`` in its place; None where it does not."""
    twin, seed = call.module, int(torch.randint(2**31, ()))
    buffers = [buffer.clone() for buffer in twin.buffers()]

    def run() -> Results:
        torch.manual_seed(seed)
        for buffer, value in zip(twin.buffers(), buffers, strict=True):
            buffer.data.copy_(value)
        return _results(call, draw)

    before, drawn = _attributes(twin, form), _foreign_randomness()
    try:
        theirs = run()
    except Exception as failure:
        return f"it does not run ({_line(failure)})"
    if changed := _changed(before, _attributes(twin, form)):
        return f"its forward sets {changed}"
    if drawn != _foreign_randomness():
        return "it draws random numbers that are not torch's"
    with _installed(twin, form, merge):
        try:
            ours = run()
        except Exception as failure:
            return f"MixedOp does not run in its place ({_line(failure)})"
        if stand_in_of(twin).op is None:
            return "its own forward had to run all the same"
    return _disagreement(theirs, ours, tolerance)


def _attributes(module: nn.Module, form: Form) -> dict[tuple[str, str], tuple[Any, int]]:
    """Everything that a forward may set outside the candidates, and how long it is."""
    return {
        (path, name): (value, len(value) if isinstance(value, list | dict | set) else 0)
        for path, part in around(module, form)
        for name, value in vars(part).items()
    }


def _changed(before: dict, after: dict) -> str | None:
    for key in before | after:
        (old, length), (new, now) = (where.get(key, (None, -1)) for where in (before, after))
        if old is not new or length != now:
            return f"'{'.'.join(filter(None, key))}'"
    return None


def _foreign_randomness() -> tuple:
    """The states of the generators that are not torch's."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tobytes(), *rest


def _results(call: _Call, draw: _Draw) -> Results:
    """What a call and its backward pass leave."""
    with torch.set_grad_enabled(draw.gradients != "none"):
        y = call.run()
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns {type(y).__name__}, not one tensor")
    results: Results = {"its result": {"": y.detach()}}
    if draw.gradients != "none":
        inputs = {name: tensor for name, tensor in call.drawn.items() if tensor.requires_grad}
        parameters = dict(call.module.named_parameters())
        dy = torch.randn(y.shape, dtype=torch.float64).to(y)
        found = torch.autograd.grad(y, [*inputs.values(), *parameters.values()], dy, allow_unused=True)
        # An argument that has no gradient has one of zero; a parameter's is also a matter of momentum.
        results["the gradient of"] = {
            f" '{name}'": torch.zeros_like(tensor) if gradient is None else gradient
            for (name, tensor), gradient in zip(inputs.items(), found, strict=False)
        }
        results["the parameter gradient of"] = {
            f" '{name}'": gradient for name, gradient in zip(parameters, found[len(inputs) :], strict=True)
        }
    results["the buffer"] = {f" '{name}'": buffer.clone() for name, buffer in call.module.named_buffers()}
    return results


def _disagreement(theirs: Results, ours: Results, tolerance: float) -> str | None:
    """What differs between the results of the two versions, and by how much; None where nothing does."""
    for kind, expected in theirs.items():
        scale = max((_largest(value) for value in expected.values() if value is not None), default=0.0)
        if not math.isfinite(scale):
            return f"{kind}{next(iter(expected))} is not finite"
        for name, value in expected.items():
            found = ours[kind][name]
            if (value is None) != (found is None):
                return f"{kind}{name} is {'missing' if value is None else 'there'}, with MixedOp it is not,"
            if value is None:
                continue
            if (value.shape, value.dtype) != (found.shape, found.dtype):
                theirs_is, ours_is = (f"{tuple(t.shape)} {t.dtype}" for t in (value, found))
                return f"{kind}{name} is {theirs_is}, with MixedOp {ours_is},"
            apart = _largest(value.double() - found.double())
            if not apart <= tolerance * scale:
                share = apart / scale if scale else float("inf")
                return f"{kind}{name} is not that of the weighted sum (off by {share:.1%} of the largest)"
    return None


def _largest(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0
