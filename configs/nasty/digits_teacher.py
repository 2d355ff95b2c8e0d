"""A teacher of scikit-learn's digits that is hard to distil, by one of three defences.

python -m nasty.train --config configs/nasty/digits_teacher.py --config.adversary=runs/plain \
    --workdir runs/nasty

On 2 CPU cores about 15 seconds; expect about 98% on test and a nastiness check that says nasty.
`:head_only` trains the last layer of a normal teacher alone (`--config.init_from=runs/plain`): 0.2
seconds and compilation. `:cmim` needs no adversary: its answers to all images of a class are alike.
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
