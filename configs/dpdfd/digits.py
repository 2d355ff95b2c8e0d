"""All four privacy units on scikit-learn's digits (8×8), one seed.

python -m dpdfd.experiment --config configs/dpdfd/digits.py --workdir runs/dpdfd_demo

On 2 CPU cores under 3 minutes. With 1,437 training images this shows how the parts go together, not
what they are worth: for that see mnist.py. Steps and losses were chosen while looking at these very
test images.
"""

from ml_collections import config_dict

STROKES = {"prior": {"strokes": 1.0}, "prior_extent": (0.85, 1.0)}
ROUNDS = {"num_rounds": 4, "num_queries": 2048, "num_steps": 1200}
EXACT = {
    **ROUNDS,
    "loss": "cross_entropy",
    "model": "cnn",
    "model_kwargs": {"widths": (16, 32), "hidden": 64, "norm": "group"},
}
GENERATOR = {"width": 16, "latent_size": 32, "warm_start_steps": 300}


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.seeds = (0,)
    config.delta = 1e-5
    config.num_canaries = 100

    plain = {
        "model": "cnn",
        "model_kwargs": {"widths": (16, 32), "hidden": 64, "norm": "group"},
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "batch_size": 64,
        "num_steps": 600,
        "eval_every": 600,
        "save_every": 600,
    }
    config.teachers = {
        "teacher": plain,
        "ensemble": {
            "model": "dpdfd.features:FeatureRidge",
            "model_kwargs": {"num_random": 500},
            "num_teachers": 60,
            "copies": 8,
        },
        "dp_teacher": {
            **plain,
            "dp": {"epsilon": 10.0, "delta": 1e-5, "norm": 1.0},
            "batch_size": 256,
            "num_steps": 200,
        },
    }
    config.student = {
        **STROKES,
        "model": "dpdfd.features:FeatureMLP",
        "model_kwargs": {"hidden": (64,)},
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "batch_size": 128,
        "log_every": 100,
        "eval_every": 100,
        "save_every": 400,
        "generator": {**GENERATOR, "every": 0},
    }
    noisy = {**ROUNDS, "num_steps": 400, "epsilon": 10.0}
    config.arms = {
        "no_privacy": {"teacher": "teacher", "privacy_unit": "none", **EXACT},
        "query": {
            "teacher": "teacher",
            "privacy_unit": "query",
            "mechanism": "logit",
            "bound": "clip",
            "norm": 1.4143,
            "smooth": True,
            **noisy,
        },
        "record_single": {
            "teacher": "teacher",
            "privacy_unit": "record_single",
            "mechanism": "logit",
            "bound": "clip",
            "norm": 1.4143,
            "smooth": True,
            **noisy,
        },
        "record_ensemble": {
            "teacher": "ensemble",
            "privacy_unit": "record_ensemble",
            "mechanism": "answers",
            **noisy,
        },
        "record_dp_teacher": {
            "teacher": "dp_teacher",
            "privacy_unit": "record_dp_teacher",
            **EXACT,
        },
    }
    config.fresh = {"num_samples": 2000, "num_steps": 300}
    if arg == "smoke":
        config.num_canaries = 20
        for mine in config.teachers.values():
            mine.num_steps = 4
        config.student.generator.warm_start_steps = 2
        for mine in config.arms.values():
            mine.update({"num_rounds": 2, "num_queries": 256, "num_steps": 4})
        config.fresh = {"num_samples": 64, "num_steps": 4}
    return config.lock()
