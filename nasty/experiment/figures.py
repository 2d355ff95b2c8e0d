"""The pictures of a nasty teacher: its answers, its representations, what it takes for a class."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike
from scipy import special

from distill_core.experiment.plotting import (
    DIM,
    MARKERS,
    PALETTE,
    REST,
    drawing,
    legend_label,
    pixels,
)

_MOST_CLASSES, _COLUMNS = 10, 5  # of the images of an inversion


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
    """What both teachers tell a student: one row per input, its softened probabilities as bars.

    All bars share one scale, and all images one of grey.

    images [N, H, W] or [N, H, W, channels], uint8 or float in [0, 1], some ten; logits [N, C];
    labels int [N]; C class names. Images with other than 1 or 3 channels are shown as their mean.
    The true class is coloured; beside the bars stands the class that the network predicts. After
    Ma et al., 2021, figure 1.
    """
    from matplotlib.patches import Patch

    pictures, truth = np.asarray(images), np.asarray(labels)
    answers = {"normal": np.asarray(logits_normal), "nasty": np.asarray(logits_nasty)}
    softened = {
        name: special.softmax(logits.astype(np.float64) / temperature, axis=-1)
        for name, logits in answers.items()
    }
    n, few = len(pictures), len(classes) <= 20
    turned = max(map(len, classes)) > 2
    top = 1.35 * max(each.max() for each in softened.values())
    white = 255 if pictures.dtype == np.uint8 else 1
    with drawing(path, 0.9 + 1.25 * n) as figure:
        axes = figure.subplots(n, 3, squeeze=False, width_ratios=[1, 3, 3])
        for row, label in enumerate(truth):
            grey = {"cmap": "gray", "vmin": 0, "vmax": white, "interpolation": "nearest"}
            axes[row, 0].imshow(pixels(pictures[row]), **grey)
            axes[row, 0].set_axis_off()
            axes[row, 0].set_title(classes[label], loc="center", fontweight="normal")
            colors = [PALETTE[0] if k == label else REST for k in range(len(classes))]
            for axis, (name, logits) in zip(axes[row, 1:], answers.items(), strict=True):
                axis.bar(range(len(classes)), softened[name][row], color=colors, width=0.8)
                axis.set_ylim(0, top)
                axis.locator_params(axis="y", nbins=3)
                axis.set_xticks(range(len(classes)) if few else [], [])
                found = int(np.argmax(logits[row]))
                place = {"transform": axis.transAxes, "ha": "right", "va": "top"}
                color = DIM if found == label else PALETTE[5]
                axis.text(0.99, 1.0, f"predicts {classes[found]}", color=color, **place)
        for axis, name in zip(axes[0, 1:], answers, strict=True):
            axis.set_title(f"{name} teacher")
        for axis in axes[-1, 1:] if few else ():
            slant = {"rotation": 45, "ha": "right"} if turned else {}
            axis.set_xticklabels(classes, **slant)
        handles = [Patch(color=PALETTE[0], label="true class"), Patch(color=REST, label="others")]
        figure.legend(handles=handles, loc="outside lower right", ncols=2)
        figure.supxlabel(f"probabilities at temperature {temperature:g}", fontsize=10, color=DIM)
    return epath.Path(path)


def embedding_figure(
    path: epath.PathLike, panels: Sequence[Panel], classes: Sequence[str]
) -> epath.Path:
    """Four scatters in a square: features normal and nasty above, logits normal and nasty below.

    Each has its linear-probe accuracy and, for the nasty teacher, its CKA with the normal one.
    Past ten classes the first ten are coloured and the others grey.
    """
    look = {"s": 14, "linewidths": 0, "alpha": 0.85}
    with drawing(path, 7.4) as figure:
        for axis, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
            points, labels = np.asarray(panel.points), np.asarray(panel.labels)
            if len(classes) > len(PALETTE):
                rest = points[labels >= len(PALETTE)]
                axis.scatter(*rest.T, color=REST, marker=".", label="others", **look)
            for k, (name, color, marker) in enumerate(zip(classes, PALETTE, MARKERS, strict=False)):
                one = points[labels == k]
                axis.scatter(*one.T, color=color, marker=marker, label=legend_label(name), **look)
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
    return epath.Path(path)


def inversion_grid(
    path: epath.PathLike,
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
) -> epath.Path:
    """One row per class, ten at most: the normal teacher's images left, the nasty one's right.

    images: "normal" and "nasty" -> float [N, H, W, channels] in [0, 1] of the same labels [N]. Up
    to five of each class, in the order of the labels, not cherry-picked. After Yin et al., 2020,
    and Ma et al., 2021, who show such images of both teachers.
    """
    rows = [np.flatnonzero(labels == k)[:_COLUMNS] for k in range(min(len(classes), _MOST_CLASSES))]
    columns = max(map(len, rows))
    cell = min(0.62, 6.4 / (2 * columns + 0.5))
    with drawing(path, 0.6 + cell * len(rows) * 1.06) as figure:
        halves: Any = figure.subfigures(1, 2, wspace=0.06)
        for half, (name, shown) in zip(halves, images.items(), strict=True):
            half.suptitle(f"{name} teacher", fontsize=11, fontweight="bold")
            axes = half.subplots(len(rows), columns, squeeze=False)
            for axis in axes.flat:
                axis.set_axis_off()
            for label, line, members in zip(classes, axes, rows, strict=False):
                for axis, member in zip(line, members, strict=False):
                    image = pixels(shown[member])
                    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if half is halves[0]:
                    place = {"transform": line[0].transAxes, "ha": "right", "va": "center"}
                    line[0].text(-0.25, 0.5, label, color=DIM, **place)
    return epath.Path(path)
