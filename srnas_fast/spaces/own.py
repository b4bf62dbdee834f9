"""Code of the user's own: search spaces and candidate operations from Python files that the user named.

A genotype or a checkpoint may come from anybody, so the names in it run nothing: they find what was loaded before.
"""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import srnas_fast
from srnas_fast.errors import InputError

_LOADED: dict[str, ModuleType] = {}  # by the file's name, which is how genotypes know it
_NOT_THEIRS = tuple(str(Path(package.__file__).parent) + os.sep for package in (srnas_fast, torch)) + ("<frozen",)


def is_own(name: str) -> bool:
    """Whether a name is one of the user's code, ``FILE.py:NAME``.

    >>> is_own("my_ops.py:MyBlock"), is_own("conv_3x3")
    (True, False)
    """
    return ".py:" in name


def short_name(reference: str) -> str:
    """The name by which a genotype knows an object of the user's: without the folder of its file.

    >>> short_name("code/my_ops.py:MyBlock"), short_name("conv_3x3")
    ('my_ops.py:MyBlock', 'conv_3x3')
    """
    return Path(reference).name if is_own(reference) else reference


def brief(name: str) -> str:
    """An operation in a few letters, for the text of a genotype; one of the user's own by its class.

    >>> " ".join(map(brief, ["con_c_3x3", "dil_conv_5x5", "conv_1x1", "skip_connect", "my_ops.py:MyBlock"]))
    'con3 dil5 conv1 skip MyBlock'
    """
    if is_own(name):
        return name.rpartition(":")[2]
    return re.sub(r"(_c|_conv)?_(\d)x\d$", r"\2", name).removesuffix("_connect").removesuffix("olution")


def load_code(path: str | os.PathLike) -> ModuleType:
    """Run a Python file of the user's, once a process; its objects can then be found by the names ``FILE.py:NAME``.

    As in a script, the file may import its neighbours.

    Raises:
        InputError: there is no such file, it is no Python, it raises, or another file of its name is loaded.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{path}: no such Python file; give the .py file that holds your code")
    file, found = path.resolve(), _LOADED.get(path.name)
    if found is not None:
        if found.__file__ != str(file):
            raise InputError(f"{path} and {found.__file__} have one name, which genotypes could not tell apart; rename")
        return found
    name = f"srnas_fast_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    _LOADED[path.name] = module  # already now: errors are told by its lines
    sys.path.append(str(file.parent))
    try:
        with told(f"{path} cannot be run"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _LOADED[path.name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module


def loaded_code() -> list[str]:
    """The files of the user's that were run, as paths."""
    return [module.__file__ for module in _LOADED.values()]


def load_object(reference: str) -> Any:
    """The object that ``FILE.py:NAME`` names, its file run if it was not yet: for what the user typed.

    Raises:
        InputError: the file cannot be used, or holds no such name.
    """
    path, _, name = reference.rpartition(":")
    return _member(load_code(path), name)


def own_object(reference: str) -> Any:
    """The object that ``FILE.py:NAME`` names, of a file that was loaded before: for what stands in a genotype.

    Raises:
        InputError: no such file is loaded, or it holds no such name.
    """
    reference = short_name(reference)  # the folder is a stranger's
    file, _, name = reference.rpartition(":")
    module = _LOADED.get(file)
    if module is None:
        raise InputError(
            f"{reference} is code of somebody's own, which only you can let run: name its file by --code {file}, or "
            f"call srnas_fast.spaces.load_code({file!r}) before"
        )
    return _member(module, name)


def candidate(name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What makes the candidate operation of that name: one of the space's own, or a class from a loaded file.

    No other callable of a file, since the name may stand in a stranger's genotype: building a module does no harm.

    Args:
        name: a name in ``known``, or ``FILE.py:CLASS`` of a class of modules that takes a number of channels.
        known: the space's own candidates.

    Raises:
        InputError: there is no such candidate; names those there are. Called, what it returns raises it with the place
            where the user's class fails, and where that is built but :func:`require_same_shape` refuses it.

    >>> candidate("skip", {"skip": lambda channels: None})(8)
    >>> candidate("dance", {"skip": None})
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: unknown candidate operation 'dance'; known: skip, and your own as FILE.py:CLASS
    """
    if isinstance(name, str) and name in known:
        return known[name]
    if not isinstance(name, str) or not is_own(name):
        raise InputError(
            f"unknown candidate operation {name!r}; known: {', '.join(known)}, and your own as FILE.py:CLASS"
        )
    found = own_object(name)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise InputError(
            f"{name} is {kind}; a candidate operation is a class derived from torch.nn.Module that takes a number of "
            "channels"
        )
    return partial(_built, name, found)


def require_candidates(setting: str, names: Sequence[str], known: Mapping[str, Callable[..., Any]]) -> None:
    """Refuse a list of candidates that a user typed if it is empty or holds an unknown or a repeated one.

    The files of the user's own are run, so that :func:`candidate` finds their classes by their short names.

    Args:
        setting: as on the command line, such as supernet.candidates.
        names: what the user gave.
        known: the space's own candidates.

    Raises:
        InputError: names the setting and the fault.

    >>> require_candidates("supernet.candidates", ["skip", "skip"], {"skip": None})
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: supernet.candidates names skip twice; name each candidate once
    """
    if not isinstance(names, list | tuple) or not names:
        raise InputError(f"{setting} is {names!r}; give at least one of {', '.join(known)}, or your own FILE.py:CLASS")
    for name in names:
        if isinstance(name, str) and name not in known and is_own(name):
            load_object(name)
            name = short_name(name)
        try:
            candidate(name, known)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
    short = [short_name(name) for name in names]
    for name in short:
        if short.count(name) > 1:
            raise InputError(f"{setting} names {name} twice; name each candidate once")


@torch.inference_mode(False)  # tensors made there do not tell whether they were changed
@torch.no_grad()
def require_same_shape(name: str, module: nn.Module, channels: int) -> None:
    """Refuse a candidate of the user's own that does not keep its input and the shape of it, in evaluation mode.

    Raises:
        InputError: names the candidate and what it does, or the place where its code fails.

    >>> require_same_shape("my_ops.py:Pool", nn.MaxPool2d(2), 4)
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: my_ops.py:Pool makes (1, 4, 4, 4) of (1, 4, 8, 8); a candidate keeps the shape
    """
    x, modes = torch.zeros(1, channels, 8, 8), [(part, part.training) for part in module.modules()]
    shape, version = tuple(x.shape), x._version
    module.eval()
    with told(f"{name} cannot run on {shape}"):
        y = module(x)
    for part, training in modes:
        part.training = training
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        made = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise InputError(f"{name} makes {made} of {shape}; a candidate keeps the shape")
    if x._version != version:
        raise InputError(f"{name} changes its input in place, which other edges read, too; build it with inplace=False")


@contextmanager
def told(what: str) -> Iterator[None]:
    """What the user's code raises inside the block becomes one line: ``what``, the error, and its file and line.

    >>> with told("counting failed"):
    ...     1 / 0
    Traceback (most recent call last):
    ...
    srnas_fast.errors.InputError: counting failed: ZeroDivisionError: division by zero (<doctest ...>, line 2)
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a script may end by sys.exit()
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {kind}{said}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The file and the line of the user's code where an error happened, in brackets; nothing if it was ours."""
    if isinstance(error, SyntaxError):
        places = [(error.filename, error.lineno)]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
        # Not those of a library that the user's code called. What lies beside a loaded file is the user's, too.
        folders = {Path(module.__file__).parent for module in _LOADED.values()}
        places = [place for place in places if Path(place[0]).parent in folders] or places
    if not places or None in places[-1]:
        return ""
    file, line = places[-1]
    with suppress(ValueError):
        file = Path(file).relative_to(Path.cwd())
    return f" ({file}, line {line})"


def _built(name: str, kind: type[nn.Module], channels: int) -> nn.Module:
    """A candidate of the user's own, which every supernet and derived network builds here."""
    with told(f"{name} cannot be built of {channels} channels"):
        module = kind(channels)
    require_same_shape(name, module, channels)
    return module


def _member(module: ModuleType, name: str) -> Any:
    if name not in vars(module):  # not getattr: a module may define what that runs
        public = [other for other in vars(module) if not other.startswith("_")]
        raise InputError(f"{Path(module.__file__).name} holds no {name!r}; it holds {', '.join(public) or 'nothing'}")
    return vars(module)[name]
