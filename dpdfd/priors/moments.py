r"""Images drawn from class means and covariances that one noisy release bought of private images.

Each image is described by its lowest DCT coefficients (Ahmed, Natarajan and Rao, "Discrete Cosine
Transform", 1974), in which most of a natural image lies. Per class their number, sum and second
moments leave once, with Gaussian noise; images are then drawn from one Gaussian per class, without
end and at no further cost (post-processing). Eigenvalues that noise alone explains are dropped, by
the edge of Wigner's semicircle. Our reconstruction.

    moments = release(
        images, labels, num_classes=10, size=16, norm=14.0, noise_multiplier=7.0
    )
    entry = ledger.Entry(
        ledger.GAUSSIAN, 7.0, SENSITIVITY, 1, "record", ledger.ZERO_OUT,
        note="class means and second moments", num_examples=len(images),
    )
    queries = draw(moments, seed=0, labels=np.arange(10_000) % 10)

60,000 images of 28 × 28 take four seconds on two CPU cores.
"""

import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Callable

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import discrete_gaussian

Array = np.ndarray

# Δ of the vector whose noise has standard deviation `noise_multiplier` in every entry: how far
# (L2) a record moves it that is masked, or replaced by any other.
SENSITIVITY = 1.0
SENSITIVITY_REPLACE_ONE = 2.0

# How Δ² is shared out, a² + b² + c² = 1. Second moments are the most numbers by far, and images
# suffer most from their noise; a count is one number, and thousands of records lie behind it.
COUNT_SHARE, MEAN_SHARE, MOMENT_SHARE = 0.1, 0.4, 0.5

# A coefficient is a whole number of units of norm/2¹⁶, finer than the images' own 8 bits. Products
# of two then are below 2³², and sums over 2²¹ records exact in float64 (below 2⁵³).
_BITS = 16
MOST_RECORDS = 1 << 21
MOST_NOISE = 1e4  # of `noise_multiplier`, so that the sampler holds it

_SURE = 4.0  # a class mean is used where its noise (L2) is below norm/4
_CHUNK = 2048  # images at a time
_STREAM = 5  # of a seed's draws; `procedural` has those from 0 to 4


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Gaussians of K classes over D DCT coefficients; all of it is public once released.

    Coefficients are those of pixels in [0, 1] under the orthonormal 2-D DCT, clipped to the norm;
    coefficient (p·k + q)·C + c is that of frequency p down, q across, in channel c, D = k²·C. A
    class of too few records has the mean and covariance of all records.

    Attributes:
      counts: float64 [K], noisy numbers of records, may be negative.
      means: float64 [K, D].
      covariances: float64 [K, D, D], symmetric, around the means; noisy, so not positive.
      noise: float64 [K], standard deviation of the noise off the diagonal of a covariance (√2 as
        much on it).
      size: k, coefficients per axis.
      image_shape: (H, W, C), H = W.
    """

    counts: Array
    means: Array
    covariances: Array
    noise: Array
    size: int
    image_shape: tuple[int, int, int]

    def to_bytes(self) -> bytes:
        """An .npz file of the attributes, the same bytes for the same moments."""
        buffer = io.BytesIO()
        np.savez(buffer, **dataclasses.asdict(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Moments":
        """The inverse of `to_bytes`; raises InputError on anything else."""
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                found = {name: stored[name] for name in names}
            found["size"] = int(found["size"])
            found["image_shape"] = tuple(int(n) for n in found["image_shape"])
            made = cls(**found)
            made._check()
        except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            allowed = f"must be the .npz file of `Moments.to_bytes`, with {', '.join(names)}"
            raise InputError("moments", f"{len(data)} bytes", allowed) from None
        return made

    def _check(self):
        """Raises ValueError where shapes do not fit together."""
        height, width, channels = self.image_shape
        classes, dims = len(self.counts), self.size**2 * channels
        shapes = {
            "counts": (classes,),
            "means": (classes, dims),
            "covariances": (classes, dims, dims),
            "noise": (classes,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float64:
                raise ValueError(name)
        if not (height == width and 1 <= self.size <= height and channels >= 1):
            raise ValueError("image_shape")


def release(
    images: Array,
    labels: Array,
    *,
    num_classes: int,
    size: int,
    norm: float,
    noise_multiplier: float,
    live: Array | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> Moments:
    """Class means and covariances of labelled images, with noise; on the host.

    Formal guarantee: at least as private as one Gaussian mechanism of std/Δ = `noise_multiplier`,
    at every (ε, δ), for a record under zero-out adjacency: a record is masked at its place
    (`live`), where it counts nothing (`SENSITIVITY`); at most 2Δ for a record that is replaced by
    any other (`SENSITIVITY_REPLACE_ONE`). It assumes that N, `num_classes`, `size`, `norm` and
    `noise_multiplier` are public and were chosen without looking at the records, that a record is
    one image and its label, and that the random bytes are fair and stay unknown. What leaves lies
    on a grid and excludes no neighbour (`discrete_gaussian`); no rounding is left out of Δ
    (`record_sums`).

    Args:
      images: uint8 [N, H, H, C], N at most `MOST_RECORDS`.
      labels: integers [N] in [0, num_classes).
      num_classes: K.
      size: k, DCT coefficients per axis, at most H.
      norm: R, to which an image's coefficients are clipped (L2), in units of pixels in [0, 1]: an
        image of 28 × 28 whose pixels are all 0.5 has 14.
      noise_multiplier: std/Δ, above 0 and at most `MOST_NOISE`.
      live: bool [N], False for a masked record; None for no such record.
      random: n to n random bytes.

    Raises:
      InputError: an argument of the wrong shape or type, or outside its range.
    """
    sums = record_sums(images, labels, num_classes=num_classes, size=size, norm=norm, live=live)
    fields = {"noise_multiplier": config.number(0.0, MOST_NOISE, above=True)}
    sigma = config.validate({"noise_multiplier": noise_multiplier}, fields)["noise_multiplier"]
    dims = size * size * images.shape[3]
    worth = _worth(dims)
    for value in np.unique(worth):  # always in the same order
        entries = worth == value
        # Noise of standard deviation σ in an entry of the vector. Upwards, by more than the last
        # bits of what is computed here.
        std = sigma / float(value) * (1 + 1e-12)
        shape = (num_classes, int(entries.sum()))
        noise = discrete_gaussian.sample(std, math.prod(shape), random)
        sums[:, entries] += noise.reshape(shape)
    return _moments(sums, sigma, norm, size, images.shape[1:])


def record_sums(
    images: Array,
    labels: Array,
    *,
    num_classes: int,
    size: int,
    norm: float,
    live: Array | None = None,
) -> Array:
    """Sums over records of what is released, exact; private, without noise.

    The row of class y adds up, over its records, 1, v and the upper triangle of v vᵀ, in units of
    2⁻¹⁶, 2⁻¹⁶ and 2⁻³². Here v are the D lowest DCT coefficients, divided by `norm`, clipped to L2
    norm 1 and rounded towards 0 to a multiple of 2⁻¹⁶.

    Formal guarantee: weighted by a, b and c (√2·c off the diagonal, which stands for two entries),
    a record's vector is (a, b·v, c·v vᵀ), of norm √(a² + b²‖v‖² + c²‖v‖⁴) ≤ 1, exactly: v is
    rounded before it is added up, and never upwards, and all sums are of whole numbers below 2⁵³,
    which float64 adds without error in any order. So a masked record moves the vector by at most
    `SENSITIVITY` and a replaced one by at most `SENSITIVITY_REPLACE_ONE`, rounding included.

    Args: as for `release`.

    Returns:
      int64 [K, 1 + D + D(D+1)/2].

    Raises:
      InputError: as `release` does.
    """
    live = np.ones(len(labels), bool) if live is None else live
    _check(images, labels, live, num_classes, size, norm)
    dims = size * size * images.shape[3]
    counts = np.zeros(num_classes)
    first, second = np.zeros((num_classes, dims)), np.zeros((num_classes, dims, dims))
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        v = _whole(_coefficients(images[rows], size), norm)
        for label in np.unique(labels[rows][live[rows]]):
            mine = v[live[rows] & (labels[rows] == label)]
            counts[label] += len(mine) << _BITS
            first[label] += mine.sum(0)
            second[label] += mine.T @ mine
    upper = np.triu_indices(dims)
    sums = np.concatenate([counts[:, None], first, second[:, *upper]], axis=1)
    return sums.astype(np.int64)


def draw(moments: Moments, seed: int, labels: Array) -> Array:
    """Images from the Gaussians of their classes, clipped to [0, 1].

    Image i depends on the seed, i and its label alone, however many there are. (On another machine
    last bits may differ: a covariance enters by its symmetric root, which is the same whichever
    way eigenvectors point.)

    Of a covariance, eigenvalues w below e = 2·noise·√D are dropped: there ends the spectrum of
    noise alone (Wigner's semicircle law). Others are shrunk to (w + √(w² − e²))/2, which takes out
    what noise adds to an eigenvalue that stands apart (Benaych-Georges and Nadakuditi, 2011).

    Args:
      moments: of K classes.
      seed: at least 0.
      labels: integers [n] in [0, K).

    Returns:
      float32 [n, H, W, C].

    Raises:
      InputError: `seed` or `labels` of the wrong type or outside their range.
    """
    config.validate({"seed": seed}, {"seed": config.integer(0)})
    _check_labels(labels, len(moments.counts))
    side, _, channels = moments.image_shape
    shape = (moments.size, moments.size, channels)
    basis, dims = _basis(side, moments.size), math.prod(shape)
    edges = 2 * moments.noise * math.sqrt(dims)
    roots = {
        label: _root(moments.covariances[label], float(edges[label])) for label in np.unique(labels)
    }
    out = np.empty((len(labels), *moments.image_shape), np.float32)
    rng = np.random.default_rng([seed, _STREAM])
    for start in range(0, len(labels), _CHUNK):
        mine = labels[start : start + _CHUNK]
        # All are drawn in full, so that an image does not depend on the classes of those before.
        z = rng.standard_normal((len(mine), dims))
        v = moments.means[mine]
        for label in np.unique(mine):
            rows, (down, up) = mine == label, roots[label]
            # A product for each image: of many at once, last bits depend on how many they are.
            v[rows] += np.matmul(np.matmul(z[rows, None], down), up)[:, 0]
        blocks = v.reshape(-1, *shape).transpose(0, 3, 1, 2)  # [n, C, k, k]
        pixels = np.matmul(np.matmul(basis.T, blocks), basis)
        out[start : start + _CHUNK] = np.clip(pixels, 0, 1).transpose(0, 2, 3, 1)
    return out


def _basis(side: int, size: int) -> Array:
    """The first rows of the orthonormal DCT-II, float64 [size, side]."""
    frequency, place = np.arange(size)[:, None], np.arange(side)[None, :]
    rows = np.cos(math.pi * frequency * (2 * place + 1) / (2 * side)) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows


def _coefficients(images: Array, size: int) -> Array:
    """uint8 [n, H, H, C] to float64 [n, D]."""
    basis = _basis(images.shape[1], size)
    pixels = images.transpose(0, 3, 1, 2) / 255.0
    blocks = np.matmul(np.matmul(basis, pixels), basis.T)  # image by image
    return blocks.transpose(0, 2, 3, 1).reshape(len(images), -1)


def _whole(v: Array, norm: float) -> Array:
    """float64 [n, D], whole numbers: v/norm, clipped to L2 norm 1, in units of 2⁻¹⁶."""
    norms = np.sqrt(np.square(v).sum(-1, keepdims=True))
    # Less by far more than the last bits of norm and quotient; rounding towards 0 takes more off.
    scale = (1 << _BITS) * (1 - 1e-9) / np.maximum(norm, norms)
    return np.trunc(v * scale)


def _worth(dims: int) -> Array:
    """What a unit of each column of `record_sums` is in the vector of Δ = 1."""
    a, b, c = (math.sqrt(share) for share in (COUNT_SHARE, MEAN_SHARE, MOMENT_SHARE))
    row, column = np.triu_indices(dims)
    second = np.where(row == column, c, math.sqrt(2) * c) / 4**_BITS
    return np.concatenate([[a / 2**_BITS], np.full(dims, b / 2**_BITS), second])


def _moments(sums: Array, sigma: float, norm: float, size: int, shape) -> Moments:
    """Post-processing of noisy sums [K, 1 + D + D(D+1)/2]; `sigma` is std/Δ."""
    dims = size * size * shape[2]
    # The last row is all records together.
    sums = np.concatenate([sums, sums.sum(0, keepdims=True)]).astype(np.float64)
    counts, first = sums[:, 0] / 2**_BITS, sums[:, 1 : 1 + dims] / 2**_BITS * norm
    second = np.zeros((len(sums), dims, dims))
    row, column = np.triu_indices(dims)
    second[:, row, column] = second[:, column, row] = sums[:, 1 + dims :] / 4**_BITS * norm**2

    few = counts < max(1.0, _SURE * sigma * math.sqrt(dims / MEAN_SHARE))
    few[-1] = False
    divisor = np.maximum(counts, 1.0)
    means = first / divisor[:, None]
    covariances = second / divisor[:, None, None] - means[:, :, None] * means[:, None, :]
    noise = sigma / math.sqrt(2 * MOMENT_SHARE) * norm**2 / divisor
    noise[-1] *= math.sqrt(len(sums) - 1)
    for values in (means, covariances, noise):
        values[few] = values[-1]
    return Moments(counts[:-1], means[:-1], covariances[:-1], noise[:-1], size, tuple(shape))


def _root(covariance: Array, edge: float) -> tuple[Array, Array]:
    """[D, r] and [r, D], whose product is the symmetric root of the shrunk covariance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(edge, 0.0)
    values, vectors = values[kept], np.ascontiguousarray(vectors[:, kept])
    shrunk = (values + np.sqrt(np.square(values) - edge**2)) / 2
    return vectors, np.ascontiguousarray((vectors * np.sqrt(shrunk)).T)


def _check(images: Array, labels: Array, live: Array, num_classes: int, size: int, norm: float):
    config.validate({"num_classes": num_classes}, {"num_classes": config.integer(1)})
    config.validate({"norm": norm}, {"norm": config.number(0.0, above=True)})
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or 0 in shape:
        raise InputError("images", f"{images.dtype} {shape}", "must be uint8 [N, H, H, C], square")
    if len(images) > MOST_RECORDS:
        raise InputError("images", f"{len(images):,}", f"must be at most {MOST_RECORDS:,}")
    config.validate({"size": size}, {"size": config.integer(1, shape[1])})
    _check_labels(labels, num_classes)
    if len(labels) != len(images):
        raise InputError("labels", f"{len(labels):,} labels", f"images are {len(images):,}")
    if live.dtype != bool or live.shape != labels.shape:
        raise InputError("live", f"{live.dtype} {live.shape}", f"must be bool {labels.shape}")


def _check_labels(labels: Array, num_classes: int):
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError("labels", f"{labels.dtype} {labels.shape}", "must be integers [N]")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        given = f"from {labels.min()} to {labels.max()}"
        raise InputError("labels", given, f"must lie in [0, {num_classes})")
