"""``accelerate``: gives the mixed operations of a foreign supernet the forward pass of ``MixedOp``, in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.mixed.forms import containers, is_registered, signature_of
from srnas_fast.mixed.mixed_op import MixedOp
from srnas_fast.mixed.plan import aligned, plan
from srnas_fast.mixed.probe import probe, remembered
from srnas_fast.mixed.stand_in import install, remove, stand_in_of


@dataclass(frozen=True)
class Row:
    """One module in a report.

    Attributes:
        name: its path in the model.
        cls: its class.
        replaced: whether it computes as ``MixedOp`` now.
        why: how its candidates run, or why it was left alone.
        before, after: what the graph of one call holds for the backward pass beside its input, as a multiple of it;
            None where it was not replaced now.
        calls: the bytes of the inputs of its calls in the example run; empty without one.
    """

    name: str
    cls: str
    replaced: bool
    why: str
    before: float | None = None
    after: float | None = None
    calls: tuple[int, ...] = ()


class Report:
    """What :func:`accelerate` did with each module that has a list of candidates; ``print`` shows it as a table.

    Attributes:
        rows: one :class:`Row` per module.
    """

    def __init__(self, model: nn.Module, rows: list[Row]):
        self.rows, self._model = rows, model

    @property
    def replaced(self) -> list[str]:
        """The paths of the modules that were replaced."""
        return [row.name for row in self.rows if row.replaced]

    def restore(self) -> None:
        """Give every module of the model its own forward again."""
        restore(self._model)

    def __str__(self) -> str:
        table = [("module", "class", "", "held beside its input", "why")]
        for row in self.rows:
            held = "" if row.before is None else f"{row.before:.2f} -> {row.after:.2f} of it"
            table.append(
                (row.name or "(the model)", row.cls, "replaced" if row.replaced else "as it was", held, row.why)
            )
        return "\n".join([aligned(table), "", self._summary()])

    def _summary(self) -> str:
        count = len(self.replaced)
        line = f"{count} of {len(self.rows)} modules with a list of candidates replaced"
        before, after = (
            sum(getattr(row, when) * size for row in self.rows if row.before is not None for size in row.calls)
            for when in ("before", "after")
        )
        if before:
            line += (
                f"; for the example they held {before / 2**20:,.1f} MiB beside their inputs, now {after / 2**20:,.1f}"
            )
        return line


def accelerate(model: nn.Module, *example: Any, merge: bool = True) -> Report:
    """Let the mixed operations of a supernet that somebody else wrote compute as :class:`srnas_fast.MixedOp`, in place.

    They stay the modules they are: same parameters, ``state_dict``, arguments and results, hooks included; only their
    class becomes a subclass of its own with another ``forward``. Found are modules with a list of candidates whose
    forward takes an image and weights (one row, a list of scalars, or a table and what picks the row), also with
    PC-DARTS's partial channels; :func:`srnas_fast.mixed.register_form` teaches others.

    Nothing is believed for its looks: before a module is replaced, a copy of it runs both ways on random inputs, in
    training and in eval mode, in float64 where it can, and results, gradients and running statistics are compared.
    What does not agree is left alone, and the report says why. So a gate that normalises its weights itself, or skips
    candidates of weight zero, stays what it is. A call unlike those compared (an optional argument that is given, a
    setting of the module that has changed, other weights) runs the module's own forward, and so does a copy made by
    ``nn.DataParallel``. Under ``torch.compile`` each mixed operation is a graph break.

    Args:
        model: any module; it may itself be a mixed operation.
        example: inputs of ``model``, with which it is run once, without gradients and with its buffers and random
            numbers restored, to see how its modules are called. Needed where a form cannot be guessed; with it the
            report tells bytes.
        merge: as of ``MixedOp``.

    Returns:
        a :class:`Report`, with a row for each module that has a list of candidates and ``restore()``.

    Raises:
        InputError: ``model`` is no module.
        Exception: whatever ``model(*example)`` raises.

    >>> import torch
    >>> from torch import nn
    >>> class TheirMixedOp(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self._ops = nn.ModuleList([nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3)])
    ...
    ...     def forward(self, x, weights):
    ...         return sum(w * op(x) for w, op in zip(weights, self._ops))
    >>> supernet = nn.ModuleList([TheirMixedOp(4), nn.ReLU()])
    >>> report = accelerate(supernet)
    >>> print(report)
    module  class                   held beside its input  why
    0       TheirMixedOp  replaced  2.00 -> 0.00 of it     2 of 2 candidates fused
    <BLANKLINE>
    1 of 1 modules with a list of candidates replaced
    >>> report.restore()
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate got {type(model).__name__}; give the supernet, a torch.nn.Module")
    found = {name: module for name, module in model.named_modules() if _may_be_mixed(module)}
    seen, sizes = _watch(model, list(found.values()), example) if example else ({}, {})
    before = [module for module in found.values() if stand_in_of(module) is not None]
    findings = {
        module: probe(module, seen.get(module), merge) for module in found.values() if stand_in_of(module) is None
    }
    for module, finding in findings.items():  # only now: whatever ends the probes leaves the model as it was
        if finding.form is not None:
            install(module, finding.form, merge, finding.one_type)
    rows = []
    for name, module in found.items():
        cls, calls = type(module).__name__, sizes.get(module, ())
        if module in before:
            rows.append(Row(name, cls, True, "replaced before", calls=calls))
        elif (form := findings[module].form) is not None:
            how = _how(form.candidates(module))
            rows.append(Row(name, cls, True, how, findings[module].before, findings[module].after, calls))
        elif not _frames(module):
            rows.append(Row(name, cls, False, findings[module].why, calls=calls))
    return Report(model, rows)


def restore(model: nn.Module) -> None:
    """Undo :func:`accelerate` in a model and all its modules; modules that it did not touch stay as they are.

    >>> restore(nn.Identity())
    """
    for module in model.modules():
        if stand_in_of(module) is not None:
            remove(module)


def _may_be_mixed(module: nn.Module) -> bool:
    """Whether a module has candidates and a forward of its own to be replaced."""
    if isinstance(module, MixedOp | nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return False
    return stand_in_of(module) is not None or is_registered(type(module)) or bool(containers(module))


def _frames(module: nn.Module) -> bool:
    """Whether a module only holds mixed operations, such as a cell: each member of its lists has some replaced ones."""
    names = containers(module)
    return bool(names) and all(
        any(stand_in_of(part) is not None for part in member.modules())
        for name in names
        for member in module._modules[name].children()
    )


def _how(candidates: list[nn.Module]) -> str:
    """How the candidates of a mixed operation run, in a few words."""
    opaque = [type(candidates[k]).__name__ for k in plan(candidates, merge=True).opaque]
    fused = f"{len(candidates) - len(opaque)} of {len(candidates)} candidates fused"
    return fused + (f", opaque: {', '.join(opaque)}" if opaque else "")


def _watch(
    model: nn.Module, modules: list[nn.Module], example: tuple
) -> tuple[dict[nn.Module, dict[str, Any]], dict[nn.Module, tuple[int, ...]]]:
    """Run the model once: the arguments of the first call of each module, and the bytes of the image in every call."""
    seen: dict[nn.Module, dict[str, Any]] = {}
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if "forward" in vars(module):
            return
        given = signature_of(type(module)).bind(*args, **kwargs).arguments
        seen.setdefault(module, remembered(given))
        images = [value.nbytes for value in given.values() if isinstance(value, Tensor) and value.dim() > 2]
        sizes[module] = (*sizes.get(module, ()), *images[:1])

    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad(), _kept(model):
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return seen, sizes


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Leave buffers and random numbers as they were."""
    before = [
        (part._buffers, name, buffer, buffer.clone())
        for part in model.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for home, name, buffer, value in before:
                home[name] = buffer  # a forward may have put another in its place
                buffer.copy_(value)
