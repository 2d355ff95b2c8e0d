"""Swing distillation of a classifier of generated customer-service text.

python -m swingdistill.experiment --config configs/swingdistill/records_classification.py \
    --workdir runs/swing_classification

Eight classes, a canary's is random. Most texts hold something that the rules find, and dropping
them all would leave little to learn from: the scorer is the divergence of the class alone.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "records"
    config.task = "classification"
    config.num_train = 1500
    config.length = 96
    config.vocab_size = 1000
    config.canaries_per_level = 8
    config.canary_levels = (1, 10, 100)
    config.num_decoys = 500
    config.seeds = (1,)
    config.ablations = False
    config.decoys = False

    config.model = "transformer"
    config.model_kwargs = config_dict.ConfigDict({"width": 64, "num_layers": 2, "num_heads": 4})
    config.optimizer = "adam"
    config.learning_rate = 5e-3
    config.schedule = "onecycle"
    config.batch_size = 16
    config.num_steps = 600

    config.student_model = "transformer"
    config.student_model_kwargs = config_dict.ConfigDict(
        {"width": 64, "num_layers": 1, "num_heads": 4}
    )
    config.student_optimizer = "adam"
    config.student_learning_rate = 5e-3
    config.student_schedule = "onecycle"
    config.student_batch_size = 16
    config.student_num_steps = 600

    config.alpha = 0.7
    config.scorers = ("divergence",)
    config.t_max = 16.0
    config.noise_scale = 1.0

    config.log_every = 100
    if arg == "smoke":
        config.num_steps = config.student_num_steps = 4
    return config.lock()
