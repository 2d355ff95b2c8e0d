"""The pictures of Swing distillation: what leaked, at which noise, and how good the scorers are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.experiment.plotting import DASHED, DIM, GRID, MARKERS, PALETTE, save, style
from swingdistill.canaries.exposure import floor_bits

_GOLDEN = 0.6180339887  # its multiples modulo 1 are spread evenly, however many there are
_MEAN = PALETTE[5]
_METRICS = ("AUC (dashed: chance)", "recall (score above ½)")
_ROOM = 0.25  # of a row of the scorers' figure, between the first and the last level and its middle


def exposure_by_repetition(
    path: epath.PathLike,
    exposures: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    labels: Mapping[str, str] | None = None,
    ceiling: float,
) -> epath.Path:
    """Every secret's exposure: one panel a repetition level, one column an arm, a bar at the mean.

    Lines mark what a secret that was not learnt has on average and the most there can be.

    Args:
      path: of the PNG.
      exposures: arm -> level -> bits of each secret, of all seeds. An arm may lack a level; what is
        not finite is neither drawn nor in the mean.
      labels: arm -> what to call it; its name without underscores where it is not there.
      ceiling: bits, log₂ of the number of candidates.

    Raises:
      ValueError: there is nothing to draw, or the ceiling is not above 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    bits = {
        arm: {level: _finite(values) for level, values in by_level.items()}
        for arm, by_level in exposures.items()
    }
    levels = sorted({level for by_level in bits.values() for level in by_level})
    if not any(len(values) for by_level in bits.values() for values in by_level.values()):
        raise ValueError("exposures: got no finite exposure; need at least one secret of one arm")
    if not 0 < ceiling < math.inf:
        raise ValueError(f"ceiling: got {ceiling}; must be log2 of the number of candidates, > 0")
    names = [(labels or {}).get(arm, arm.replace("_", " ")) for arm in bits]
    crowd = max(len(values) for by_level in bits.values() for values in by_level.values())
    alpha = 0.3 if crowd > 40 else 0.55
    turned = max(map(len, names)) * len(names) > 70  # characters that fit side by side
    with style():
        figure = Figure(
            figsize=(7.2, 1.5 + 0.5 * turned + 1.75 * len(levels)), layout="constrained"
        )
        axes = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, level in zip(axes, levels, strict=True):
            for place, by_level in enumerate(bits.values()):
                values = by_level.get(level, np.zeros(0))
                if not len(values):
                    continue
                aside = 0.6 * (np.arange(1, len(values) + 1) * _GOLDEN % 1 - 0.5)
                look: dict[str, Any] = {"color": PALETTE[0], "alpha": alpha, "linewidths": 0}
                axis.scatter(place + aside, values, s=12, zorder=3, **look)  # over the ceiling
                ends = (place - 0.36, place + 0.36)
                axis.hlines(values.mean(), *ends, color=_MEAN, linewidth=2.5, zorder=4)
            axis.axhline(floor_bits(), color=DIM, linewidth=1, linestyle=DASHED, zorder=1)
            axis.axhline(ceiling, color="black", linewidth=1, zorder=2)
            axis.set_title(f"secrets planted {_times(level)}")
            axis.grid(axis="y", color=GRID, linewidth=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(axis="x", length=0, labelcolor="black")
        highest = max(
            [ceiling, *(v.max() for levels in bits.values() for v in levels.values() if len(v))]
        )
        axes[0].set_ylim(-0.04 * highest, 1.06 * highest)
        axes[-1].set_xlim(-0.6, len(bits) - 0.4)
        axes[-1].set_xticks(
            range(len(bits)),
            names,
            rotation=35 if turned else 0,
            ha="right" if turned else "center",
            rotation_mode="anchor" if turned else "default",
        )
        axes[len(axes) // 2].set_ylabel("exposure, bits")
        dot = Line2D([], [], color=PALETTE[0], alpha=0.5, marker="o", markersize=4, linewidth=0)
        figure.legend(
            handles=[
                dot,
                Line2D([], [], color=_MEAN, linewidth=2.5),
                Line2D([], [], color=DIM, linewidth=1, linestyle=DASHED),
                Line2D([], [], color="black", linewidth=1),
            ],
            labels=[
                "one secret",
                "mean",
                f"nothing learnt: {floor_bits():.2f} on average",
                f"most possible: {ceiling:.2f}",
            ],
            loc="outside upper left",
            ncols=4,
            columnspacing=1.2,
            handlelength=1.6,
        )
        return save(figure, path)


def budget_curves(
    path: epath.PathLike, curves: Mapping[str, Sequence[tuple[float, float, float]]]
) -> epath.Path:
    """What noise buys and costs: exposure on the left, perplexity on the right, by noise scale.

    Args:
      path: of the PNG.
      curves: name -> (noise scale, exposure in bits at the highest repetition level, perplexity) of
        each run. Runs of one scale are dots around their mean, which the line goes through; what is
        not finite is left out.

    Raises:
      ValueError: there is no run, or a noise scale is not above 0: the axis is logarithmic.
    """
    from matplotlib.figure import Figure

    runs = {name: np.asarray(curve, np.float64) for name, curve in curves.items() if len(curve)}
    if not runs or len(runs) > len(PALETTE):
        raise ValueError(
            f"curves: got {len(runs)} with runs; need 1 to {len(PALETTE)}, each of at least one run"
        )
    for name, points in runs.items():
        if points.shape[1:] != (3,) or not np.all((points[:, 0] > 0) & np.isfinite(points[:, 0])):
            raise ValueError(
                f"curves: {name!r} must hold (noise scale, exposure, perplexity), the noise scale "
                "finite and above 0; draw runs without noise elsewhere"
            )
    with style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, column, title in zip(axes, (1, 2), ("exposure, bits", "perplexity"), strict=True):
            for k, (name, points) in enumerate(runs.items()):
                look: dict[str, Any] = {"color": PALETTE[(0, 5, 2)[k] if k < 3 else k]}
                x, y = points[np.isfinite(points[:, column])][:, [0, column]].T
                scales = np.unique(x)
                means = [y[x == scale].mean() for scale in scales]
                axis.plot(scales, means, linewidth=1.8, **look)
                axis.plot(x, y, MARKERS[k], alpha=0.75, markersize=5, label=name, **look)
            axis.set_title(title)
            axis.grid(color=GRID, linewidth=0.8)
            axis.set_axisbelow(True)
            _noise_axis(axis, np.concatenate([points[:, 0] for points in runs.values()]))
        nothing = f"nothing learnt: {floor_bits():.2f} bits on average"
        axes[0].axhline(
            floor_bits(), color=DIM, linewidth=1, linestyle=DASHED, zorder=1, label=nothing
        )
        axes[0].set_ylim(bottom=0)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=3, columnspacing=1.4)
        figure.supxlabel("noise scale (less noise →)", fontsize=10, color=DIM)
        return save(figure, path)


def scorer_quality(
    path: epath.PathLike, quality: Mapping[str, Mapping[Any, Mapping[str, float | None]]]
) -> epath.Path:
    """AUC and recall of every scorer: one row a scorer, one dot a repetition level.

    Args:
      path: of the PNG.
      quality: scorer -> level, an int or one as a string -> `auc` and `recall`, as
        `scoring.quality` gives them; what is missing, None or NaN has no dot.

    Raises:
      ValueError: there is no scorer or no level.
    """
    from matplotlib.figure import Figure

    found = {level: None for by_level in quality.values() for level in by_level}
    counts = all(str(level).isdecimal() for level in found)  # results.json has them as strings
    levels = sorted(found, key=int) if counts else list(found)
    if not 1 <= len(levels) <= len(PALETTE):
        raise ValueError(
            f"quality: got {len(quality)} scorers at {len(levels)} levels; need at least one "
            f"scorer, and 1 to {len(PALETTE)} levels"
        )
    aside = np.linspace(-_ROOM, _ROOM, len(levels)) if len(levels) > 1 else [0.0]
    with style():
        figure = Figure(figsize=(7.2, 1.5 + 0.5 * len(quality)), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, metric, title in zip(axes, ("auc", "recall"), _METRICS, strict=True):
            for k, level in enumerate(levels):
                values = [
                    np.nan if value is None else float(value)
                    for value in (by.get(level, {}).get(metric) for by in quality.values())
                ]
                axis.plot(
                    values,
                    np.arange(len(values)) + aside[k],
                    MARKERS[k],
                    color=PALETTE[k],
                    markersize=6,
                    label=f"planted {_times(int(level))}" if counts else str(level),
                    clip_on=False,
                )
            axis.set_title(title)
            axis.set_xlim(-0.02, 1.02)
            axis.grid(axis="x", color=GRID, linewidth=0.8)
            for edge in range(1, len(quality)):
                axis.axhline(edge - 0.5, color=GRID, linewidth=0.8, zorder=0)
            axis.set_axisbelow(True)
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="y", length=0, labelcolor="black")
        axes[0].axvline(0.5, color=DIM, linewidth=1, linestyle=DASHED, zorder=1)
        axes[0].set_yticks(range(len(quality)), list(quality))
        axes[0].set_ylim(len(quality) - 0.5, -0.5)  # the first scorer on top
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(levels), 5))
        return save(figure, path)


def _noise_axis(axis: Any, scales: np.ndarray) -> None:
    """A logarithmic axis with less noise to the right; the scales themselves where they are few."""
    from matplotlib.ticker import LogFormatter

    axis.set_xscale("log")
    for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        which(LogFormatter())  # the scale's own writes powers as formulas
    used = np.unique(scales)
    if len(used) <= 8:
        axis.set_xticks(used, [f"{scale:.3g}" for scale in used])
        axis.minorticks_off()
    axis.invert_xaxis()


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64).ravel()
    return array[np.isfinite(array)]


def _times(level: int) -> str:
    return "once" if level == 1 else f"{level:,} times"
