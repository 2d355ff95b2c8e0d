"""The paper's comparison on Fashion-MNIST, whole training set, small CNNs, three seeds.

python -m nasty.experiment --config configs/nasty/fashion_mnist.py --workdir runs/fashion_mnist \
    --config.data_dir=DIRECTORY

DIRECTORY holds the prepared TFDS data set. We chose ω, τ and the length of the students' training
on 5,000 held-out training images. The attacker tries four pairs (α, τ_S) on the same held-out
images. Takes 37 minutes on two CPU cores. Expect 92.3% for the normal teacher, 91.0% for the nasty
one, 90.1% and 83.8% for their students, 90.6% for the student alone, and no gap for the attacker's
best.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "tfds:fashion_mnist"
    config.data_dir = config_dict.placeholder(str)
    config.seeds = (1, 2, 3)
    config.num_validation = 5000

    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32, 64), "hidden": 64})
    config.optimizer = "adam"
    config.learning_rate = 2e-3
    config.schedule = "onecycle"
    config.batch_size = 128
    config.num_steps = 3500

    config.omega = 0.013
    config.temperature = 20.0
    config.alpha = 0.9

    config.student = config_dict.ConfigDict()
    config.student.model = "cnn"
    config.student.model_kwargs = config_dict.ConfigDict({"widths": (8, 16, 32), "hidden": 32})
    config.student.optimizer = "adam"
    config.student.learning_rate = 3e-3
    config.student.schedule = "onecycle"
    config.student.batch_size = 128
    config.student.num_steps = 2000

    config.attack_alphas = (0.5, 0.9)
    config.attack_temperatures = (1.0, 4.0)

    config.log_every = 500
    if arg == "smoke":
        config.seeds = (1,)
        config.num_steps = config.student.num_steps = 4
        config.attack_alphas = config.attack_temperatures = ()
    return config.lock()
