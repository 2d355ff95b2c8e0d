"""The paper's comparison: its runs, its report, its figures."""

from swingdistill.experiment.comparison import FIELDS, run

__all__ = ["FIELDS", "run"]
