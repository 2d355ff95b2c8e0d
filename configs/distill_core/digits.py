"""A plain classifier on scikit-learn's digits.

python -m distill_core.train --config configs/distill_core/digits.py --workdir runs/plain

Takes about 10 seconds on 2 CPU cores; expect a test accuracy of about 98.5%.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 64
    config.num_steps = 20 if arg == "smoke" else 450
    config.seed = 0
    return config.lock()
