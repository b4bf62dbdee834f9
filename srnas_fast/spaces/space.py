"""What the commands need to know of a search space, and where to find it by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from srnas_fast.errors import InputError


@dataclass(frozen=True)
class Space:
    """A search space and its task, as the search, the retraining and the command line see it.

    Args:
        name: as on the command line.
        supernet_config, supernet: ``supernet(supernet_config())`` is a module with ``architecture_parameters()``,
            ``network_parameters()``, ``architecture_weights()`` and ``genotype()``.
        network_config, network: ``network(genotype, network_config())`` is the derived network, with ``reach``.
        read_genotype: from the data of a JSON file; the result has ``save(path)``, ``graph()`` and a short text.
        random_genotype: a genotype drawn at random from a supernet configuration and a seed.
        data, loss: the configurations of the task.
        search_presets, train_presets: option name -> value, for each preset; "paper" is the default.
    """

    name: str
    supernet_config: type
    supernet: Callable[..., Any]
    network_config: type
    network: Callable[..., Any]
    read_genotype: Callable[[dict], Any]
    random_genotype: Callable[[Any, int], Any]
    data: type
    loss: type
    search_presets: dict[str, dict[str, Any]]
    train_presets: dict[str, dict[str, Any]]


SPACES = {"hinas-denoise": "srnas_fast.spaces.hinas"}


def find_space(name: str) -> Space:
    """The space of that name.

    Raises:
        InputError: there is none.

    >>> find_space("hinas-denoise").name
    'hinas-denoise'
    """
    if name not in SPACES:
        raise InputError(f"unknown search space {name!r}; known: {', '.join(SPACES)}")
    return import_module(SPACES[name]).SPACE
