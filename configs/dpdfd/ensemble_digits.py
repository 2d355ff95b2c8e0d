"""Sixty teachers on disjoint parts of scikit-learn's digits, fitted in closed form.

python -m dpdfd.ensemble --config configs/dpdfd/ensemble_digits.py --workdir runs/ensemble

Takes about 10 seconds on 2 CPU cores; expect a test accuracy of about 91% from the vote, and of 63%
from a single teacher.
"""

from ml_collections import config_dict


def get_config(arg=""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown argument {arg!r}; known: smoke")
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.model = "scattering"
    config.model_kwargs = config_dict.ConfigDict({"J": 1})
    config.num_teachers = 4 if arg == "smoke" else 60
    config.copies = 2 if arg == "smoke" else 8
    config.ridge = 30.0
    config.seed = 0
    return config.lock()
