"""Swing distillation on generated customer-service text: the demo, one seed of secrets.

python -m swingdistill.experiment --config configs/swingdistill/records.py --workdir runs/swing
python -m swingdistill.experiment --config configs/swingdistill/records.py:generation \
    --workdir runs/swing_generation
python -m swingdistill.experiment --config configs/swingdistill/records.py:classification \
    --workdir runs/swing_classification

Each command takes about 2 minutes on two CPU cores; the first leaves 1.5 to 1.6 of 19.9 bits of
exposure at 10 and 100 repetitions. The task `generation` maps fields to a sentence, and copies
names and numbers from the fields; in `classification` most texts contain something that the rules
find. So in these two tasks the divergence is the only scorer.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke", "generation", "classification"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke, generation, classification")
    config = config_dict.ConfigDict()
    config.dataset = "records"
    config.task = "language"
    config.num_train = 1500
    config.length = 64
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

    config.student = config_dict.ConfigDict()
    config.student.model = "transformer"
    config.student.model_kwargs = config_dict.ConfigDict(
        {"width": 64, "num_layers": 1, "num_heads": 4}
    )
    config.student.optimizer = "adam"
    config.student.learning_rate = 5e-3
    config.student.schedule = "onecycle"
    config.student.batch_size = 16
    config.student.num_steps = 600

    config.alpha = 0.7
    config.scorers = ("rules", "divergence")
    config.t_max = 16.0
    config.noise_scale = 1.0
    config.noise_seed = 0  # repeats the published table; without it noise is secret and new

    config.log_every = 100
    if arg == "smoke":
        config.num_steps = config.student.num_steps = 4
    elif arg:
        config.task = arg
        config.length = 96
        config.scorers = ("divergence",)
    return config.lock()
