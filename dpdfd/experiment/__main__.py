"""`python -m dpdfd.experiment`; see `dpdfd.experiment.comparison`."""

from distill_core.runtime import cli
from dpdfd.experiment import comparison

if __name__ == "__main__":
    cli.launch_training(comparison.run, comparison.Settings)
