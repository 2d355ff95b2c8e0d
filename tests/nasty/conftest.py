"""The comparison's runs as planned, for the tests of what is built on them."""

import pytest

from distill_core import config
from nasty.experiment.comparison import Settings, paper_runs


@pytest.fixture
def hp():
    """The settings of a small comparison."""
    return config.validate(
        {
            "dataset": "digits",
            "model": "cnn",
            "model_kwargs": {"widths": (4,)},
            "learning_rate": 0.1,
            "num_steps": 4,
            "batch_size": 8,
            "omega": 0.03,
            "temperature": 20.0,
            "alpha": 0.9,
            "seeds": (3,),
            "student": {
                "model": "cnn",
                "optimizer": "adam",
                "learning_rate": 0.1,
                "num_steps": 2,
                "batch_size": 8,
            },
        },
        Settings,
    )


@pytest.fixture
def runs(hp):
    """The runs of seed 3 by arm; nothing is run."""
    return paper_runs(hp, 3)
