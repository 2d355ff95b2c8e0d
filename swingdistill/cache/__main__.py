"""`python -m swingdistill.cache`; see `swingdistill.cache.writing`."""

from distill_core.runtime import cli
from swingdistill.cache import writing

if __name__ == "__main__":
    cli.launch_training(writing.run, writing.Settings)
