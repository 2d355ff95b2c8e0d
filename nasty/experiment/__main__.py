"""`python -m nasty.experiment`; see `nasty.experiment.comparison`."""

from distill_core.runtime import cli
from nasty.experiment import comparison

if __name__ == "__main__":
    cli.launch_training(comparison.run, comparison.Settings)
