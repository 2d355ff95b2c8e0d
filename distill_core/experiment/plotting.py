"""The look that the methods' figures share, and how one is drawn and written."""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from distill_core.checkpoint import integrity

# Okabe and Ito's colours and two of Tol's: told apart with any colour vision, in this order.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#332288",
    "#999933",
    "#882255",
    "#000000",
)
MARKERS = "osD^vP*X<>"  # with the colour, so that neither is needed to read a class
REST = "#B8BEC7"
DIM = "#5A6473"
GRID = "#E1E5EA"
DASHED = (0, (4, 3))


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
        "xtick.color": DIM,
        "ytick.color": DIM,
        "legend.frameon": False,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.1,
        "savefig.facecolor": "white",
    }
    with matplotlib.rc_context(look):
        yield


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
