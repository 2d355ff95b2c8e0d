"""The picture of an inversion: what a normal and a nasty teacher have in mind for each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.experiment.plotting import DIM, drawing, pixels
from nasty.experiment.inversion import Inversion

_MOST_CLASSES, _COLUMNS = 10, 5


def inversion_grid(
    path: epath.PathLike, normal: Inversion, nasty: Inversion, classes: Sequence[str]
) -> epath.Path:
    """One row per class, ten at most: the normal teacher's images left, the nasty one's right.

    Up to five images of each class, in the order of the labels, not cherry-picked; both have the
    same labels. After Yin et al., 2020, and Ma et al., 2021, who show such images of both teachers.
    """
    rows = [np.flatnonzero(normal.labels == k)[:_COLUMNS] for k in range(len(classes))]
    rows = [members for members in rows if len(members)][:_MOST_CLASSES]
    columns = max(map(len, rows))
    cell = min(0.62, 6.4 / (2 * columns + 0.5))
    with drawing(path, 0.6 + cell * len(rows) * 1.06) as figure:
        halves: Any = figure.subfigures(1, 2, wspace=0.06)
        for half, name, found in zip(halves, ("normal", "nasty"), (normal, nasty), strict=True):
            half.suptitle(f"{name} teacher", fontsize=11, fontweight="bold")
            axes = half.subplots(len(rows), columns, squeeze=False)
            for axis in axes.flat:
                axis.set_axis_off()
            for line, members in zip(axes, rows, strict=True):
                for axis, member in zip(line, members, strict=False):
                    image = pixels(found.images[member])
                    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if name == "normal":
                    place = {"transform": line[0].transAxes, "ha": "right", "va": "center"}
                    label = classes[int(normal.labels[members[0]])]
                    line[0].text(-0.25, 0.5, label, color=DIM, **place)
    return epath.Path(path)
