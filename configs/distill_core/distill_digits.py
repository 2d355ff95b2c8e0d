"""Distils a small student on scikit-learn's digits from a teacher's checkpoint.

python -m distill_core.distill --config configs/distill_core/distill_digits.py \
    --config.teacher=runs/plain --workdir runs/student

Takes about 10 seconds on 2 CPU cores. From the normal teacher of digits.py expect a test accuracy
of about 97.8%.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.teacher = "runs/plain"
    config.temperature = 20.0
    config.alpha = 0.9
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (8, 16), "hidden": 32})
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 64
    config.num_steps = 4 if arg == "smoke" else 220
    config.seed = 2
    return config.lock()
