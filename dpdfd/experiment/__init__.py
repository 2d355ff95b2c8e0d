"""The paper's comparison: its runs, its report, its figures."""

from dpdfd.experiment.comparison import Settings, run

__all__ = ["Settings", "run"]
