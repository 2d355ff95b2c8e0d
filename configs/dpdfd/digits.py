"""All privacy units on scikit-learn's digits (8×8), one seed.

python -m dpdfd.experiment --config configs/dpdfd/digits.py --workdir runs/dpdfd_demo

Takes less than 3 minutes on 2 CPU cores. With 1,437 training images this shows how the parts work
together, not how good they are: for that see mnist.py. Steps and losses were chosen while looking
at these very test images.
"""

from ml_collections import config_dict

STROKES = {"prior": {"strokes": 1.0}, "prior_extent": (0.85, 1.0)}
CNN = {"model": "cnn", "model_kwargs": {"widths": (16, 32), "hidden": 64, "norm": "group"}}
SCATTERING = {"model": "scattering", "model_kwargs": {"J": 1}}
ROUNDS = {"num_rounds": 4, "num_queries": 2048, "num_steps": 400}
# A teacher that may be asked freely.
FREE = {
    "num_rounds": 1,
    "num_queries": 16384,
    "candidates": 1,
    "num_steps": 1000,
    "schedule": "cosine",
    "loss": "cross_entropy",
    "temperature": 2.0,
    "fresh": {"source": "prior"},
}


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.seeds = (0,)
    config.delta = 1e-5
    config.num_canaries = 100

    plain = {
        **CNN,
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "batch_size": 64,
        "num_steps": 600,
        "eval_every": 600,
        "save_every": 600,
    }
    dp = {"epsilon": 10.0, "delta": 1e-5, "norm": 1.0, "sampling": "full", "average": 0.5}
    noisy_descent = {
        **SCATTERING,
        "dp": dp,
        "optimizer": "sgd",
        "learning_rate": 3.0,
        "batch_size": 1437,  # all records
        "num_steps": 60,
    }
    config.teachers = {
        "teacher": plain,
        "ensemble": {**SCATTERING, "num_teachers": 60, "copies": 8, "ridge": 30.0},
        "dp_teacher": noisy_descent,
        # Leaves 20% of the budget's μ² to the moments of `dp_student_bought_prior`.
        "dp_teacher_share": {**noisy_descent, "dp": {**dp, "share": 0.8}},
    }
    config.student = {
        **STROKES,
        "model": "dpdfd.features:FeatureMLP",
        "model_kwargs": {"hidden": (64,)},
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "batch_size": 128,
        "log_every": 100,
        "eval_every": 200,
        "save_every": 1000,
        "generator": {"width": 16, "latent_size": 32, "warm_start_steps": 300, "every": 0},
    }
    one = {**ROUNDS, "teacher": "teacher", "epsilon": 10.0}
    logit = {"mechanism": "logit", "bound": "clip", "norm": 1.4143, "smooth": True}
    free = {**FREE, "teacher": "dp_teacher", "privacy_unit": "record_dp_teacher"}
    config.arms = {
        "no_privacy": {**FREE, **CNN, "teacher": "teacher", "privacy_unit": "none"},
        "query": {**one, **logit, "privacy_unit": "query"},
        "record_single": {**one, **logit, "privacy_unit": "record_single"},
        "record_ensemble": {
            **FREE,
            **SCATTERING,
            "teacher": "ensemble",
            "privacy_unit": "record_ensemble",
            "mechanism": "parameters",
            "norm": 6.0,
            "epsilon": 10.0,
            "learning_rate": 2e-2,
            "temperature": 4.0,
        },
        "dp_student": {**free, **SCATTERING, "learning_rate": 2e-2, "temperature": 4.0},
        "dp_student_cnn": {**free, **CNN},
        "dp_student_bought_prior": {
            **free,
            **CNN,
            "teacher": "dp_teacher_share",
            "epsilon": 10.0,
            "prior": {"strokes": 0.5, "dp_gaussian": 0.5},
            "moments": {"size": 8, "norm": 4.0},
        },
    }
    config.fresh = {**CNN, "num_samples": 8000, "num_steps": 600, "temperature": 2.0}
    if arg == "smoke":
        config.num_canaries = 20
        for mine in config.teachers.values():
            mine.num_steps = 4
        config.student.generator.warm_start_steps = 2
        for mine in config.arms.values():
            rounds = min(2, mine.num_rounds)
            mine.update({"num_rounds": rounds, "num_queries": 256, "num_steps": 4})
        config.fresh.update({"num_samples": 64, "num_steps": 4})
    return config.lock()
