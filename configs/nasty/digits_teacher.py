"""A teacher on scikit-learn's digits that is hard to distil, by one of three defences.

python -m nasty.train --config configs/nasty/digits_teacher.py --config.adversary=runs/plain \
    --workdir runs/nasty

Takes about 15 seconds on 2 CPU cores; expect a test accuracy of about 98% and a nastiness check
that says nasty. `:head_only` trains only the last layer of a normal teacher
(`--config.init_from=runs/plain`), in 0.2 seconds plus compilation. `:cmim` needs no adversary: it
makes the answers to all images of a class alike.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "head_only", "cmim", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: head_only, cmim, smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 64
    config.num_steps = 20 if arg == "smoke" else 2100
    config.seed = 0
    if arg == "cmim":
        config.defence = "cmim"
        return config.lock()
    config.adversary = "runs/plain"
    config.temperature = 20.0
    config.omega = 0.03
    if arg == "head_only":
        config.train_only_head = True
        config.init_from = "runs/plain"
        config.omega = 0.01
        config.learning_rate = 0.01
        config.num_steps = 400
    return config.lock()
