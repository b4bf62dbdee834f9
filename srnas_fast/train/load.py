"""``load``: a trained network from whatever kind of file holds it."""

import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from srnas_fast.errors import InputError
from srnas_fast.spaces import find_space
from srnas_fast.train.checkpoint import Trained, load_network, rebuilt

NETWORK = "srnas_fast network 1"  # the format that a safetensors file names in its metadata


_TAKEN = (
    "give the folder of a training, its checkpoint.pt, a .safetensors file that `srnas-fast export` wrote, or the .pt "
    "file that the authors of DLSR published"
)


def load(path: str | os.PathLike) -> Trained:
    """The trained network in the folder of a training, its checkpoint, an exported file or a published checkpoint.

    Args:
        path: the folder of a training or its ``checkpoint.pt``; a ``.safetensors`` file that ``export`` wrote; or the
            ``.pt`` file that the authors of DLSR published.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        InputError: there is no such file, it is damaged, or none of these; names what does not fit.

    Example::

        from srnas_fast.train import load
        network = load("net.safetensors").network
    """
    path = Path(path)
    if path.suffix == ".onnx":
        raise InputError(f"{path}: ONNX files are for other programs; {_TAKEN}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {_TAKEN}")
    if path.suffix == ".safetensors":
        return _exported(path)
    if path.is_file() and _is_published(path):
        from srnas_fast.spaces.dlsr import load_published

        network = load_published(path)
        space = find_space("dlsr-x2")
        config = {"space": space.name, "genotype": asdict(network.genotype), "network": asdict(network.config)}
        return Trained(path.stem, space, network, config)
    return load_network(path)


def _is_published(path: Path) -> bool:
    try:
        with warnings.catch_warnings():  # of formats that are not ours
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what reads a run's checkpoint says what is wrong with it
        return False
    return isinstance(state, dict) and "state_dict" in state


def _exported(path: Path) -> Trained:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dictionary
    except SafetensorError:
        raise InputError(f"{path} is damaged or no safetensors file") from None
    if metadata.get("format") != NETWORK:
        raise InputError(f"{path} is no network of srnas_fast ({NETWORK!r}); give one that `srnas-fast export` wrote")
    try:
        config = {"space": metadata["space"]} | {key: json.loads(metadata[key]) for key in ("genotype", "network")}
    except (KeyError, ValueError, RecursionError):
        raise InputError(f"{path} lacks or spoils its genotype or network configuration; export it anew") from None
    return rebuilt(path.stem, path, config, weights)
