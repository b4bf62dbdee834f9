"""Settings that go together: the paper's, those of its tiny network, of the demo, and those that only show it runs.

The sizes' own defaults are the paper's, and so are the data's for the search; what stands under "paper" is what differs
from the defaults of all spaces.
"""

_SEARCH = {
    "optimizer": "adam",
    "weight_decay": 1e-8,
    "architecture_weight_decay": 1e-8,
    "architecture_beta": 0.5,
    "mixed_level": True,
}
_PAPER_SEARCH = _SEARCH | {
    "epochs": 1000,
    "warmup_epochs": 21,
    "learning_rate": 5e-4,
    "halve_at": [0.2, 0.4, 0.6],
    "architecture_learning_rate": 3e-4,
    "validate_from": 901,
}
# Of so few epochs one wave of the cosine is enough.
_SHORT_SEARCH = _SEARCH | {"learning_rate": 2e-3, "final_learning_rate": 2e-4, "architecture_learning_rate": 1e-2}

_TRAIN = {"optimizer": "adam", "weight_decay": 1e-8, "bias_rate": 1.0, "clip_norm": 50.0}
_PAPER_TRAIN = _TRAIN | {"iterations": 1_941_000, "warmup": 0, "halve_at": [0.2, 0.4, 0.6, 0.8]}
_PAPER_DATA = {"patch": 128, "batch": 32, "repeat": 18}
_SMOKE_DATA = {"patch": 60, "batch": 2, "validation_crop": 60}

SEARCH_PRESETS = {
    "paper": {"search": _PAPER_SEARCH},
    "tiny": {"supernet": {"width": 18}, "search": _PAPER_SEARCH},
    "demo": {
        "supernet": {"width": 12, "cells": 4},
        "data": {"patch": 64, "batch": 4},
        "complexity": {"coefficient": 0.1},
        "search": _SHORT_SEARCH | {"epochs": 10, "warmup_epochs": 2, "steps": 15, "validate_from": 8},
    },
    "smoke": {
        "supernet": {"width": 4, "cells": 3},
        "data": _SMOKE_DATA,
        "search": _SHORT_SEARCH | {"epochs": 3, "warmup_epochs": 1, "steps": 2, "validate_from": 2},
    },
}

TRAIN_PRESETS = {
    "paper": {"data": _PAPER_DATA, "train": _PAPER_TRAIN | {"learning_rate": 3e-4}},
    "tiny": {"network": {"width": 18}, "data": _PAPER_DATA, "train": _PAPER_TRAIN | {"learning_rate": 4e-4}},
    "demo": {
        "network": {"width": 12},
        "data": {"patch": 64, "batch": 8},
        "train": _TRAIN | {"iterations": 1000, "learning_rate": 2e-3, "warmup": 50, "validate_every": 250},
    },
    "smoke": {
        "network": {"width": 4},
        "data": _SMOKE_DATA,
        "train": _TRAIN | {"iterations": 6, "learning_rate": 2e-3, "warmup": 2, "validate_every": 3},
    },
}
