"""The pictures of ablations and of attacks against defences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.experiment.plotting import DASHED, DIM, GRID, MARKERS, PALETTE, save, style


def sweep(
    path: epath.PathLike,
    label: str,
    values: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float]]],
    alone: float,
    *,
    connected: bool = True,
) -> epath.Path:
    """Accuracy along one axis of settings: a series through the means, a dot a run.

    Args:
      path: of the PNG.
      label: of the axis.
      values: as they are to be written; drawn at equal distances, in this order.
      series: name -> each value's accuracies, fractions.
      alone: mean accuracy of the student without a teacher, a dashed line.
      connected: whether values lie on a scale, so that a line leads from one to the next.

    Raises ValueError where a series has not one entry a value.
    """
    from matplotlib.figure import Figure

    places = np.arange(len(values))
    with style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axis = figure.subplots()
        for (name, runs), color, marker in zip(series.items(), PALETTE, MARKERS, strict=False):
            if len(runs) != len(values):
                raise ValueError(
                    f"{name}: got {len(runs)} entries; need one a value, {len(values)}"
                )
            means = [100 * float(np.mean(each)) for each in runs]
            line = "-" if connected else "none"
            axis.plot(places, means, color=color, marker=marker, linestyle=line, label=name)
            for place, each in zip(places, runs, strict=True):
                dots = 100 * np.asarray(each, np.float64)
                axis.plot([place] * len(dots), dots, ".", color=color, alpha=0.5, markersize=5)
        dashed: dict[str, Any] = {"color": DIM, "linewidth": 1, "linestyle": DASHED, "zorder": 0}
        axis.axhline(100 * alone, label="student alone", **dashed)
        axis.set_xticks(places, list(values))
        axis.set_xlabel(label)
        axis.set_ylabel("accuracy, %")
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2)
        return save(figure, path)


def contest(
    path: epath.PathLike,
    attacked: Mapping[tuple[str, str], Sequence[float]],
    alone: float,
) -> epath.Path:
    """What students got by each attack (a row) from each defence (a colour): a mark at the mean.

    Args:
      path: of the PNG.
      attacked: (attack, defence) -> accuracies, fractions.
      alone: mean accuracy of the student without a teacher, a dashed line.
    """
    from matplotlib.figure import Figure

    attacks = list(dict.fromkeys(attack for attack, _ in attacked))
    defences = list(dict.fromkeys(defence for _, defence in attacked))
    with style():
        figure = Figure(figsize=(7.2, 1.4 + 0.6 * len(attacks)), layout="constrained")
        axis = figure.subplots()
        for k, defence in enumerate(defences):
            means = [100 * float(np.mean(attacked[attack, defence])) for attack in attacks]
            # Side by side: marks at one place would hide each other.
            lanes = np.arange(len(attacks)) + 0.6 * ((k + 0.5) / len(defences) - 0.5)
            look: dict[str, Any] = {"color": PALETTE[k], "marker": MARKERS[k], "linestyle": "none"}
            axis.plot(means, lanes, label=defence.replace("_", " "), **look)
        axis.axvline(100 * alone, color=DIM, linewidth=1, linestyle=DASHED, zorder=0)
        axis.set_yticks(range(len(attacks)), [attack.replace("_", " ") for attack in attacks])
        axis.set_ylim(len(attacks) - 0.5, -0.5)  # the first on top
        axis.tick_params(axis="y", length=0, labelcolor="black")
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("accuracy of the attacker's student, %; dashed: the student alone")
        figure.legend(loc="outside upper left", ncols=min(6, len(defences)), title="defence")
        return save(figure, path)
