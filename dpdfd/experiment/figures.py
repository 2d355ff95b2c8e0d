"""The pictures of a conversion: what the generator draws, and how the run went."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from distill_core.experiment.plotting import DIM, PALETTE, drawing, pixels

_MOST_CLASSES = 20
# Names in metrics.jsonl, and what they are; nothing else of a run is drawn.
QUANTITIES = {
    "loss": "student's loss on the bought answers",
    "grad_norm": "norm of the student's gradient, as it was applied",
    "generator_loss": "generator's loss",
    "accuracy": "accuracy on test, %",
}


def sample_grid(
    path: epath.PathLike,
    images: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    columns: int = 12,
) -> epath.Path:
    """Generated images, one row per class, the first `columns` of each.

    images uint8 [N, H, W, channels], shown as `pixels` makes them; labels int [N], the student's
    view; C class names, of which the first 20 are drawn. A class without images is an empty row.
    Raises ValueError on other shapes.
    """
    pictures, seen = np.asarray(images), np.asarray(labels)
    if pictures.ndim != 4 or seen.shape != pictures.shape[:1]:
        raise ValueError(f"images: got {pictures.shape}, labels {seen.shape}; need [N, H, W, C]")
    names = list(classes)[:_MOST_CLASSES]
    height, width = pictures.shape[1] + 1, pictures.shape[2] + 1  # a line of white between
    shown = np.full((height * len(names), width * columns, 3), 255, np.uint8)
    for k in range(len(names)):
        for i, picture in enumerate(pictures[seen == k][:columns]):
            top, left = k * height, i * width
            drawn = np.atleast_3d(pixels(picture))
            shown[top : top + height - 1, left : left + width - 1] = drawn
    with drawing(path, 0.5 + 6.2 * len(shown) / shown.shape[1]) as figure:
        axis = figure.subplots()
        axis.imshow(shown, interpolation="nearest")
        axis.set_yticks([(k + 0.5) * height - 1 for k in range(len(names))], names)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title("generated samples, by the student's class")
    return epath.Path(path)


def over_epsilon(
    path: epath.PathLike,
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    published: Mapping[str, Mapping[float, float]],
) -> epath.Path:
    """Accuracy over ε, means with one dot per seed, and published results as crosses.

    `curves` map a name to ε -> accuracies of all seeds, fractions; `published` a method's name to
    ε -> accuracy. Raises ValueError without curves.
    """
    if not curves:
        raise ValueError("curves: got none")
    styles = itertools.cycle((color, line) for line in ("-", "--") for color in PALETTE)
    with drawing(path, 5.0) as figure:
        axis = figure.subplots()
        for (name, curve), (color, line) in zip(curves.items(), styles, strict=False):
            means = sorted((epsilon, 100 * np.mean(values)) for epsilon, values in curve.items())
            look = {"color": color, "linestyle": line, "linewidth": 1.6, "label": name}
            axis.plot(*zip(*means, strict=True), **look)
            for epsilon, values in curve.items():
                each = 100 * np.asarray(values)
                axis.plot([epsilon] * len(each), each, "o", color=color, markersize=3)
        marked = zip(published.items(), itertools.cycle("x+1234"), strict=False)
        for (name, points), marker in marked:
            values = 100 * np.array(list(points.values()))
            axis.plot(list(points), values, marker, color=DIM, label=f"{name} (sees the data)")
        axis.set_xscale("log")
        axis.minorticks_off()
        every = sorted({epsilon for curve in curves.values() for epsilon in curve})
        axis.set_xticks(every, [f"{epsilon:g}" for epsilon in every])
        axis.set_xlabel("ε of a record, in its row's adjacency; published: as they state it")
        axis.set_title("accuracy on test, %", fontweight="normal", color=DIM)
        axis.grid(axis="y")
        axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=1)
    return epath.Path(path)


def convergence(path: epath.PathLike, rows: Sequence[Mapping[str, Any]]) -> epath.Path:
    """What a run measured over its steps, one panel for each of `QUANTITIES` that it has.

    All of them follow the noise, where there is noise. `rows` are those of the run's metrics.jsonl;
    raises ValueError where they hold nothing to draw.
    """
    curves = {
        name: [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        for name in QUANTITIES
    }
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        raise ValueError(f"rows: got none with any of {', '.join(QUANTITIES)}")
    with drawing(path, 0.6 + 1.9 * len(curves)) as figure:
        axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, curve) in zip(axes, curves.items(), strict=True):
            steps, values = np.asarray(curve, np.float64).T
            few = {"marker": "o", "markersize": 4} if len(steps) < 30 else {}
            if name == "accuracy":
                axis.plot(steps, 100 * values, color=PALETTE[5], linewidth=1.6, **few)
                axis.set_ylim(0, 100)
            else:
                axis.plot(steps, values, color=PALETTE[0], linewidth=1.6, **few)
            axis.set_title(QUANTITIES[name], fontweight="normal", color=DIM)
            axis.grid(axis="y")
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return epath.Path(path)
