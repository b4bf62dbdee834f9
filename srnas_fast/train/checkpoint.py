"""From files to a genotype and to a trained network."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.search.run import read_checkpoint
from srnas_fast.spaces import Space, find_space
from srnas_fast.spaces.own import told


def read_genotype(path: str | os.PathLike) -> tuple[Space, Any]:
    """The search space and the genotype that a file, or the folder of a run, holds.

    Raises:
        InputError: there is none, it is no JSON, or it names no space and architecture known here.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "genotype.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no genotype at {path}; give a genotype.json or the folder of a finished search") from None
    except (ValueError, RecursionError):  # neither JSON nor text, or nested beyond reason
        raise InputError(f"{path} is not JSON; give the genotype.json that a search wrote") from None
    if not isinstance(data, dict) or not isinstance(data.get("space"), str):
        raise InputError(f"{path} is no genotype: it names no search space; give the genotype.json that a search wrote")
    space = find_space(data.pop("space"))
    with told(f"{path}, read by {space.name}"):
        return space, space.read_genotype(data)


@dataclass
class Trained:
    """A trained network, ready to run.

    Args:
        name: of the run's folder, or of the file.
        space: the search space it comes from.
        network: in evaluation mode.
        config: everything the training was asked for; of a network without its training: space, genotype and network.
    """

    name: str
    space: Space
    network: nn.Module
    config: dict[str, Any]


def load_network(run: str | os.PathLike) -> Trained:
    """The network of a training run's folder or checkpoint.

    Raises:
        InputError: there is no checkpoint, it is damaged, or not that of a training.
    """
    path = Path(run)
    state = read_checkpoint(path, "train")
    folder = Path(os.path.abspath(path if path.is_dir() else path.parent))  # "." has a name, too
    return rebuilt(folder.name, path, state["config"], state.get("network"))


def rebuilt(name: str, path: Path, config: dict[str, Any], weights: Any) -> Trained:
    """The network that ``config`` describes by its space, genotype and network, with these weights.

    Raises:
        InputError: the settings are not known here, or the weights are of another network; names ``path``.
    """
    try:
        space = find_space(config["space"])
        network = space.network(space.read_genotype(config["genotype"]), space.network_config(**config["network"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds settings that are not known here ({error}); was it another version?") from None
    try:
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError):
        raise InputError(f"the weights in {path} do not fit its own network; the file is damaged or altered") from None
    return Trained(name, space, network.eval(), config)
