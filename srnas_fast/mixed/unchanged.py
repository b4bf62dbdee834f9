"""Whether a candidate is still what it was recognised as: looked at before each call, so it must cost next to nothing.

Two ways to look. A photograph is a list of all that recognition depends on, compared with ``==``: it decides. A watch,
where the compiled backend is there, confirms in a few microseconds that nothing was touched at all: every attribute
and every entry is the very object it was. Where it cannot, the photograph is taken anew.
"""

from collections.abc import Collection, Iterable

from torch import Tensor, nn
from torch.nn.modules import module as for_all_modules

from srnas_fast.backends import cpu_kernels
from srnas_fast.mixed.unfold import HOOKS, HOOKS_FOR_ALL, SETTINGS, UNFOLD, hooked, hooks_for_all

MODES = ("training", "eps", "momentum", "track_running_stats")  # of a norm: they may change from call to call


def photograph(modules: tuple[nn.Module, ...]) -> list:
    """What recognition depends on, to be compared with ``==``.

    An attribute that is added to a module, such as a ``forward`` of its own, shows in their number. Tensors are told
    apart by id: a new one at the address of one that is gone can differ only in what stands beside the id.
    """
    shot = [hooks_for_all(), (*UNFOLD.values(),)]
    for module in modules:
        state, cls = module.__dict__, type(module)
        shot += (cls, len(state), hooked(state))
        if children := state["_modules"]:
            shot += children.items()
        if settings := SETTINGS.get(cls):
            shot.append([state[name] for name in settings])
        for tensor in (*state["_parameters"].values(), *state["_buffers"].values()):
            if tensor is None:
                shot.append(None)
            else:
                # size(), since a tensor still to be initialised refuses to tell its shape
                shot += (id(tensor), type(tensor), tensor.dtype, tensor.device, tensor.size())
    return shot


def attributes_of(module: nn.Module) -> list:
    """The values that an ``unfold`` may have looked at."""
    return [value for name, value in module.__dict__.items() if name != "training"]


def watch(modules: Iterable[nn.Module], also: Iterable[dict] = ()):
    """Something whose ``holds()`` tells whether nothing of what a photograph shows was touched, nor the modes of a
    norm; None where there is no compiled backend. Tensors are watched as objects, their shapes are not.

    Args:
        also: dicts that must keep their entries, too.
    """
    compiled = cpu_kernels()
    if compiled is None:
        return None
    everywhere = vars(for_all_modules)
    objects, sizes, contents = [], [], [UNFOLD, *also]
    entries = [(everywhere, name, everywhere[name]) for name in HOOKS_FOR_ALL]
    contents += [everywhere[name] for name in HOOKS_FOR_ALL]
    for module in modules:
        state, cls = module.__dict__, type(module)
        objects.append(module)
        sizes.append(state)
        held = [*HOOKS, "_modules", "_parameters", "_buffers"]
        contents += [state[name] for name in held]
        names = [*held, *SETTINGS.get(cls, ())]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            names += MODES
        if cls in UNFOLD:
            names = {*names, *state} - {"training"}
        entries += [(state, name, state[name]) for name in names if name in state]
    return compiled.Watch(objects, sizes, entries, contents)


def watch_attributes(modules: Iterable[nn.Module], without: Collection[str | None]):
    """The same for all attributes and submodules of some modules but those named; None without a compiled backend."""
    compiled = cpu_kernels()
    if compiled is None:
        return None
    states = [module.__dict__ for module in modules]
    entries = [(state, name, value) for state in states for name, value in state.items() if name not in without]
    return compiled.Watch([], states, entries, [state["_modules"] for state in states])


def shapes_of(tensors: Iterable[Tensor]) -> list:
    """What a tensor may change while it stays the same object; to be compared with ``==``. Another device comes with
    another address."""
    return [(t.data_ptr(), t.dtype, t.shape, t.is_contiguous()) for t in tensors]
