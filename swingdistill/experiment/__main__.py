"""`python -m swingdistill.experiment`; see `swingdistill.experiment.comparison`."""

from distill_core.runtime import cli
from swingdistill.experiment import comparison

if __name__ == "__main__":
    cli.launch_training(comparison.run, comparison.Settings)
