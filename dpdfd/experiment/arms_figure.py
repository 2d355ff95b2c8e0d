"""The experiment's picture: what each arm's student and its generator's samples are worth."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from distill_core.experiment.plotting import DIM, GRID, PALETTE, save, style
from distill_core.experiment.report import Row

_SHOWN = {
    "accuracy": ("the student", "o", PALETTE[0]),
    "fresh_classifier_accuracy": ("a fresh classifier, of generated samples", "D", PALETTE[1]),
}


def arm_accuracies(path: epath.PathLike, rows: Sequence[Row]) -> epath.Path:
    """Accuracies of every arm, a mark a run, with its ε; raises ValueError without any."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.metrics.get("accuracy")]
    if not rows:
        raise ValueError("rows: got none with accuracy; need at least one")
    with style():
        figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        named = set()
        for place, row in enumerate(rows):
            for k, (metric, (what, marker, color)) in enumerate(_SHOWN.items()):
                values = 100 * np.asarray(row.metrics.get(metric, []), np.float64)
                if not len(values):
                    continue
                label = None if what in named else what
                named.add(what)
                heights = [place + 0.12 * (2 * k - 1)] * len(values)
                axis.plot(values, heights, marker, color=color, alpha=0.7, label=label)
        axis.set_yticks(range(len(rows)), [_label(row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        axis.tick_params(axis="y", length=0, labelcolor="black")
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("accuracy on test images, %", color=DIM)
        figure.legend(loc="outside lower center", ncols=2)
        return save(figure, path)


def _label(row: Row) -> str:
    name = row.arm.replace("_", " ")
    if "epsilon" not in row.metrics:
        return name
    about = row.settings["privacy_unit"]
    return f"{name} (ε = {max(row.metrics['epsilon']):.3g} a {about})"
