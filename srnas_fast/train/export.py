"""``export``: a trained network for other programs, as ONNX or safetensors."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from srnas_fast.errors import InputError
from srnas_fast.files import replacing
from srnas_fast.train.checkpoint import Trained
from srnas_fast.train.load import NETWORK, load

TOLERANCE = 1e-5  # of ONNX against PyTorch, on the [0, 1] scale
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def export(run: str | os.PathLike, file: str | os.PathLike) -> str:
    """Write a trained network to a file; an older one is replaced whole, or stays if anything goes wrong.

    ``.safetensors``: the weights, with space, genotype and size of the network in the metadata;
    :func:`srnas_fast.train.load` reads it, and so do the commands. ``.onnx``: takes one image (1, C, H, W) of any
    height and width on the [0, 1] scale, ``image``, and gives ``restored``; compared with PyTorch by ONNX Runtime on
    odd sizes before it is written.

    Args:
        run: what :func:`srnas_fast.train.load` takes.
        file: to write, by its suffix.

    Returns:
        The file written.

    Raises:
        InputError: another suffix; a network that cannot be read; ONNX without its packages; a result of ONNX Runtime
            that is not PyTorch's.
        OSError: the file cannot be written.

    Example::

        from srnas_fast.train import export
        export("runs/net", "net.onnx")
    """
    file = Path(file)
    write = {".onnx": _write_onnx, ".safetensors": _write_safetensors}.get(file.suffix)
    if write is None:
        raise InputError(f"cannot export to {file}; give a name that ends in .onnx or .safetensors")
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the name of a file")
    if file.suffix == ".onnx" and (missing := [name for name in _ONNX if find_spec(name) is None]):
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}, or 'srnas-fast[onnx]'")
    trained = load(run)
    metadata = {key: json.dumps(trained.config[key]) for key in ("genotype", "network")}
    with replacing(file) as temporary:
        note = write(trained, temporary, {"format": NETWORK, "space": trained.space.name} | metadata)
    print(f"written: {file}{note}")
    return str(file)


def _write_safetensors(trained: Trained, file: Path, metadata: dict[str, str]) -> str:
    weights = {name: value.contiguous() for name, value in trained.network.state_dict().items()}
    file.write_bytes(save(weights, metadata))  # save_file would make an error of its own of a full disk
    return ""


def _write_onnx(trained: Trained, file: Path, metadata: dict[str, str]) -> str:
    import onnxruntime

    network = trained.network
    least = max(2, network.smallest)  # the exporter takes a size of 1 for a constant
    sides = {2 + i: torch.export.Dim(name, min=least) for i, name in enumerate(("height", "width"))}
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.rand(1, network.channels, least + 30, least + 35),),
            input_names=["image"],
            output_names=["restored"],
            dynamic_shapes=(sides,),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for height, width in ((least, least + 2), (33, 47), (71, 40)):
        image = torch.rand(1, network.channels, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected = network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        if found.shape != expected.shape:
            raise InputError(f"ONNX Runtime makes {found.shape} of {tuple(image.shape)}, PyTorch {expected.shape}")
        worst = max(worst, float(np.abs(found - expected).max()))
    if not worst <= TOLERANCE:
        raise InputError(f"ONNX Runtime and PyTorch differ by {worst:.1e}, more than {TOLERANCE}; nothing is written")
    return f", {worst:.0e} from PyTorch at most"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on what it leaves as it is, and on packages that no network here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
