"""The look that the methods' figures share, and how one is written."""

import contextlib
from collections.abc import Iterator
from typing import Any

from etils import epath

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
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=150)
    return path
