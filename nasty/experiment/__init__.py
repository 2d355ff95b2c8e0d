"""The paper's comparison: its runs, its report, its figures."""

from nasty.experiment.comparison import FIELDS, run

__all__ = ["FIELDS", "run"]
