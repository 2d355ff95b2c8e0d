"""The pictures of a nasty teacher: its answers, its representations, and what students got."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from distill_core.experiment.plotting import (
    DASHED,
    DIM,
    GRID,
    MARKERS,
    PALETTE,
    REST,
    legend_label,
    pixels,
    save,
    style,
)
from distill_core.experiment.report import Row

_MOST_INPUTS = 12


@dataclasses.dataclass(frozen=True)
class Panel:
    """One scatter of an embedding figure and the numbers beside it."""

    title: str
    points: ArrayLike  # [N, 2]
    labels: ArrayLike  # int [N]
    probe_accuracy: float  # of the representation itself, not of the points; a fraction
    cka: float | None = None  # with the normal network's; None for the normal network


def logit_response(
    path: epath.PathLike,
    images: ArrayLike,
    logits_normal: ArrayLike,
    logits_nasty: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    temperature: float,
) -> epath.Path:
    """What both teachers tell a student: one row an input, its softened probabilities as bars.

    images [N, H, W] or [N, H, W, channels], uint8 or float in [0, 1], N at most 12; logits [N, C];
    labels int [N]; C class names. Images with other than 1 or 3 channels are shown as their mean.
    The true class is coloured; beside the bars stands the class that the network predicts. Raises
    ValueError on other sizes. After Ma et al., 2021, figure 1.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    pictures, truth = np.asarray(images), np.asarray(labels)
    answers = {"normal": np.asarray(logits_normal), "nasty": np.asarray(logits_nasty)}
    n, c = len(pictures), len(classes)
    if not 1 <= n <= _MOST_INPUTS or any(z.shape != (n, c) for z in answers.values()):
        shapes = [pictures.shape, *(z.shape for z in answers.values())]
        raise ValueError(
            f"images and logits: got {shapes}; need 1 to {_MOST_INPUTS} inputs, logits [N, {c}]"
        )
    with style():
        figure = Figure(figsize=(7.2, 0.9 + 1.25 * n), layout="constrained")
        axes = figure.subplots(n, 3, squeeze=False, width_ratios=[1, 3, 3])
        for row in range(n):
            axes[row, 0].imshow(pixels(pictures[row]), cmap="gray", interpolation="nearest")
            axes[row, 0].set_axis_off()
            axes[row, 0].set_title(classes[truth[row]], loc="center", fontweight="normal")
            probabilities = {name: _softmax(z[row], temperature) for name, z in answers.items()}
            top = 1.35 * max(p.max() for p in probabilities.values())
            for axis, (name, p) in zip(axes[row, 1:], probabilities.items(), strict=True):
                colors = [PALETTE[0] if k == truth[row] else REST for k in range(c)]
                axis.bar(range(c), p, color=colors, width=0.8)
                axis.set_ylim(0, top)  # one scale a row: the two are to be compared
                axis.locator_params(axis="y", nbins=3)
                axis.set_xticks(range(c) if c <= 20 else [], [])
                predicted = int(np.argmax(answers[name][row]))
                axis.text(
                    0.99,
                    1.0,
                    f"predicts {classes[predicted]}",
                    transform=axis.transAxes,
                    ha="right",
                    va="top",
                    color=DIM if predicted == truth[row] else PALETTE[5],
                )
                if row == 0:
                    axis.set_title(f"{name} teacher")
                if row == n - 1 and c <= 20:
                    turned = max(map(len, classes)) > 2
                    axis.set_xticklabels(
                        classes, rotation=45 if turned else 0, ha="right" if turned else "center"
                    )
        figure.legend(
            handles=[
                Patch(color=PALETTE[0], label="true class"),
                Patch(color=REST, label="others"),
            ],
            loc="outside lower right",
            ncols=2,
        )
        figure.supxlabel(f"probabilities at temperature {temperature:g}", fontsize=10, color=DIM)
        return save(figure, path)


def embedding_figure(
    path: epath.PathLike, panels: Sequence[Panel], classes: Sequence[str]
) -> epath.Path:
    """Four scatters in a square: features normal and nasty above, logits normal and nasty below.

    Each has its linear-probe accuracy and, for the nasty teacher, its CKA with the normal one.
    Past ten classes the first ten are coloured and the others grey. Raises ValueError where there
    are not four panels.
    """
    from matplotlib.figure import Figure

    if len(panels) != 4:
        raise ValueError(f"panels: got {len(panels)}; need 4: features, then logits, normal, nasty")
    with style():
        figure = Figure(figsize=(7.2, 7.4), layout="constrained")
        for axis, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
            points, labels = np.asarray(panel.points), np.asarray(panel.labels)
            look: dict[str, Any] = {"s": 14, "linewidths": 0, "alpha": 0.85}
            if len(classes) > len(PALETTE):
                rest = labels >= len(PALETTE)
                axis.scatter(*points[rest].T, color=REST, marker=".", label="others", **look)
            for k, (color, marker) in enumerate(zip(PALETTE, MARKERS, strict=True)):
                if k < len(classes):
                    one = points[labels == k]
                    label = legend_label(classes[k])
                    axis.scatter(*one.T, color=color, marker=marker, label=label, **look)
            numbers = f"linear probe {100 * panel.probe_accuracy:.1f}%"
            if panel.cka is not None:
                numbers += f"   CKA with normal {panel.cka:.2f}"
            axis.set_title(panel.title, pad=18)
            axis.text(0, 1.02, numbers, transform=axis.transAxes, color=DIM)
            axis.set_xticks([])  # positions in such a picture have no unit
            axis.set_yticks([])
            axis.spines[:].set(visible=True, color=REST)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, markerscale=1.6)
        return save(figure, path)


def arm_accuracies(path: epath.PathLike, rows: Sequence[Row]) -> epath.Path:
    """The accuracy of every arm: a dot a run, a bar at the mean, a line at the student alone.

    Rows without `accuracy` are left out; raises ValueError where none has it.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.metrics.get("accuracy")]
    if not rows:
        raise ValueError("rows: got none with accuracy; need at least one")
    with style():
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            values = 100 * np.asarray(row.metrics["accuracy"], np.float64)
            color = PALETTE[5] if "nasty" in row.arm else PALETTE[0]
            axis.plot(values, [place] * len(values), "o", color=color, alpha=0.6, markersize=6)
            axis.plot(values.mean(), place, "|", color=color, markersize=18, markeredgewidth=2)
            if row.arm == "student_alone":
                axis.axvline(values.mean(), color=DIM, linewidth=1, linestyle=DASHED, zorder=0)
        axis.set_yticks(range(len(rows)), [row.arm.replace("_", " ") for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        axis.tick_params(axis="y", length=0, labelcolor="black")
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("accuracy, %")
        return save(figure, path)


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max())
    return odds / odds.sum()
