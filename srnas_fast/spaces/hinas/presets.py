"""Settings that go together: the paper's, those of the demo, and those that only show that an installation works.

The dataclasses' own defaults are the paper's, so "paper" changes only what search and retraining set apart.
"""

from typing import Any

_TINY = {"patch": 16, "batch": 2, "validation_crop": 32}

SEARCH_PRESETS = {
    "paper": {},
    "demo": {
        "supernet": {"filters": 6, "layers": 2, "nodes": 2},
        "data": {"patch": 32, "batch": 4, "validation_crop": 96},
        "search": {
            "epochs": 10,
            "warmup_epochs": 2,
            "steps": 15,
            "validate_from": 8,
            "architecture_learning_rate": 1e-2,
            "architecture_weight_decay": 0.0,
        },
    },
    "smoke": {
        "supernet": {"filters": 2, "layers": 2, "nodes": 1},
        "data": _TINY,
        "search": {"epochs": 3, "warmup_epochs": 1, "steps": 2, "validate_from": 2},
    },
}

TRAIN_PRESETS = {
    "paper": {"data": {"batch": 24, "sigma": [50.0]}, "loss": {"log_ssim": 0.6}},
    "demo": {
        "network": {"filters": 8},
        "data": {"patch": 48, "batch": 8, "sigma": [50.0], "validation_crop": 96},
        "loss": {"log_ssim": 0.6},
        "train": {
            "iterations": 1000,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "warmup": 50,
            "validate_every": 250,
        },
    },
    "smoke": {
        "network": {"filters": 4},
        "data": _TINY | {"sigma": [50.0]},
        "loss": {"log_ssim": 0.6},
        "train": {"iterations": 6, "warmup": 2, "validate_every": 3},
    },
}


def enlarging_search(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The search presets of super-resolution: patches are given in pixels of the larger image.

    >>> enlarging_search(4)["paper"]["data"]
    {'patch': 256, 'batch': 24, 'repeat': 1}
    """
    short = {"optimizer": "adam", "learning_rate": 1e-3, "final_learning_rate": 2e-4}
    short |= {"architecture_learning_rate": 1e-2, "architecture_weight_decay": 0.0}
    # In so few steps the inverse of the sigmoid would not be learnt.
    small = {"scale": scale, "layers": 2, "sigmoid": False}
    return {
        "paper": {"supernet": {"scale": scale}, "data": {"patch": 64 * scale, "batch": 24, "repeat": 1}},
        "demo": {
            "supernet": small | {"filters": 6, "nodes": 2},
            "data": {"patch": 24 * scale, "batch": 4},
            "search": short | {"epochs": 10, "warmup_epochs": 2, "steps": 15, "validate_from": 8},
        },
        "smoke": {
            "supernet": small | {"filters": 2, "nodes": 1},
            "data": {"patch": 12 * scale, "batch": 2, "validation_crop": 12 * scale},
            "search": short | {"epochs": 3, "warmup_epochs": 1, "steps": 2, "validate_from": 2},
        },
    }


def enlarging_training(scale: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The retraining presets of super-resolution."""
    adam = {"optimizer": "adam", "learning_rate": 2e-3}
    return {
        "paper": {
            "network": {"scale": scale},
            "data": {"patch": 64 * scale, "batch": 16, "repeat": 1},
            "train": {"bias_weight_decay": 0.0},
        },
        "demo": {
            "network": {"scale": scale, "filters": 8},
            "data": {"patch": 24 * scale, "batch": 8},
            "train": adam | {"iterations": 1000, "warmup": 50, "validate_every": 250},
        },
        "smoke": {
            "network": {"scale": scale, "filters": 4},
            "data": {"patch": 12 * scale, "batch": 2, "validation_crop": 12 * scale},
            "train": adam | {"iterations": 6, "warmup": 2, "validate_every": 3},
        },
    }
