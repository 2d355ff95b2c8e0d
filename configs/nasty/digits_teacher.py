"""A nasty teacher on scikit-learn's digits, against a normal one trained before.

python -m nasty.train --config configs/nasty/digits_teacher.py --config.adversary=runs/plain \
    --workdir runs/nasty

On 2 CPU cores about 15 seconds; expect about 98% on test and a nastiness check that says nasty.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
    config.adversary = "runs/plain"
    config.temperature = 20.0
    config.omega = 0.03
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 64
    config.num_steps = 20 if arg == "smoke" else 2100
    config.seed = 0
    return config.lock()
