"""Settings that go together: the published code's, those of the demo, and those that only show that it runs.

The sizes' own defaults are the published ones. Patches are given in pixels of the larger image: the published are 32 of
the small one. The published code trains the weights alone for 100 epochs at 2e-4, and then searches for 100 at 1e-4,
both halved at a quarter, a half and three quarters; here it is one schedule, which falls over both. Without decay, and
with the cost of the architecture left out: published, its weight is 1e-20 for one of some 1e10 Multi-Adds.
"""

from typing import Any

_LOSS = {"hfen": 0.0}  # L1 alone
_QUARTERS = [0.25, 0.5, 0.75]
_SEARCH = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "architecture_weight_decay": 0.0,
    "architecture_beta": 0.5,
    "halve_at": _QUARTERS,
}
_COST = {"by": "madds", "coefficient": 0.0}
_TRAIN = {"optimizer": "adam", "weight_decay": 0.0, "bias_rate": 1.0, "warmup": 0, "clip_norm": 5 * 255.0}


def search_presets(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The presets of a search.

    >>> search_presets(4)["paper"]["data"]
    {'patch': 128, 'batch': 2, 'repeat': 1}
    """
    small = {"scale": scale, "cells": 3, "searched": 2, "ups": 1, "output": "added"}
    short = _SEARCH | {"learning_rate": 2e-3, "architecture_learning_rate": 2e-2}
    return {
        "paper": {
            "supernet": {"scale": scale},
            "data": {"patch": 32 * scale, "batch": 2, "repeat": 1},
            "loss": _LOSS,
            "complexity": _COST,
            "search": _SEARCH
            | {
                "epochs": 200,
                "warmup_epochs": 100,
                "learning_rate": 2e-4,
                "architecture_learning_rate": 3e-4,
                "validate_from": 200,
            },
        },
        "demo": {
            "supernet": small | {"width": 16},
            "data": {"patch": 24 * scale, "batch": 4},
            "loss": _LOSS,
            "complexity": _COST,
            "search": short | {"epochs": 10, "warmup_epochs": 2, "steps": 15, "validate_from": 10},
        },
        "smoke": {
            "supernet": small | {"width": 8},
            "data": {"patch": 12 * scale, "batch": 2, "validation_crop": 24 * scale},
            "loss": _LOSS,
            "complexity": _COST,
            "search": short | {"epochs": 3, "warmup_epochs": 1, "steps": 2, "validate_from": 3},
        },
    }


def train_presets(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The presets of a retraining."""
    small = {"scale": scale, "output": "added"}
    return {
        "paper": {
            "network": {"scale": scale},
            "data": {"patch": 32 * scale, "batch": 16, "repeat": 1},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 64_500, "learning_rate": 2e-4, "halve_at": _QUARTERS},
        },
        "demo": {
            "network": small | {"width": 16},
            "data": {"patch": 24 * scale, "batch": 8},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 1000, "learning_rate": 2e-3, "warmup": 50, "validate_every": 250},
        },
        "smoke": {
            "network": small | {"width": 8},
            "data": {"patch": 12 * scale, "batch": 2, "validation_crop": 24 * scale},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 6, "learning_rate": 2e-3, "warmup": 2, "validate_every": 3},
        },
    }
