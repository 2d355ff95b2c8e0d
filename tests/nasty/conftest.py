"""The comparison's stages as planned, for the tests of what is built on them."""

import pytest
from etils import epath

from nasty.experiment.comparison import paper_stages

HP = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {"widths": (4,)},
    "train_share": 1.0,
    "learning_rate": 0.1,
    "num_steps": 4,
    "batch_size": 8,
    "omega": 0.03,
    "temperature": 20.0,
    "alpha": 0.9,
    "students": {},
    **{
        f"student_{name}": value
        for name, value in {
            "model": "cnn",
            "model_kwargs": {},
            "optimizer": "adam",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "constant",
            "drop_steps": (),
            "drop_factor": 0.1,
            "num_steps": 2,
            "batch_size": 8,
        }.items()
    },
}


@pytest.fixture
def stages():
    """The runs of seed 3 by arm, in the workdir /work; nothing is run."""
    return {run.arm: run for run in paper_stages(HP, epath.Path("/work"), 3)}
