"""Pen strokes on black: smooth paths, joined as in handwriting, and the ink along them."""

import numpy as np

from distill_core.data.images.procedural.draws import Array, Draws, canvas, shrink

_STROKES, _PIECES, _POINTS = 3, 3, 64  # S, K and P, at most
# A piece of a stroke: how likely it is, and by how much it turns in all, in radians.
_STRAIGHT, _BEND, _ARC, _LOOP = (
    (0.34, 0.0, 0.3),
    (0.2, 0.5, 1.6),
    (0.34, 1.9, 3.9),
    (0.12, 4.6, 6.8),
)
_TURNS = np.array([_STRAIGHT, _BEND, _ARC, _LOOP], np.float32)
# Where a stroke sets out for: right, down right, down, down left, left.
_HEADINGS = np.pi * np.array([0, 0.25, 0.5, 0.75, 1], np.float32)


def paint(draws: Draws, size: int, extent: tuple[float, float]) -> Array:
    """Images float32 [n, size, size, 1]; `extent` is as in `mixture`."""
    x, y, step, drawn = _paths(draws)
    used = np.repeat(drawn, _POINTS, axis=1)  # [n, S·P], as all below
    x, y, step = x.reshape(used.shape), y.reshape(used.shape), np.repeat(step, _POINTS, axis=1)

    # Most writing is taller than wide; then it is narrowed, slanted and turned a little.
    (left, right), (top, bottom) = _span(x, used), _span(y, used)
    lying = (right - left > 1.1 * (bottom - top)) & draws.chance(0.9)[:, None]
    x, y = np.where(lying, y, x), np.where(lying, x, y)
    x = x * draws.uniform(0.75, 1.15)[:, None] - y * draws.uniform(-0.1, 0.4)[:, None]
    turn = draws.uniform(-0.15, 0.15)[:, None]
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)

    (left, right), (top, bottom) = _span(x, used), _span(y, used)
    radius, side = draws.uniform(0.028, 0.06)[:, None], draws.uniform(*extent)[:, None]
    side = np.maximum(side - 2 * radius, side / 2)  # the ink goes beyond the path
    scale = side / np.maximum(right - left, bottom - top)
    x, y = (_centred(scale * v, used, draws.uniform(-0.04, 0.04)[:, None]) for v in (x, y))
    return shrink(_ink(draws, x, y, used * scale * step, radius, canvas(size)), size)


def _ink(draws: Draws, x: Array, y: Array, step: Array, radius: Array, pixels: int) -> Array:
    """Brightness [n, pixels, pixels] of a pen's dots at x, y in [0, 1], one every `step`.

    A step of 0 leaves no ink. A dot is Gaussian in both directions, so that all of them together
    are a matrix product.
    """
    beat = np.linspace(0, 1, x.shape[1], dtype=np.float32)[None, :]
    beat = np.sin(2 * np.pi * (draws.uniform(1, 5)[:, None] * beat + draws.uniform()[:, None]))
    radius = radius * (1 + draws.uniform(0, 0.3)[:, None] * beat)
    sigma = np.maximum(0.5 * radius, 0.4 / pixels)
    strength = np.log(2) * np.exp(np.square(radius / sigma) / 2)  # half bright at the radius
    strength = strength * step / (np.sqrt(2 * np.pi) * sigma)
    grid = ((np.arange(pixels, dtype=np.float32) + 0.5) / pixels)[None, :, None]
    across, down = (np.exp(-np.square((grid - v[:, None]) / sigma[:, None]) / 2) for v in (x, y))
    ink = np.matmul(down * strength[:, None], across.transpose(0, 2, 1))
    return draws.uniform(0.85, 1.0)[:, None, None] * (1 - np.exp(-ink))


def _paths(draws: Draws) -> tuple[Array, Array, Array, Array]:
    """Points x, y [n, S, P] at equal steps [n, S] along the strokes, and which are drawn [n, S]."""
    strokes, pieces = (_STROKES,), (_STROKES, _PIECES)
    there = np.arange(_PIECES) <= draws.index((0.32, 0.45, 0.23), strokes)[..., None]
    kind = draws.index(tuple(_TURNS[:, 0]), pieces)
    kind = np.where(np.cumsum(kind == 3, axis=-1) > 1, 1, kind)  # one loop a stroke
    turn = _TURNS[kind, 1] + (_TURNS[kind, 2] - _TURNS[kind, 1]) * draws.uniform(shape=pieces)
    length = there * draws.uniform(0.5, 1.0, pieces) * (1 + turn / 4)
    turn = turn * np.cumprod(np.where(draws.chance(0.45, pieces), -1, 1), axis=-1)
    corner = draws.uniform(0.8, 2.7, pieces) * np.where(draws.chance(0.5, pieces), 1, -1)
    corner = corner * draws.chance(0.45, pieces)
    start = _HEADINGS[draws.index((0.3, 0.1, 0.3, 0.2, 0.1), strokes)]
    corner[..., 0] = start + draws.uniform(-0.4, 0.4, strokes)

    total = length.sum(-1)
    along = total[..., None] * (np.arange(_POINTS, dtype=np.float32) + 0.5) / _POINTS
    begin = np.cumsum(length, axis=-1) - length
    wave = draws.uniform(0.5, 1.5, strokes)[..., None] * along + draws.uniform(shape=(_STROKES, 1))
    heading = draws.uniform(0, 0.25, (_STROKES, 1)) * np.sin(2 * np.pi * wave)
    for piece in range(_PIECES):
        gone = along - begin[..., piece, None]  # [n, S, P]; a piece that is not there never begins
        part = np.clip(gone / np.maximum(length[..., piece, None], 1e-3), 0, 1)
        heading += turn[..., piece, None] * part + corner[..., piece, None] * (gone >= 0)
    step = total / _POINTS
    step[:, 1:] *= draws.uniform(0.4, 1.0, (_STROKES - 1,))
    x = np.cumsum(np.cos(heading), axis=-1) * step[..., None]
    y = np.cumsum(np.sin(heading), axis=-1) * step[..., None]

    rows = np.arange(draws.num)
    for stroke in range(1, _STROKES):  # a point of it is put on a point of the one before
        own, other = (
            np.rint((_POINTS - 1) * np.clip(draws.uniform(-0.25, 1.25), 0, 1)).astype(int)
            for _ in range(2)
        )
        for v in (x, y):
            apart = v[rows, stroke - 1, other] - v[rows, stroke, own]
            v[:, stroke] += (apart + draws.uniform(-0.06, 0.06))[:, None]
    drawn = np.arange(_STROKES)[None, :] <= draws.index((0.5, 0.37, 0.13))[:, None]
    return x, y, step, drawn


def _span(v: Array, used: Array) -> tuple[Array, Array]:
    """Least and greatest of the used entries of [n, points], each [n, 1]."""
    low = np.where(used, v, np.inf).min(1, keepdims=True)
    return low, np.where(used, v, -np.inf).max(1, keepdims=True)


def _centred(v: Array, used: Array, shift: Array) -> Array:
    """[n, points] moved so that the mean lies `shift` off 0.5, as far as [0.03, 0.97] has room."""
    low, high = _span(v, used)
    mean = (v * used).sum(1, keepdims=True) / used.sum(1, keepdims=True)
    room = np.maximum(0.47 - (high - low) / 2, 0)
    middle = (low + high) / 2
    return 0.5 + v - middle + np.clip(middle - mean + shift, -room, room)
