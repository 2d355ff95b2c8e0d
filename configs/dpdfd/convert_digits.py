"""Converts a classifier of scikit-learn's digits into a student, without any data.

python -m dpdfd.train --config configs/dpdfd/convert_digits.py \
    --config.teacher=runs/plain --workdir runs/converted

Takes about 30 seconds on 2 CPU cores; expect about 98% from a teacher of 99%. The teacher comes
from `python -m distill_core.train --config configs/distill_core/digits.py --workdir runs/plain`;
its data set is read only to measure the student (`--config.dataset=None` leaves it out).

`convert_digits.py:private` converts a teacher that was trained with differential privacy. Such a
teacher may be asked any number of queries, and its student is as private as the teacher: expect
about 97% at ε = 10 per record. This command makes the teacher:

    python -m distill_core.train --config configs/distill_core/dp_digits.py --workdir runs/dp_digits

`convert_digits.py:ensemble` releases the noisy mean of an ensemble's heads, at ε = 10 per replaced
record; this mean may then be asked any number of queries. Expect about 85%: 1,437 records are few
for 60 teachers. This command makes the ensemble:

    python -m dpdfd.ensemble --config configs/dpdfd/ensemble_digits.py --workdir runs/ensemble

`convert_digits.py:paper` is the loop of the paper's abstract: student and generator alternate, with
noise on per-example gradients, at ε = 10 per query, which protects no record. Expect about 14%,
little above chance. `convert_digits.py:teacher_guided` is the loop of DAFL: without noise, with the
teacher itself as the generator's guide, and without images drawn from a prior. Expect about 85%.
"""

from ml_collections import config_dict

ARGUMENTS = ("", "private", "ensemble", "paper", "teacher_guided", "smoke")


def get_config(arg=""):
    if arg not in ARGUMENTS:
        raise ValueError(f"unknown argument {arg!r}; known: {', '.join(ARGUMENTS[1:])}")
    config = config_dict.ConfigDict()
    config.teacher = config_dict.placeholder(str)
    config.dataset = "digits"
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict(
        {"widths": (16, 32), "hidden": 64, "norm": "group"}
    )
    config.optimizer = "adam"
    config.learning_rate = 2e-3
    config.batch_size = 128
    config.num_steps = 1200
    config.log_every = config.eval_every = 200
    config.prior = config_dict.ConfigDict({"strokes": 1.0})
    config.prior_extent = (0.85, 1.0)
    config.generator = config_dict.ConfigDict(
        {"width": 16, "latent_size": 32, "warm_start_steps": 300, "every": 0}
    )
    config.privacy_unit = "none"
    if arg in ("", "private", "ensemble", "smoke"):
        config.num_rounds, config.num_queries, config.candidates = 1, 16384, 1
        config.loss, config.temperature, config.schedule = "cross_entropy", 2.0, "cosine"
    if arg in ("private", "ensemble"):
        config.model, config.model_kwargs = "scattering", config_dict.ConfigDict({"J": 1})
        config.learning_rate, config.temperature, config.delta = 2e-2, 4.0, 1e-5
        config.privacy_unit = "record_dp_teacher"
    if arg == "ensemble":
        config.privacy_unit, config.mechanism = "record_ensemble", "parameters"
        config.epsilon, config.norm = 10.0, 6.0
    if arg == "paper":
        config.privacy_unit, config.mechanism = "query", "param"
        config.epsilon, config.delta, config.norm = 10.0, 1e-5, 1.0
        config.optimizer, config.learning_rate, config.num_steps = "sgd", 0.05, 60
        config.log_every = config.eval_every = 20
        config.generator.every, config.generator.learning_rate = 1, 1e-4
    if arg == "teacher_guided":
        config.guide = "teacher"
        config.prior = config_dict.ConfigDict()
        config.prior_extent = ()
        config.generator.update({"every": 1, "warm_start_steps": 0, "activation": 1e-3})
    if arg == "smoke":
        config.num_steps, config.num_queries = 8, 1024
        config.generator.warm_start_steps = 2
    return config.lock()
