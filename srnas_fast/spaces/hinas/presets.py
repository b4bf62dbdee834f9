"""Settings that go together: the paper's, those of the demo, and those that only show that an installation works.

The dataclasses' own defaults are the paper's, so "paper" changes only what search and retraining set apart.
"""

_TINY = {"data.patch": 16, "data.batch": 2, "data.validation_crop": 32}

SEARCH_PRESETS = {
    "paper": {},
    "smoke": _TINY
    | {
        "supernet.filters": 2,
        "supernet.layers": 2,
        "supernet.nodes": 1,
        "search.epochs": 3,
        "search.warmup_epochs": 1,
        "search.steps": 2,
        "search.validate_from": 2,
    },
    "demo": {
        "supernet.filters": 6,
        "supernet.layers": 2,
        "supernet.nodes": 2,
        "data.patch": 32,
        "data.batch": 4,
        "data.validation_crop": 96,
        "search.epochs": 10,
        "search.warmup_epochs": 2,
        "search.steps": 15,
        "search.cosine_epochs": 10,
        "search.validate_from": 8,
        "search.architecture_learning_rate": 1e-2,
    },
}

TRAIN_PRESETS = {
    "smoke": _TINY
    | {
        "network.filters": 4,
        "data.sigma": [50.0],
        "train.iterations": 6,
        "train.warmup": 2,
        "train.validate_every": 3,
    },
    "paper": {"data.batch": 24, "data.sigma": [50.0], "loss.log_ssim": 0.6},
    "demo": {
        "network.filters": 8,
        "data.patch": 48,
        "data.batch": 8,
        "data.sigma": [50.0],
        "data.validation_crop": 96,
        "loss.log_ssim": 0.6,
        "train.iterations": 600,
        "train.optimizer": "adam",
        "train.learning_rate": 2e-3,
        "train.warmup": 50,
        "train.validate_every": 200,
    },
}
