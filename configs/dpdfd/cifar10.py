"""A differentially private teacher on CIFAR-10 and its students: colour photographs, three seeds.

python -m dpdfd.experiment --config configs/dpdfd/cifar10.py --workdir runs/dpdfd_cifar10 \
    --config.data_dir=DIRECTORY

DIRECTORY holds the data set as TensorFlow Datasets prepares it; docs/dpdfd.md has the table. The
images drawn by a program, which serve as queries, are far from photographs; the students are shown
as they come out. Settings were chosen on 10,000 held-out training images.
"""

from ml_collections import config_dict

SCATTERING = {
    "model": "scattering",
    "model_kwargs": {"J": 2, "L": 8, "components": 2000, "ridge": 10.0},
}
CNN = {"model": "cnn", "model_kwargs": {"widths": (16, 32, 64), "hidden": 64, "norm": "group"}}


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "tfds:cifar10"
    config.seeds = (0, 1, 2)
    config.delta = 1e-5
    config.configurations_tried = 32
    config.teachers, config.arms, config.bars = {}, {}, {}
    prior = {"shapes": 1.0, "strokes": 0.5, "noise": 1.0}
    config.student = {
        **SCATTERING,
        "privacy_unit": "record_dp_teacher",
        "prior": prior,
        "num_rounds": 1,
        "num_queries": 8192,
        "candidates": 1,
        "loss": "cross_entropy",
        "temperature": 4.0,
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "schedule": "onecycle",
        "batch_size": 256,
        "num_steps": 1500,
        "log_every": 50,
        "eval_every": 5000,
        "save_every": 5000,
        "generator": {"width": 16, "latent_size": 64, "warm_start_steps": 0, "every": 0},
    }
    for epsilon in (1.0, 10.0):
        end, small = f"eps{epsilon:g}", epsilon <= 2
        dp = {"epsilon": epsilon, "delta": 1e-5, "norm": 1.0, "sampling": "full", "average": 0.5}
        config.teachers[f"dp_{end}"] = {
            **SCATTERING,
            "dp": dp,
            "optimizer": "sgd",
            "learning_rate": 1.3 if small else 9.0,
            "batch_size": 50_000,  # all records
            "num_steps": 60 if small else 100,
        }
        config.arms[f"dp_scattering_{end}"] = {"teacher": f"dp_{end}"}
    config.once = ("dp_scattering_eps1", "dp_scattering_eps10")
    config.bars.dp_eps10 = {"accuracy": 0.65}
    config.fresh = {**CNN, "source": "prior", "num_samples": 10000, "num_steps": 2000}
    config.fresh.temperature = 4.0
    if arg == "smoke":
        config.seeds = (0,)
        config.fresh.update({"num_samples": 64, "num_steps": 4})
        for mine in config.teachers.values():
            mine.num_steps = 2
        for mine in config.arms.values():
            mine.update({"num_steps": 4, "num_queries": 512})
    return config.lock()
