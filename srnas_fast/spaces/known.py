"""Where search spaces are found by name: the packages beside this file, installed packages, and files of one's own."""

import pkgutil
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import srnas_fast.spaces as house
from srnas_fast.errors import InputError
from srnas_fast.spaces.own import is_own, load_code, load_object, told
from srnas_fast.spaces.space import Space

ENTRY_POINTS = "srnas_fast.spaces"  # the group in which an installed package offers spaces, as name = module:SPACE

_REGISTERED: dict[str, Space] = {}


def register_space(space: Space) -> Space:
    """Make a space known by its name, for this process; returns it.

    Raises:
        InputError: it is no Space, a configuration of it is no dataclass of defaults, or another space has its name.
    """
    if not isinstance(space, Space):
        raise InputError(f"this is no search space, but of type {type(space).__name__}; give a srnas_fast.spaces.Space")
    name = space.name
    if not isinstance(name, str) or not name.isprintable() or is_own(name) or name.strip(" -") != name or not name:
        raise InputError(f"a search space is named {name!r}; give a short text such as my-space")
    for part in ("supernet_config", "network_config", "data", "loss"):  # what the command line makes options of
        if fault := _no_settings(getattr(space, part)):
            raise InputError(f"the {part} of search space {name} {fault}")
    if (_built_in() | _REGISTERED).get(name, space) is not space:
        raise InputError(f"there is a search space {name!r} already; give yours another name")
    if name not in _built_in():
        _REGISTERED[name] = space
    return space


def register_code(path: str) -> None:
    """Run a Python file of the user's and make known the search spaces in it; raises InputError."""
    for found in list(vars(load_code(path)).values()):
        if isinstance(found, Space):
            with told(path):
                register_space(found)


def known_spaces() -> list[str]:
    """The names of all spaces, without running anybody's code but ours."""
    return list(dict.fromkeys([*_built_in(), *_REGISTERED, *(point.name for point in _offered())]))


def load_space(reference: str) -> Space:
    """The space of that name, or of ``FILE.py:NAME``, whose file is run if it was not yet: for what the user typed.

    All spaces of the file become known, as :func:`register_code` makes them: what is searched can then be trained.

    Raises:
        InputError: there is none, or its file cannot be used.
    """
    if not is_own(reference):
        return find_space(reference)
    register_code(reference.rpartition(":")[0])
    found = load_object(reference)
    with told(reference):
        return register_space(found)


def find_space(name: str) -> Space:
    """The space of that name: for what stands in a genotype or a checkpoint, too, since it runs no file.

    An installed package that offers a space of the name is imported: it was the user who installed it.

    Raises:
        InputError: there is none.

    >>> find_space("hinas-denoise").name
    'hinas-denoise'
    """
    if name in _built_in():
        return _built_in()[name]
    if name in _REGISTERED:
        return _REGISTERED[name]
    points = [point for point in _offered() if point.name == name]
    if len({point.value for point in points}) > 1:
        raise InputError(f"there are several search spaces {name!r}: {' and '.join(map(_origin, points))}; remove one")
    if points:
        with told(f"search space {name!r} of {_origin(points[0])}"):
            found = points[0].load()
            if isinstance(found, Space) and found.name != name:
                raise InputError(f"it is named {found.name!r}; its name and that of its entry point must be one")
            return register_space(found)
    raise InputError(
        f"unknown search space {name!r}; known: {', '.join(known_spaces())}; one of your own: search FILE.py:SPACE, "
        "and for what was searched in it --code FILE.py"
    )


def _no_settings(kind: Any) -> str:
    """What keeps a type from being settings: a dataclass with a default for each field; empty if nothing does."""
    if not isinstance(kind, type):
        return f"is a {type(kind).__name__}; give a class made by @dataclass"
    if not is_dataclass(kind):
        return f"is {kind.__name__} without @dataclass; write that above it"
    missing = [f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING]
    return f"is {kind.__name__} without a default for {', '.join(missing)}; give one to each field" if missing else ""


@cache
def _built_in() -> dict[str, Space]:
    """The spaces of the packages in this folder, each of which lists its own in SPACES."""
    packages = [module.name for module in pkgutil.iter_modules(house.__path__) if module.ispkg]
    spaces = [space for name in packages for space in import_module(f"{house.__name__}.{name}").SPACES]
    return {space.name: space for space in spaces}


def _offered() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINTS))


def _origin(point: EntryPoint) -> str:
    """The package that offers an entry point, and what it offers."""
    return f"{point.dist.name} ({point.value})" if point.dist else point.value
