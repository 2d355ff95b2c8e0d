"""The paper's comparison on scikit-learn's digits (8×8), small CNNs, three seeds.

python -m nasty.experiment --config configs/nasty/digits.py --workdir runs/demo

Takes 1.5 to 3 minutes on 2 CPU cores. Expect 98% for both teachers and 67 to 76% for students of
the nasty one. We chose ω and the number of steps on 287 held-out training images.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.seeds = (1, 2, 3)
    config.num_validation = 287

    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 64
    config.num_steps = 2100

    config.omega = 0.03
    config.temperature = 20.0
    config.alpha = 0.9

    config.student = config_dict.ConfigDict()
    config.student.model = "cnn"
    config.student.model_kwargs = config_dict.ConfigDict({"widths": (8, 16), "hidden": 32})
    config.student.optimizer = "adam"
    config.student.learning_rate = 3e-3
    config.student.schedule = "onecycle"
    config.student.batch_size = 64
    config.student.num_steps = 220

    config.log_every = 1050
    if arg == "smoke":
        config.seeds = (1,)
        config.num_steps = config.student.num_steps = 4
    return config.lock()
