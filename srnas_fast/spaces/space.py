"""What the commands need to know of a search space, and where to find it by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from srnas_fast.errors import InputError
from srnas_fast.spaces.task import Task


@dataclass(frozen=True)
class Space:
    """A search space and its task, as the search, the retraining and the command line see it.

    Args:
        name: as on the command line.
        supernet_config, supernet: ``supernet(supernet_config())`` is a module with ``architecture_parameters()``,
            ``network_parameters()``, ``architecture_weights()``, ``support()``, ``sparsity()`` and ``genotype()``;
            its ``forward`` takes images and a support, and a search sets its ``radius``.
        network_config, network: ``network(genotype, network_config())`` is the derived network, with ``reach``,
            ``channels`` and ``smallest``.
        read_genotype: from the data of a JSON file; the result has ``save(path)``, ``graph()`` and a short text.
        random_genotype: a genotype drawn at random from a supernet configuration and a seed.
        task: what is done with images, and how results are measured.
        data, loss: the configurations of the task.
        search_presets, train_presets: for each preset its settings by group; "paper" is the default.
        candidate_costs: the cost of each candidate operation, from a supernet configuration and params or madds; the
            supernet then has ``candidate_weights()`` with a row for each choice. None: it knows no costs.
    """

    name: str
    supernet_config: type
    supernet: Callable[..., Any]
    network_config: type
    network: Callable[..., Any]
    read_genotype: Callable[[dict], Any]
    random_genotype: Callable[[Any, int], Any]
    task: type[Task]
    data: type
    loss: type
    search_presets: dict[str, dict[str, dict[str, Any]]]
    train_presets: dict[str, dict[str, dict[str, Any]]]
    candidate_costs: Callable[[Any, str], list[int]] | None = None

    def search_preset(self, name: str) -> dict[str, dict[str, Any]]:
        """The settings of a search preset, by group."""
        return {"supernet": {}, "data": {}, "loss": {}, "complexity": {}, "search": {}} | chosen_preset(
            self.search_presets, name
        )

    def train_preset(self, name: str) -> dict[str, dict[str, Any]]:
        """The settings of a retraining preset, by group."""
        return {"network": {}, "data": {}, "loss": {}, "train": {}} | chosen_preset(self.train_presets, name)


def chosen_preset(presets: dict[str, Any], name: str) -> Any:
    """The preset of that name; raises InputError, with the names there are, if it is unknown."""
    if name not in presets:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(presets)}")
    return presets[name]


SPACES = {"hinas-denoise": "srnas_fast.spaces.hinas", "dlsr-x2": "srnas_fast.spaces.dlsr"}


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
