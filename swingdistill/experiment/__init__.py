"""The paper's comparison: its runs, its report, its figures."""

from swingdistill.experiment.comparison import Settings, run

__all__ = ["Settings", "run"]
