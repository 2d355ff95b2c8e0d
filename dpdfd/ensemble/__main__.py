"""`python -m dpdfd.ensemble`; see `dpdfd.ensemble.training`."""

from distill_core.runtime import cli
from dpdfd.ensemble import training

if __name__ == "__main__":
    cli.launch_training(training.train_and_evaluate, training.Settings)
