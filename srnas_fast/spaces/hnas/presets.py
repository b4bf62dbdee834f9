"""Settings that go together: the paper's, those of the demo, and those that only show that an installation works.

The defaults of the sizes and of the search are the paper's, so what stands under "paper" is what the paper's images and
its retraining set apart. Patches are given in pixels of the larger image: the paper's are 48 of the small one, as are
those by which the reward counts Multi-Adds.
"""

from typing import Any

_LOSS = {"hfen": 0.0}  # L1 alone

# The paper's rate falls along a cosine to 1e-5; the straight line from end to end is never far from it.
_TRAIN = {"optimizer": "adam", "weight_decay": 0.0, "bias_rate": 1.0, "clip_norm": 200.0, "power": 1.0}


def search_presets(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The presets of a search.

    >>> search_presets(3)["paper"]["data"]
    {'patch': 144, 'batch': 16, 'repeat': 10}
    """
    return {
        "paper": {
            "supernet": {"scale": scale},
            "data": {"patch": 48 * scale, "batch": 16, "repeat": 10},
            "loss": _LOSS,
            "search": {"steps": 200},
        },
        "demo": {
            "supernet": {"scale": scale, "cells": 4},
            "data": {"patch": 32 * scale, "batch": 4},
            "loss": _LOSS,
            "search": {
                "epochs": 8,
                "steps": 15,
                "controller_steps": 10,
                "learning_rate": 5e-3,
                "controller_learning_rate": 3e-3,
            },
        },
        "smoke": {
            "supernet": {"scale": scale, "channels": 4, "cells": 2},
            "data": {"patch": 30 * scale, "batch": 2, "validation_crop": 30 * scale},
            "loss": _LOSS,
            "search": {"epochs": 2, "steps": 2, "controller_steps": 2, "samples": 2},
        },
    }


def train_presets(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The presets of a retraining."""
    return {
        "paper": {
            "network": {"scale": scale},
            "data": {"patch": 48 * scale, "batch": 16, "repeat": 20},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 300_000, "learning_rate": 1e-3, "warmup": 0},
        },
        "demo": {
            "network": {"scale": scale, "channels": 8},
            "data": {"patch": 32 * scale, "batch": 8},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 1000, "learning_rate": 2e-3, "warmup": 50, "validate_every": 250},
        },
        "smoke": {
            "network": {"scale": scale, "channels": 4},
            "data": {"patch": 30 * scale, "batch": 2, "validation_crop": 30 * scale},
            "loss": _LOSS,
            "train": _TRAIN | {"iterations": 6, "learning_rate": 1e-3, "warmup": 2, "validate_every": 3},
        },
    }
