"""What the painters of the priors share: a table of uniform draws to spend, and a finer canvas."""

import math

import numpy as np

Array = np.ndarray

WIDTH = 160  # draws that a drawing may spend
_SHARP = 28  # pixels a side; smaller drawings are made larger and averaged


class Draws:
    """Hands out the columns of a table of uniform draws [n, width], each once, row by row alike."""

    def __init__(self, table: Array):
        self.num, self._table, self._used = len(table), table.astype(np.float32), 0

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Array:
        """float32 [n, *shape], uniform in [low, high]."""
        count = math.prod(shape)
        columns = self._table[:, self._used : self._used + count]
        self._used += count
        return (low + (high - low) * columns).reshape(self.num, *shape)

    def chance(self, probability: float, shape: tuple[int, ...] = ()) -> Array:
        """bool [n, *shape]."""
        return self.uniform(shape=shape) < probability

    def index(self, weights: tuple[float, ...], shape: tuple[int, ...] = ()) -> Array:
        """int [n, *shape] of these probabilities, which add up to 1."""
        return np.searchsorted(np.cumsum(weights)[:-1], self.uniform(shape=shape), side="right")


def canvas(size: int) -> int:
    """Pixels a side to draw on for an image of `size`: a multiple, where that is small."""
    return size * max(1, math.ceil(_SHARP / size))


def shrink(images: Array, size: int) -> Array:
    """Means over square blocks, [n, canvas, canvas] to float32 [n, size, size, 1] in [0, 1]."""
    factor = images.shape[1] // size
    if factor > 1:
        images = images.reshape(-1, size, factor, size, factor).mean((2, 4))
    return np.clip(images, 0, 1).astype(np.float32)[..., None]
