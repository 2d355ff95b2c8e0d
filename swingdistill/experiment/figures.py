"""The pictures of Swing distillation: what leaked, at which noise, and how good the scorers are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.experiment.plotting import (
    DIM,
    GRID,
    MARKERS,
    PALETTE,
    REFERENCE,
    drawing,
    list_down,
    sweep,
)
from swingdistill.canaries.exposure import floor_bits

_GOLDEN = 0.6180339887  # its multiples modulo 1 are spread evenly, however many there are
_MEAN: dict[str, Any] = {"color": PALETTE[5], "linewidth": 2.5}
_CEILING: dict[str, Any] = {"color": "black", "linewidth": 1}
_ROOM = 0.25  # of a row of the scorers' figure, between the first and the last level and its middle


def exposure_by_repetition(
    path: epath.PathLike,
    exposures: Mapping[str, Mapping[int, Sequence[float] | np.ndarray]],
    *,
    ceiling: float,
) -> epath.Path:
    """Every secret's exposure: a panel per repetition level, a column per arm, a bar at the mean.

    Lines mark what a secret that was not learnt has on average and the most there can be.

    Args:
      path: of the PNG.
      exposures: arm -> level -> bits of each secret, of all seeds.
      ceiling: bits, log₂ of the number of candidates.
    """
    from matplotlib.lines import Line2D

    bits = {
        arm: {level: np.asarray(values, np.float64) for level, values in by_level.items()}
        for arm, by_level in exposures.items()
    }
    levels = sorted(next(iter(bits.values())))
    everything = [values for by_level in bits.values() for values in by_level.values()]
    names = [arm.replace("_", " ") for arm in bits]
    turned = max(map(len, names)) * len(names) > 70  # characters that fit side by side
    slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    dot = {"color": PALETTE[0], "alpha": 0.3 if max(map(len, everything)) > 40 else 0.55}
    with drawing(path, 1.5 + 0.5 * turned + 1.75 * len(levels)) as figure:
        axes = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, level in zip(axes, levels, strict=True):
            for place, by_level in enumerate(bits.values()):
                values = by_level[level]
                aside = 0.6 * (np.arange(1, len(values) + 1) * _GOLDEN % 1 - 0.5)
                axis.scatter(place + aside, values, s=12, linewidths=0, zorder=3, **dot)
                axis.hlines(values.mean(), place - 0.36, place + 0.36, zorder=4, **_MEAN)
            axis.axhline(floor_bits(), **REFERENCE)
            axis.axhline(ceiling, zorder=2, **_CEILING)
            axis.set_title(f"secrets planted {_times(level)}")
            axis.grid(axis="y")
            axis.tick_params(axis="x", length=0, labelcolor="black")
        highest = max([ceiling, *(values.max() for values in everything)])
        axes[0].set_ylim(-0.04 * highest, 1.06 * highest)
        axes[-1].set_xlim(-0.6, len(bits) - 0.4)
        axes[-1].set_xticks(range(len(bits)), names, **slant)
        axes[len(axes) // 2].set_ylabel("exposure, bits")
        legend = {
            "one secret": {"marker": "o", "markersize": 4, "linewidth": 0, **dot},
            "mean": _MEAN,
            f"nothing learnt: {floor_bits():.2f} on average": REFERENCE,
            f"most possible: {ceiling:.2f}": _CEILING,
        }
        figure.legend(
            handles=[Line2D([], [], label=label, **look) for label, look in legend.items()],
            loc="outside upper left",
            ncols=4,
            columnspacing=1.2,
            handlelength=1.6,
        )
    return epath.Path(path)


def budget_curves(
    path: epath.PathLike, curves: Mapping[str, Mapping[float, tuple[float, float]]]
) -> epath.Path:
    """What noise buys and costs: exposure on the left, perplexity on the right, by noise scale.

    Args:
      path: of the PNG.
      curves: name -> noise scale -> (exposure in bits at the highest repetition level, perplexity);
        the same scales for all.
    """
    scales = sorted(next(iter(curves.values())), reverse=True)
    with drawing(path, 3.6) as figure:
        axes = figure.subplots(1, 2)
        for k, (axis, title) in enumerate(zip(axes, ("exposure, bits", "perplexity"), strict=True)):
            series = {name: [[runs[each][k]] for each in scales] for name, runs in curves.items()}
            sweep(axis, [f"{scale:.3g}" for scale in scales], series)
            axis.set_title(title)
        nothing = f"nothing learnt: {floor_bits():.2f} bits on average"
        axes[0].axhline(floor_bits(), label=nothing, **REFERENCE)
        axes[0].set_ylim(bottom=0)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=3, columnspacing=1.4)
        figure.supxlabel("noise scale (less noise →)", fontsize=10, color=DIM)
    return epath.Path(path)


def scorer_quality(
    path: epath.PathLike, quality: Mapping[str, Mapping[str, Mapping[str, float | None]]]
) -> epath.Path:
    """AUC and recall of every scorer: one row per scorer, one dot per repetition level.

    Args:
      path: of the PNG.
      quality: scorer -> level -> `auc` and `recall`, as `scoring.quality` gives them;
        None has no dot.
    """
    levels = sorted(next(iter(quality.values())), key=int)
    lanes = np.linspace(-_ROOM, _ROOM, len(levels)) if len(levels) > 1 else [0.0]
    titles = {"auc": "AUC (dashed: chance)", "recall": "recall (score above ½)"}
    with drawing(path, 1.5 + 0.5 * len(quality)) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (metric, title) in zip(axes, titles.items(), strict=True):
            for k, level in enumerate(levels):
                found = [by_level[level][metric] for by_level in quality.values()]
                values = np.array(found, np.float64)  # NaN for None
                look = {"color": PALETTE[k], "markersize": 6, "clip_on": False}
                label = f"planted {_times(int(level))}"
                axis.plot(
                    values, np.arange(len(values)) + lanes[k], MARKERS[k], label=label, **look
                )
            list_down(axis, list(quality))
            axis.set_title(title)
            axis.set_xlim(-0.02, 1.02)
            for edge in range(1, len(quality)):
                axis.axhline(edge - 0.5, color=GRID, linewidth=0.8, zorder=0)
        axes[0].axvline(0.5, **REFERENCE)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(levels), 5))
    return epath.Path(path)


def _times(level: int) -> str:
    return "once" if level == 1 else f"{level:,} times"
