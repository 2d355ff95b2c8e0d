"""The paper's comparison: its runs, its report, its figures."""

from nasty.experiment.comparison import Settings, run

__all__ = ["Settings", "run"]
