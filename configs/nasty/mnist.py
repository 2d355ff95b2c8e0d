"""The paper's comparison on MNIST, whole training set, small CNNs, three seeds.

python -m nasty.experiment --config configs/nasty/mnist.py --workdir runs/mnist \
    --config.data_dir=DIRECTORY

DIRECTORY holds the prepared TFDS data set. The recipe is that of fashion_mnist.py. It was not
tuned for MNIST, and only `:smoke` of it has been run, so there is no number to expect.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "tfds:mnist"
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

    config.omega = 0.015
    config.temperature = 20.0
    config.alpha = 0.9

    config.student = config_dict.ConfigDict()
    config.student.model = "cnn"
    config.student.model_kwargs = config_dict.ConfigDict({"widths": (8, 16, 32), "hidden": 32})
    config.student.optimizer = "adam"
    config.student.learning_rate = 3e-3
    config.student.schedule = "onecycle"
    config.student.batch_size = 128
    config.student.num_steps = 1500

    config.attack_alphas = (0.5, 0.9)
    config.attack_temperatures = (1.0, 4.0)

    config.log_every = 500
    if arg == "smoke":
        config.seeds = (1,)
        config.num_steps = config.student.num_steps = 4
        config.attack_alphas = config.attack_temperatures = ()
    return config.lock()
