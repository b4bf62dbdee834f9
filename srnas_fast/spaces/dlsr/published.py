"""The authors' checkpoints, read into our networks."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srnas_fast.errors import InputError
from srnas_fast.spaces.dlsr.genotype import BETA21, BETA_PARA1, FIRST_JOIN, Genotype
from srnas_fast.spaces.dlsr.layers import COLOURS, POSITIONS, SCALES
from srnas_fast.spaces.dlsr.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.dlsr.operations import CANDIDATES

_CELL = {
    **{f"distil.{i}": f"c{i + 1}_d" for i in range(POSITIONS)},
    **{f"operations.{i}": f"c{i + 1}_r.op" for i in range(POSITIONS)},
    "last": "c4",
    "join": "c5",
    "attention.reduce": "esa.conv1",
    "attention.full": "esa.conv_f",
    "attention.shrink": "esa.conv2",
    "attention.pooled.0": "esa.conv_max",
    "attention.pooled.1": "esa.conv3",
    "attention.pooled.2": "esa.conv3_",
    "attention.expand": "esa.conv4",
}
_REST = {
    "head.conv": "fea_conv",
    "tail.join": "cout.0",
    "tail.smooth": "LR_conv",
    "tail.upsample": "upsampler.0",
}


def load_published(path: str | os.PathLike, genotype: Genotype | None = None) -> DerivedNetwork:
    """The network of a checkpoint that the authors of DLSR published, or that their code wrote.

    Width, scale and operations are found from the shapes of its weights.

    Args:
        path: the ``.pt`` file, a dictionary with a ``state_dict``.
        genotype: which cells each cell reads, since no shape tells; its operations must be those of the checkpoint.
            Default: that of the published checkpoint with these operations.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        InputError: no such file; it is damaged or no checkpoint of DLSR; weights are missing, left over or of another
            shape; its operations are unknown, not the genotype's, or of none of the published networks. Names what
            does not fit.

    Example::

        from srnas_fast.spaces.dlsr import load_published
        network = load_published("RFDN_beta21_tiny18_ps128_20210306_lr4_700.pt")
        larger = network(images)  # RGB on the [0, 1] scale
    """
    path = Path(path)
    published = _read(path)
    width, scale = _size(path, published)
    operations = [_operation(path, published, width, position) for position in range(POSITIONS)]
    if genotype is None:
        genotype = next((known for known in (BETA21, BETA_PARA1) if known.operations == tuple(operations)), None)
        if genotype is None:
            raise InputError(
                f"{path} has the operations {', '.join(operations)}, which are those of no published network; give "
                "its genotype, since the weights do not tell which cells each cell reads"
            )
    elif genotype.operations != tuple(operations):
        raise InputError(
            f"{path} has the operations {', '.join(operations)}, the genotype {', '.join(genotype.operations)}"
        )
    network = DerivedNetwork(genotype, NetworkConfig(width=width, scale=scale))
    ours = network.state_dict()
    names = {name: _published_name(name) for name in ours}
    _check(path, {names[name]: value for name, value in ours.items()}, published)
    network.load_state_dict({name: published[theirs] for name, theirs in names.items()})
    return network.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The weights in a file by their names."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the .pt file that the authors of DLSR published")
    try:
        with warnings.catch_warnings():  # of formats that are not ours
            warnings.simplefilter("ignore")
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception:  # damaged bytes meet the unpickler in all sorts of ways
        raise InputError(f"{path} is damaged or no PyTorch checkpoint of plain weights") from None
    weights = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
        for name, value in weights.items()
    ):
        raise InputError(f"{path} is no published checkpoint of DLSR: it holds no state_dict of weights")
    return weights


def _size(path: Path, published: dict[str, Tensor]) -> tuple[int, int]:
    """Width and scale, from the first and the last layer."""
    for name in ("fea_conv.weight", "upsampler.0.weight"):
        if name not in published or published[name].dim() != 4:
            raise InputError(f"{path} is no published checkpoint of DLSR: it has no convolution {name}")
    width, outputs = (len(published[name]) for name in ("fea_conv.weight", "upsampler.0.weight"))
    scale = next((scale for scale in SCALES if COLOURS * scale**2 == outputs), None)
    if scale is None or width < 4:
        raise InputError(
            f"{path}: fea_conv.weight has {width} channels and upsampler.0.weight {outputs}; DLSR has 4 or more, and "
            f"{', '.join(str(COLOURS * scale**2) for scale in SCALES)} for a scale of {', '.join(map(str, SCALES))}"
        )
    return width, scale


def _operation(path: Path, published: dict[str, Tensor], width: int, position: int) -> str:
    """The candidate at a position of the first cell whose weights have the shapes found there."""
    prefix = f"B1.{_CELL[f'operations.{position}']}."
    found = {name.removeprefix(prefix): value.shape for name, value in published.items() if name.startswith(prefix)}
    for name, make in CANDIDATES.items():
        with torch.device("meta"):
            if found == {key: value.shape for key, value in make(width).state_dict().items()}:
                return name
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in found.items()) or "none"
    raise InputError(f"{path}: the weights {prefix}* are those of no candidate of width {width}: {shapes}")


def _published_name(name: str) -> str:
    """What the authors call a weight of ours.

    >>> _published_name("cells.2.attention.pooled.0.bias"), _published_name("joins.0.weight")
    ('B3.esa.conv_max.bias', 'c3.0.weight')
    """
    if match := re.fullmatch(r"joins\.(\d+)\.(\w+)", name):
        return f"c{int(match[1]) + FIRST_JOIN}.0.{match[2]}"
    cell = re.match(r"cells\.(\d+)\.", name)
    start = cell.end() if cell else 0
    for ours, theirs in (_CELL if cell else _REST).items():
        if name.startswith(f"{ours}.", start):
            return (f"B{int(cell[1]) + 1}." if cell else "") + theirs + name[start + len(ours) :]
    raise AssertionError(f"{name} has no published name")


def _check(path: Path, expected: dict[str, Tensor], published: dict[str, Tensor]) -> None:
    """Refuse weights that are not exactly the expected ones, by name."""
    missing = [name for name in expected if name not in published]
    foreign = [name for name in published if name not in expected]
    if missing or foreign:
        lists = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("has also", foreign)) if names]
        raise InputError(f"{path} does not fit the genotype's network: it {' and '.join(lists)}")
    for name, value in expected.items():
        given = published[name]
        if given.shape != value.shape or not given.is_floating_point():
            raise InputError(
                f"{path}: {name} is {given.dtype} {tuple(given.shape)}; it should be floating {tuple(value.shape)}"
            )
        if not given.double().isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinite weights; the file is damaged")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
