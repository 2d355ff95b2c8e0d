"""The look that the methods' figures share, and how one is drawn and written."""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from distill_core.checkpoint import integrity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours and two of Tol's: told apart with any colour vision, in this order.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#332288", "#999933", "#882255", "#000000"),
)
MARKERS = "osD^vP*X<>"  # with the colour, so that neither is needed to read a class
REST = "#B8BEC7"
DIM = "#5A6473"
GRID = "#E1E5EA"
REFERENCE: dict[str, Any] = {"color": DIM, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look that the figures share, for the time of drawing one."""
    import matplotlib

    look: dict[Any, Any] = {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on any machine
        "font.size": 10,  # of 7.2 inches: still read on a phone
        "text.parse_math": False,  # names of classes and arms are text: "cost $5" is no formula
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": DIM,
        "axes.labelcolor": DIM,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": DIM,
        "ytick.color": DIM,
        "legend.frameon": False,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.1,
        "savefig.facecolor": "white",
    }
    with matplotlib.rc_context(look):
        yield


@contextlib.contextmanager
def drawing(path: epath.PathLike, height: float) -> "Iterator[Figure]":
    """A figure in the shared look, 7.2 inches wide; saved as a PNG at the end of the block."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(7.2, height), layout="constrained")
        yield figure
        save(figure, path)


def save(figure: Any, path: epath.PathLike) -> epath.Path:
    """Writes a matplotlib figure as a PNG of 150 dots an inch, and its folder if it is not there.

    Call it inside `style()`. Returns the path.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=150)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_atomically(path, buffer.getvalue())
    return path


def attempt(
    draw: Callable[..., epath.Path | None], path: epath.PathLike, *args: Any, **kwargs: Any
) -> epath.Path | None:
    """`draw(path, *args, **kwargs)`; where that raises, None and one line on stderr.

    No picture is worth the results beside it.
    """
    try:
        return draw(path, *args, **kwargs)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{path}: picture left out: {reason[:300]}", file=sys.stderr, flush=True)
        return None


def accuracies(
    path: epath.PathLike,
    names: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    colors: Sequence[str] = (),
    reference: float | None = None,
    label: str = "accuracy, %",
) -> epath.Path:
    """One row per name: a dot per run and a bar at their mean, series side by side.

    Args:
      path: of the PNG.
      names: of the rows, the first on top.
      series: what a legend calls it -> the accuracies of every row's runs, fractions.
      colors: of the rows, where there is one series, which then needs no legend.
      reference: an accuracy to mark with a dashed line.
      label: of the axis.
    """
    height = max(0.42, 0.1 * len(series) + 0.22)  # of a row
    with drawing(path, 0.9 + 0.4 * (not colors) + height * len(names)) as figure:
        axis = figure.subplots()
        for k, (name, rows) in enumerate(series.items()):
            for place, runs in enumerate(rows):
                if not len(runs):
                    continue
                values = 100 * np.asarray(runs, np.float64)
                lane = place + 0.6 * ((k + 0.5) / len(series) - 0.5)
                color = colors[place] if colors else PALETTE[k]
                axis.plot(values, [lane] * len(values), MARKERS[k], color=color, alpha=0.6)
                bar = {"markersize": 18 / len(series) ** 0.5, "markeredgewidth": 2}
                axis.plot(values.mean(), lane, "|", color=color, **bar)
            if not colors:
                axis.plot([], [], MARKERS[k], color=PALETTE[k], label=legend_label(name))
        if reference is not None:
            axis.axvline(100 * reference, **REFERENCE)
        list_down(axis, names)
        axis.set_xlabel(label)
        if not colors:
            figure.legend(loc="outside upper left", ncols=min(6, len(series)))
    return epath.Path(path)


def sweep(
    axis: "Axes",
    values: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    scale: float = 1.0,
    connected: bool = True,
):
    """A mark at each value's mean, with faint dots for its runs, for every series.

    Args:
      axis: to draw on.
      values: as they are to be written; drawn at equal distances, in this order.
      series: what a legend calls it -> each value's runs; what is not finite is left out.
      scale: that runs are multiplied by, as 100 for percent.
      connected: whether values lie on a scale, so that a line leads from one to the next.
    """
    places = range(len(values))
    for (name, points), color, marker in zip(series.items(), PALETTE, MARKERS, strict=False):
        runs = [scale * np.asarray(each, np.float64) for each in points]
        runs = [each[np.isfinite(each)] for each in runs]
        means = [each.mean() if len(each) else np.nan for each in runs]
        line = "-" if connected else "none"
        axis.plot(
            places, means, color=color, marker=marker, linestyle=line, label=legend_label(name)
        )
        for place, each in zip(places, runs, strict=True):
            axis.plot([place] * len(each), each, ".", color=color, alpha=0.5, markersize=5)
    axis.set_xticks(places, list(values))
    axis.grid(axis="y")


def list_down(axis: "Axes", names: Sequence[str]):
    """One row per name, the first on top, on a grid of values."""
    axis.set_yticks(range(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0, labelcolor="black")
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)


def pixels(image: np.ndarray) -> np.ndarray:
    """An image [H, W], [H, W, 1] or [H, W, C] as `imshow` takes it: [H, W] or, for C = 3, as it is.

    Other numbers of channels have no colours that are known: their mean is shown, of the same type.
    """
    if image.ndim == 2 or image.shape[2] == 3:
        return image
    return image.mean(axis=2).astype(image.dtype)


def legend_label(name: str) -> str:
    """A name as a legend shows it: matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name
