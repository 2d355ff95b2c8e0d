"""Filled outlines on black, joined and cut as clothes are, with textures."""

import numpy as np

from distill_core.data.images.procedural.draws import Array, Draws, canvas, shrink

_KNOTS = 6
_JOINED, _CUT = 2, 3  # parts of a silhouette
_FAMILIES = (0.5, 0.2, 0.12, 0.18)  # upright, lying, container, free

# For each family its parts, two joined and three cut out: how likely it is there, and an ellipse
# rather than a box; whether it is mirrored, hangs by its end, is a ring; how many times the
# outline's own reach is added to its x and y; least and greatest x, y, half length, half width,
# angle and taper.
_PARTS = np.array(
    [
        [  # upright: limbs, collar; neck, slit from below, armholes
            [0.6, 0, 1, 1, 0, 0.85, 0, -0.1, 0, -0.9, -0.7, 0.2, 0.9, 0.1, 0.25, 0.5, 1.5, -0.4, 0],
            [0.20, 0.5, 0, 0, 0, 0, 0, 0, 0, -1.05, -0.95, 0.1, 0.25, 0.05, 0.2, 0, 0, 0, 0],
            [0.60, 0.7, 0, 0, 0, 0, 0, 0, 0, -1.05, -0.95, 0.1, 0.3, 0.05, 0.4, 0, 0, 0, 0],
            [0.35, 0, 0, 0, 0, 0, 0, 0, 0, 1.0, 1.0, 0.3, 1.7, 0.03, 0.2, 1.571, 1.571, 0, 0.95],
            [0.20, 1, 1, 0, 0, 1, 0, -0.1, 0.1, -0.95, -0.6, 0.1, 0.25, 0.1, 0.4, 0, 0, 0, 0],
        ],
        [  # lying: heel, tab; two openings, arch
            [0.35, 0, 0, 0, 0, 0, 0, 0.6, 0.85, -0.1, 0.25, 0.1, 0.25, 0.1, 0.3, 0, 0, -0.3, 0.3],
            [0.20, 0.7, 0, 0, 0, 0, -0.9, 0.4, 0.9, -0.2, 0.1, 0.1, 0.25, 0.05, 0.25, -1, 1, 0, 0],
            [0.35, 0.6, 0, 0, 0, 0, -0.5, -0.5, 0.6, -0.2, 0.3, 0.1, 0.4, 0.05, 0.25, -1, 1, 0, 0],
            [0.35, 0.6, 0, 0, 0, 0, -0.9, 0, 0.9, -0.2, 0.2, 0.1, 0.4, 0.05, 0.35, -1, 1, 0, 0],
            [0.40, 0.8, 0, 0, 0, 0, 0, -0.2, 0.5, -0.02, 0.06, 0.15, 0.4, 0.03, 0.15, 0, 0, 0, 0],
        ],
        [  # container: ring, flap; hole, corners
            [0.80, 0.7, 0, 0, 1, 0, -1, -0.1, 0.1, -0.2, 0.1, 0.25, 0.8, 0.2, 0.8, 0, 0, 0, 0],
            [0.25, 0.3, 0, 0, 0, 0, -1, 0, 0, -0.1, 0.2, 0.3, 1.0, 0.05, 0.2, 0, 0, 0, 0],
            [0.10, 0.5, 0, 0, 0, 0, 0, -0.5, 0.5, -0.4, 0.4, 0.1, 0.3, 0.05, 0.2, 0, 0, 0, 0],
            [0.20, 1, 1, 0, 0, 0, -1, 0.9, 1.1, -0.1, 0.1, 0.1, 0.4, 0.1, 0.4, 0, 0, 0, 0],
            [0.15, 1, 1, 0, 0, 0, 1, 0.9, 1.1, -0.1, 0.1, 0.1, 0.4, 0.1, 0.4, 0, 0, 0, 0],
        ],
        [  # free: any
            [0.60, 0.5, 0, 0, 0, 0, 0, -0.8, 0.8, -0.8, 0.8, 0.2, 0.9, 0.1, 0.6, -2, 2, -0.9, 0.9],
            [0.40, 0.5, 1, 0, 0, 0, 0, 0.2, 0.9, -0.8, 0.8, 0.2, 0.9, 0.1, 0.4, -2, 2, -0.9, 0.9],
            [0.40, 0.6, 0, 0, 0, 0, 0, -0.7, 0.7, -0.7, 0.7, 0.1, 0.5, 0.1, 0.4, -2, 2, -0.9, 0.9],
            [0.30, 0.4, 0, 0, 0, 0, 0, -0.7, 0.7, -0.7, 0.7, 0.1, 0.9, 0.03, 0.2, -2, 2, -0.9, 0.9],
            [0.25, 0.5, 1, 0, 0, 0, 0, 0.2, 0.9, -0.7, 0.7, 0.1, 0.5, 0.05, 0.3, -2, 2, 0, 0],
        ],
    ],
    np.float32,
)  # fmt: skip


def paint(draws: Draws, size: int, extent: tuple[float, float]) -> Array:
    """Images float32 [n, size, size, 1]; `extent` is as in `mixture`."""
    pixels = canvas(size)
    family, flip = draws.index(_FAMILIES), _wide(draws.chance(0.5))
    sides = _outlines(draws, family)
    parts = _parts(draws, family, sides)
    middle_x, middle_y, span = _box(family == 0, sides, parts)
    pixel = _wide(span / draws.uniform(*extent) / pixels)

    grid = np.arange(pixels, dtype=np.float32) + 0.5 - pixels / 2
    x = pixel * grid[None, None, :] - _wide(draws.uniform(-0.05, 0.05))
    y = pixel * grid[None, :, None] - _wide(draws.uniform(-0.05, 0.05))
    turn, slant = _wide(draws.uniform(-0.1, 0.1)), _wide(draws.uniform(-0.08, 0.08))
    x, y = x + (turn + slant) * y, y - turn * x
    x, y = np.where(flip, -x, x) + _wide(middle_x), y + _wide(middle_y)
    distance, joined = _distance(x, y, family == 0, sides, parts)
    cover = np.clip(0.5 - distance / pixel, 0, 1)
    return shrink(cover * _texture(draws, x, y, distance, joined), size)


def _outlines(draws: Draws, family: Array) -> Array:
    """Both sides of the outlines at the knots, [n, 2, knots].

    Knots lie from −1 to 1 along y for the upright family, along x for the others; the sides are
    the least and greatest of the other coordinate there.
    """
    t = np.linspace(0, 1, _KNOTS, dtype=np.float32)[None, :]
    a, b, c, d, e = draws.uniform(shape=(5,)).T[..., None]
    rough, other = draws.uniform(-1, 1, (2, _KNOTS)).swapaxes(0, 1)

    half = (
        np.where(e < 0.5, 0.22 + 0.2 * a, 0.45 + 0.3 * a)
        + (0.5 * b - 0.2) * t**1.5
        + (0.35 * c - 0.2) * np.sin(np.pi * t)
    )
    half = np.maximum(half * (1 + 0.07 * rough), 0.12)
    half[:, :1] *= np.where(d < 0.5, 0.4 + d, 1)  # shoulders slope, or not
    rise = (0.1 + 1.5 * b**1.5) / (1 + np.exp(-(6 + 24 * c) * (t - 0.3 - 0.45 * d)))
    height = (0.15 + 0.25 * a) * np.where(t > 0, 1, 0.7) + rise * (1 + 0.08 * rough)
    box = (0.3 + 0.5 * a) * (1 + 0.05 * rough)
    box[:, [0, -1]] *= 0.5 + 0.5 * np.minimum(1, 1.5 * b)
    above = 0.15 + 0.4 * c + 0.7 * a * np.abs(rough)
    below = 0.15 + 0.4 * d + 0.7 * b * np.abs(other)
    ends = ((-half, half), (-height, 0.06 * e + 0 * height), (-box, box), (-above, below))
    return np.choose(family[:, None, None], [np.stack(pair, 1) for pair in ends])


def _parts(draws: Draws, family: Array, sides: Array) -> Array:
    """The parts [n, parts, 11] in the columns that `_distance` reads."""
    table = _PARTS[family]  # [n, parts, 19]
    there, rounded, mirrored, hangs, ring, reach_x, reach_y = np.moveaxis(table[..., :7], -1, 0)
    shape = there.shape[1:]
    low, high = table[..., 7::2], table[..., 8::2]
    drawn = low + (high - low) * draws.uniform(shape=(*shape, 6))
    x, y, length, width, angle, taper = np.moveaxis(drawn, -1, 0)
    there, rounded = draws.uniform(shape=shape) < there, draws.uniform(shape=shape) < rounded
    reach = np.where(family == 0, sides[:, 1, 1], -sides[:, 0].min(1))[:, None]
    x = x + reach_x * reach + hangs * length * np.cos(angle)
    y = y + reach_y * reach + hangs * length * np.sin(angle)
    ring = ring * draws.uniform(0.05, 0.14, shape)
    place, size = (x, y, np.cos(angle), np.sin(angle)), (length, width, taper, ring)
    return np.stack([there, rounded, mirrored, *place, *size], -1).astype(np.float32)


def _box(upright: Array, sides: Array, parts: Array) -> tuple[Array, Array, Array]:
    """Middle x, middle y and longer side of the drawings, each [n], from a coarse grid."""
    grid = np.linspace(-2.4, 2.4, 49, dtype=np.float32)
    distance, _ = _distance(grid[None, None, :], grid[None, :, None], upright, sides, parts)
    inside = distance <= np.maximum(distance.min((1, 2), keepdims=True), 0.03)  # never empty
    middles, spans = [], []
    for axis in (1, 2):
        found = np.any(inside, axis=axis)
        low, high = grid[found.argmax(1)], grid[::-1][found[:, ::-1].argmax(1)]
        middles.append((low + high) / 2)
        spans.append(high - low)
    return *middles, np.maximum(np.maximum(*spans), 0.3)


def _distance(
    x: Array, y: Array, upright: Array, sides: Array, parts: Array
) -> tuple[Array, Array]:
    """About the distance to the silhouette, negative inside, and what a part adds, [n, h, w]."""
    upright = _wide(upright)
    u, v = np.where(upright, y, x), np.where(upright, x, y)
    t = np.clip((u + 1) / 2, 0, 1) * (_KNOTS - 1)
    low, high = np.zeros_like(t), np.zeros_like(t)
    for knot in range(_KNOTS):
        near = np.maximum(1 - np.abs(t - knot), 0)
        low += near * _wide(sides[:, 0, knot])
        high += near * _wide(sides[:, 1, knot])
    body = np.maximum(np.maximum(v - high, low - v), np.abs(u) - 1)
    distance, mirror = body, np.abs(x)
    for part in range(_JOINED + _CUT):
        columns = (_wide(column) for column in parts[:, part].T)
        there, rounded, mirrored, x0, y0, cos, sin, length, width, taper, ring = columns
        dx, dy = np.where(mirrored > 0, mirror, x) - x0, y - y0
        a, b = dx * cos + dy * sin, dy * cos - dx * sin
        oval = np.sqrt(np.square(a / length) + np.square(b / width)) - 1
        box = np.maximum(np.abs(a) - length, np.abs(b) - width * (1 + taper * a / length))
        found = np.where(rounded > 0, oval * np.minimum(length, width), box)
        found = np.where(ring > 0, np.abs(found) - ring, found)
        if part < _JOINED:
            distance = np.minimum(distance, np.where(there > 0, found, np.inf))
        else:
            distance = np.maximum(distance, np.where(there > 0, -found, -np.inf))
    return distance, body > 0


def _texture(draws: Draws, x: Array, y: Array, distance: Array, joined: Array) -> Array:
    """Brightness [n, h, w]: a tone with a gradient, folds, stripes, seams, hems and prints."""

    def some(probability: float, low: float, high: float) -> Array:
        """A factor, 1 in images without the feature."""
        return _wide(np.where(draws.chance(probability), draws.uniform(low, high), 1.0))

    def wave(turn: Array, low: float, high: float) -> Array:
        along = x * _wide(np.cos(turn)) + y * _wide(np.sin(turn))
        return np.sin(_wide(draws.uniform(low, high)) * along + _wide(draws.uniform(0, 2 * np.pi)))

    angle = draws.uniform(0, 2 * np.pi)
    tone = _wide(draws.uniform(0.4, 1.0)) * np.where(joined, some(0.5, 0.6, 1.2), 1.0)
    tone = tone * (1 + _wide(draws.uniform(0, 0.35)) * wave(angle, 0.5, 2))
    for _ in range(2):
        fold = wave(draws.uniform(0, 2 * np.pi), 3, 14)
        tone = tone * (1 + _wide(draws.uniform(0, 0.14)) * fold)
    straight = np.floor(draws.uniform(0, 2)) * np.float32(np.pi / 2)
    turn = np.where(draws.chance(0.75), straight, angle)
    stripes = np.clip(_wide(np.where(draws.chance(0.5), 5, 1)) * wave(turn, 5, 32), -1, 1)
    tone = tone * (1 + (some(0.25, 0.3, 0.95) - 1) * (stripes + 1) / 2)
    tone = tone * np.where(np.abs(x) < _wide(draws.uniform(0.02, 0.06)), some(0.3, 0.3, 1.4), 1)
    tone = tone * np.where(distance > -_wide(draws.uniform(0.05, 0.15)), some(0.5, 0.5, 1.3), 1)
    dx, dy = (np.abs(v - _wide(draws.uniform(-0.5, 0.5))) for v in (x, y))
    print_ = np.maximum(dx / _wide(draws.uniform(0.05, 1.5)), dy / _wide(draws.uniform(0.05, 0.4)))
    return np.minimum(tone * np.where(print_ < 1, some(0.35, 0.2, 1.6), 1), 1)


def _wide(v: Array) -> Array:
    return v[:, None, None]
