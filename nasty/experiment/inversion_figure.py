"""The picture of an inversion: what a normal and a nasty teacher have in mind for each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.experiment.plotting import DIM, pixels, save, style
from nasty.experiment.inversion import Inversion

_MOST_CLASSES, _COLUMNS = 10, 5


def inversion_grid(
    path: epath.PathLike, normal: Inversion, nasty: Inversion, classes: Sequence[str]
) -> epath.Path:
    """One row a class, the first ten at most: the normal teacher's images left, the nasty's right.

    Up to five images of each a row, in the order of the labels, chosen by nothing. Raises
    ValueError where the two do not have the same labels. After Yin et al., 2020, and Ma et al.,
    2021, who show such images of both teachers.
    """
    from matplotlib.figure import Figure

    if not np.array_equal(normal.labels, nasty.labels):
        raise ValueError("normal and nasty: need the same labels, in one order")
    shown = np.unique(normal.labels)[:_MOST_CLASSES]
    rows = [np.flatnonzero(normal.labels == k)[:_COLUMNS] for k in shown]
    columns = max(map(len, rows))
    cell = min(0.62, 6.4 / (2 * columns + 0.5))
    with style():
        figure = Figure(figsize=(7.2, 0.6 + cell * len(rows) * 1.06), layout="constrained")
        halves: Any = figure.subfigures(1, 2, wspace=0.06)
        found_by = {"normal": normal, "nasty": nasty}
        for half, (name, found) in zip(halves, found_by.items(), strict=True):
            half.suptitle(f"{name} teacher", fontsize=11, fontweight="bold")
            axes = half.subplots(len(rows), columns, squeeze=False)
            for line, (k, members) in enumerate(zip(shown, rows, strict=True)):
                for axis in axes[line]:
                    axis.set_axis_off()
                for axis, member in zip(axes[line], members, strict=False):
                    image = pixels(found.images[member])
                    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if name == "normal":
                    axes[line, 0].text(
                        -0.25,
                        0.5,
                        classes[k],
                        transform=axes[line, 0].transAxes,
                        ha="right",
                        va="center",
                        color=DIM,
                    )
        return save(figure, path)
