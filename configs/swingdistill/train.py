"""One run of swingdistill.train on generated customer-service text, about a minute on 2 CPU cores.

python -m swingdistill.train --config configs/swingdistill/train.py:reference --workdir runs/ref
python -m swingdistill.train --config configs/swingdistill/train.py:teacher --workdir runs/teacher
python -m swingdistill.train --config configs/swingdistill/train.py --workdir runs/student \
    --config.teacher=runs/teacher --config.reference=runs/ref
python -m swingdistill.evaluate --checkpoint runs/student

The teacher's text contains 24 secrets: 8 are planted once, 8 are planted 10 times and 8 are planted
100 times. The reference learns from the half of the text that the teacher does not see.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "student", "teacher", "reference"):
        raise ValueError(f"unknown argument {arg!r}; known: student, teacher, reference")
    config = config_dict.ConfigDict()
    config.dataset = "records"
    config.task = "language"
    config.half = "second" if arg == "reference" else "first"
    config.num_train = 1500
    config.length = 64
    config.vocab_size = 1000
    config.transfer_set = "public" if arg == "reference" else "private"
    config.canaries_per_level = 8
    config.canary_seed = 1

    config.model = "transformer"
    config.model_kwargs = config_dict.ConfigDict({"width": 64, "num_layers": 2, "num_heads": 4})
    config.optimizer = "adam"
    config.learning_rate = 5e-3
    config.schedule = "onecycle"
    config.batch_size = 16
    config.num_steps = 600
    config.seed = {"reference": 0, "teacher": 1}.get(arg, 2)

    if arg in ("", "student"):
        config.model_kwargs.num_layers = 1
        config.teacher = config_dict.placeholder(str)
        config.reference = config_dict.placeholder(str)
        config.alpha = 0.7
        config.scorers = ("rules", "divergence")
        config.t_max = 16.0
        config.noise_scale = 1.0
    config.log_every = 100
    return config.lock()
