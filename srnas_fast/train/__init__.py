"""What comes after a search: retraining its genotype, measuring, using and exporting the network."""

from srnas_fast.train.checkpoint import Trained, load_network
from srnas_fast.train.evaluate import evaluate
from srnas_fast.train.export import export
from srnas_fast.train.load import load
from srnas_fast.train.restore import restore
from srnas_fast.train.tiles import restore_tiled, upscale_in_tiles
from srnas_fast.train.train import TrainConfig, train

__all__ = [
    "TrainConfig",
    "Trained",
    "evaluate",
    "export",
    "load",
    "load_network",
    "restore",
    "restore_tiled",
    "train",
    "upscale_in_tiles",
]
