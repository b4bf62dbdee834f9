"""What the commands need to know of a search space."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.files import replacing
from srnas_fast.spaces.task import Task


@dataclass(frozen=True)
class Space:
    """A search space and its task, as the search, the retraining and the command line see it.

    Args:
        name: as on the command line.
        supernet_config, supernet: ``supernet(supernet_config())`` is the network that the algorithm searches in: for
            "bilevel" a :class:`srnas_fast.spaces.DifferentiableSupernet`; for "reinforce" a module with
            ``forward(x, genotype)`` and ``cost(genotype, by, side)``.
        network_config, network: ``network(genotype, network_config())`` is the derived network, with ``reach``,
            ``channels`` and ``smallest``; one that enlarges has ``scale`` and ``grid``, too.
        read_genotype: from the data of a JSON file; the result is a dataclass of plain data with a short text and
            ``graph()``, the (title, edges) of its pictures.
        random_genotype: a genotype drawn at random from a supernet configuration and a seed; None: there is no such
            peer.
        task: what is done with images, and how results are measured.
        data, loss: the configurations of the task.
        search_presets, train_presets: for each preset its settings by group; "paper" is the default.
        algorithm: what searches: "bilevel", "reinforce", or a class of your own (see :mod:`srnas_fast.search`).
        policy: what draws architectures for "reinforce", from a supernet configuration: a
            :class:`srnas_fast.spaces.Policy`.
        candidate_costs: the cost of each candidate operation, from a supernet configuration and params or madds; the
            supernet then has ``candidate_weights()`` with a row for each choice. None: it knows no such costs.
        expected_cost: of a supernet and params or madds, what its architecture is expected to cost, a tensor () with a
            gradient, as a share of the most that one can: where a candidate's cost depends on other choices. None: it
            knows no such cost.
    """

    name: str
    supernet_config: type
    supernet: Callable[..., Any]
    network_config: type
    network: Callable[..., Any]
    read_genotype: Callable[[dict], Any]
    task: type[Task]
    data: type
    loss: type
    random_genotype: Callable[[Any, int], Any] | None = None
    search_presets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"paper": {}})
    train_presets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"paper": {}})
    algorithm: str | type = "bilevel"
    policy: Callable[[Any], Any] | None = None
    candidate_costs: Callable[[Any, str], list[int]] | None = None
    expected_cost: Callable[[Any, str], Tensor] | None = None

    def search_preset(self, name: str) -> dict[str, dict[str, Any]]:
        """The settings of a search preset, by group; groups that it does not name keep their defaults."""
        return chosen_preset(self.search_presets, name)

    def train_preset(self, name: str) -> dict[str, dict[str, Any]]:
        """The settings of a retraining preset, by group; groups that it does not name keep their defaults."""
        return chosen_preset(self.train_presets, name)

    def save_genotype(self, genotype: Any, path: str | os.PathLike) -> None:
        """Write a genotype as JSON, with the space's name, by which it is read again."""
        name = {"space": self.name}  # first in the file, and not to be replaced by a field of the genotype
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(name | asdict(genotype) | name, indent=1) + "\n")

    def at_scale(self, name: str, scale: int) -> "Space":
        """The same space under another name, whose presets enlarge ``scale`` times in search and training."""

        def scaled(presets: dict[str, dict[str, dict[str, Any]]], group: str) -> dict[str, dict[str, dict[str, Any]]]:
            return {
                preset: groups | {group: {"scale": scale} | groups.get(group, {})} for preset, groups in presets.items()
            }

        return replace(
            self,
            name=name,
            search_presets=scaled(self.search_presets, "supernet"),
            train_presets=scaled(self.train_presets, "network"),
        )


def chosen_preset(presets: dict[str, Any], name: str) -> Any:
    """The preset of that name; raises InputError, with the names there are, if it is unknown."""
    if name not in presets:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(presets)}")
    return presets[name]
