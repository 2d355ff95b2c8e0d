"""Images drawn by code from no data: pen strokes, silhouettes, smoothed noise.

They hold common knowledge: digits and letters are a few smooth strokes, and things to wear are a
few filled outlines. No image enters them. But their forms and frequencies were shaped while looking
at training images of MNIST and Fashion-MNIST, so that for those two data sets they are a choice
that no ε counts; for data that nobody looked at they cost no privacy. Our reconstruction.

Image i is a function of the seed, i and the settings alone, whatever `num` is: row i of a table of
uniform draws decides all of it. (Another machine's exponentials may differ in the last bit.) All
images are float32 [N, H, W, C] in [0, 1]; drawings of one channel are bright on black.
"""

import math
from collections.abc import Mapping

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.data.images.procedural import pen, silhouettes
from distill_core.data.images.procedural.draws import WIDTH, Array, Draws

KINDS = ("strokes", "shapes", "noise")
EXTENTS = {"strokes": (0.62, 0.8), "shapes": (0.8, 1.0)}  # parts of the image's side
_STREAMS = {name: stream for stream, name in enumerate((*KINDS, "kinds", "colours"))}
_CHUNK = 128  # images at a time, so that the arrays at work stay in the processor's cache


def strokes(
    seed: int, num: int, *, size: int, extent: tuple[float, float] = EXTENTS["strokes"]
) -> Array:
    """Pen strokes alone; see `mixture`.

    Args:
      seed: at least 0.
      num: N, how many images.
      size: of a side, in pixels.
      extent: least and greatest part of the side that a drawing takes.

    Returns:
      float32 `[N, size, size, 1]` in [0, 1].
    """
    return mixture(seed, num, size=size, channels=1, weights={"strokes": 1.0}, extent=extent)


def mixture(
    seed: int,
    num: int,
    *,
    size: int,
    channels: int,
    weights: Mapping[str, float],
    extent: tuple[float, float] | None = None,
) -> Array:
    """Images of several kinds; image i of a kind is the same in every mixture.

    "strokes" are one to three smooth pen strokes, joined as in handwriting. A stroke has up to
    three pieces: straight, bent, an arc or a loop, with or without a corner between them; a further
    stroke touches or crosses the one before. Slant, width, pressure and place vary.

    "shapes" are filled silhouettes with a texture: an outline, with parts joined on or cut out. Of
    four families three come to mind with things to wear or carry: upright (alike left and right,
    with or without limbs), lying (with a flat bottom), container (with a ring on top); the fourth
    is any union of boxes, ellipses and polygons.

    "noise" is white noise blurred by a Gaussian, with a width, brightness and contrast of each
    image; its channels agree more or less. A drawing with more than one channel gets two random
    colours, for itself and its background.

    Args:
      seed: at least 0.
      num: N, at least 0.
      size: H = W, at least 4.
      channels: C, at least 1.
      weights: of the kinds: probabilities up to a factor.
      extent: least and greatest longer side of a drawing, as parts of `size`; None for each kind's
        own.

    Returns:
      float32 [N, size, size, C].

    Raises:
      InputError: an argument outside its range.
    """
    _check(seed, num, size, channels, weights, extent)
    out = np.empty((num, size, size, channels), np.float32)
    bounds = np.cumsum([weights.get(kind, 0.0) for kind in KINDS])
    bounds = bounds / bounds[-1]
    streams = {name: np.random.default_rng([seed, number]) for name, number in _STREAMS.items()}
    for start in range(0, num, _CHUNK):
        rows = out[start : start + _CHUNK]
        kinds = np.searchsorted(bounds, streams["kinds"].random(len(rows)), side="right")
        colours = streams["colours"].random((len(rows), 2, 1, 1, channels)).astype(np.float32)
        for number, kind in enumerate(KINDS):
            if not weights.get(kind):
                continue
            # Drawn for all, so that an image does not depend on the others' kinds.
            width = _noise_draws(size, channels) if kind == "noise" else WIDTH
            table, mine = streams[kind].random((len(rows), width)), kinds == number
            if not mine.any():
                continue
            draws = Draws(table[mine])
            if kind == "noise":
                rows[mine] = _noise(draws, size, channels)
                continue
            paint = pen.paint if kind == "strokes" else silhouettes.paint
            images = paint(draws, size, extent or EXTENTS[kind])
            if channels > 1:
                back, front = colours[mine].transpose(1, 0, 2, 3, 4)
                images = back + (front - back) * images
            rows[mine] = images
    return out


def _noise_draws(size: int, channels: int) -> int:
    return size * size * (channels + 1) + 4


def _noise(draws: Draws, size: int, channels: int) -> Array:
    width = size * np.exp(draws.uniform(math.log(0.03), math.log(0.25)))[:, None, None]
    apart = np.arange(size, dtype=np.float32)
    apart = np.square(apart[None, :, None] - apart[None, None, :])
    blur = np.exp(-apart / (2 * np.square(width)))
    blur = (blur / blur.sum(-1, keepdims=True))[:, None]  # [n, 1, H, H]
    white = draws.uniform(-1, 1, (channels + 1, size, size))
    smooth = np.matmul(np.matmul(blur, white), blur.swapaxes(-1, -2))
    # What is left of one field in common makes the channels more or less alike.
    alike = draws.uniform()[:, None, None, None] if channels > 1 else 0.0
    smooth = np.sqrt(alike) * smooth[:, :1] + np.sqrt(1 - alike) * smooth[:, 1:]
    middle = smooth.mean((1, 2, 3), keepdims=True)
    spread = np.maximum(smooth.std((1, 2, 3), keepdims=True), 1e-6)
    contrast = draws.uniform(0.1, 0.4)[:, None, None, None]
    bright = draws.uniform(0.2, 0.8)[:, None, None, None]
    return np.clip(bright + contrast * (smooth - middle) / spread, 0, 1).transpose(0, 2, 3, 1)


def _check(seed, num, size, channels, weights, extent):
    given = {"seed": seed, "num": num, "size": size, "channels": channels}
    lows = {"seed": 0, "num": 0, "size": 4, "channels": 1}
    config.validate(given, {name: config.integer(low) for name, low in lows.items()})
    allowed = f"must map some of {', '.join(KINDS)} to weights of at least 0, one of them above 0"
    values = tuple(weights.values())
    if (
        weights.keys() - set(KINDS)
        or not all(0 <= value < math.inf for value in values)
        or sum(values) <= 0
    ):
        raise InputError("weights", dict(weights), allowed)
    if extent is not None and not (len(extent) == 2 and 0 < extent[0] <= extent[1] <= 1):
        raise InputError("extent", extent, "must be (least, greatest) in (0, 1]")
