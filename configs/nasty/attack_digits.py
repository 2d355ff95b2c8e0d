"""Attacks a teacher on scikit-learn's digits, by default with plain distillation.

python -m nasty.attack --config configs/nasty/attack_digits.py --config.teacher=runs/nasty \
    --config.attack=averager --workdir runs/attack

The other attacks are htc, scm, and skeptical; for the last use
configs/nasty/attack_digits.py:skeptical, whose student has an auxiliary head. --config.top_k=2
makes the teacher stingy, a defence. Takes about 10 seconds on 2 CPU cores.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "skeptical", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: skeptical, smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.teacher = "runs/nasty"
    config.attack = "kd"
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
    if arg == "skeptical":
        config.attack = "skeptical"
        config.model = "nasty.attacks.skeptical:SkepticalCNN"
        config.delay_steps = 40
    return config.lock()
