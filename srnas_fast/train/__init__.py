"""What comes after a search: retraining its genotype, measuring the network, restoring images with it."""

from srnas_fast.train.checkpoint import Trained, load_network
from srnas_fast.train.evaluate import evaluate
from srnas_fast.train.restore import restore
from srnas_fast.train.tiles import restore_tiled
from srnas_fast.train.train import TrainConfig, train

__all__ = ["TrainConfig", "Trained", "evaluate", "load_network", "restore", "restore_tiled", "train"]
