"""A differentially private linear layer on scattering features of the colours of CIFAR-10.

python -m distill_core.train --config configs/distill_core/dp_cifar10.py --workdir runs/dp_cifar10 \
    --config.data_dir=DIRECTORY

DIRECTORY holds the data set as TensorFlow Datasets prepares it. The budget is ε = 10 at δ = 1e-5
per record, zero-out. Settings were chosen on 10,000 held-out training images; such a layer, trained
on the other 40,000, has an accuracy of 66.6% on them.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "tfds:cifar10"
    config.model = "scattering"
    config.model_kwargs = config_dict.ConfigDict(
        {"J": 2, "L": 8, "components": 2000, "ridge": 10.0}
    )
    config.optimizer = "sgd"
    config.learning_rate = 9.0
    config.batch_size = 50_000
    config.num_steps = 2 if arg == "smoke" else 100
    config.log_every = 20
    config.seed = 0
    config.dp = config_dict.ConfigDict(
        {"epsilon": 10.0, "delta": 1e-5, "norm": 1.0, "sampling": "full", "average": 0.5}
    )
    return config.lock()
