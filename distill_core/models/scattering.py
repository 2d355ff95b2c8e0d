"""Scattering: fixed wavelet features of an image, whitened, and one linear layer on them.

Nothing in the features is fitted to data: the filters are formulas, the normalisation is of each
image by itself, and the whitening comes from images that code draws
(`distill_core.data.images.procedural`). So the linear layer is all that training data reaches.
Sources: Bruna and Mallat, "Invariant Scattering Convolution Networks", PAMI 2013, with the filters
and subsampling of Kymatio (Andreux et al., 2020); group normalisation before a private linear
layer: Tramèr and Boneh, "Differentially Private Learning Needs Better Features (or Much More
Data)", ICLR 2021. Whitening by drawn images is ours.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from distill_core.config import InputError
from distill_core.data.images import procedural
from distill_core.models.apply import CONSTANTS
from distill_core.models.layers import check_images, mask_examples

Array = jax.Array

_HIGHEST = jax.lax.Precision.HIGHEST
_DRAWN = 8_000  # images that the whitening is fitted to
_BATCH = 250
_LEAST_CHANNELS = 3  # of a group that is normalised together
_EPSILON = 1e-5
_PROGRAM = """\
import numpy as np
from kymatio.scattering2d.frontend.numpy_frontend import ScatteringNumPy2D  # 0.3
from safetensors.numpy import load_file

weights = load_file("model.safetensors")
mean, std = np.float32({mean}), np.float32({std})
scattering = ScatteringNumPy2D({arguments})


def logits(images):
    # images: float32 {shape} in [0, 1]
    x = (np.asarray(images, np.float32) - mean) / std
    x = scattering(np.ascontiguousarray(np.moveaxis(x, 3, 1)))  # [B, C, paths, h, w]
    x = x.reshape(len(x), {groups}, -1)  # groups of neighbouring paths
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + {epsilon})
    x = x.reshape(len(x), -1) - weights["constants/mean"]
    x = x @ weights["constants/projection"]
    return x @ weights["params/linear/kernel"] + weights["params/linear/bias"]
"""


class Scattering(nn.Module):
    """`scattering`, normalised per image, whitened; then one linear layer.

    The whitening is kept in the collection "constants": `mean` [F] and `projection` [F, D] of
    `whitening_of`. Differentiable by the images.

    Attributes:
      num_classes: K.
      J: scales; images have at least 2^(J+2) pixels a side.
      L: orientations.
      components: D, whitened features that are kept, at most F.
      ridge: added to the eigenvalues of the drawn images' features, in units of their mean.
      whitening: kinds of drawn images that whitening is fitted to, of `procedural.KINDS`.
    """

    num_classes: int
    J: int = 2
    L: int = 8
    components: int = 1000
    ridge: float = 3.0
    whitening: tuple[str, ...] = procedural.KINDS

    def __post_init__(self):
        for name, most in {"J": 8, "L": 64, "components": 100_000}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                allowed = f"must be an integer in [1, {most}]"
                raise InputError(f"model_kwargs.{name}", value, allowed)
        ridge: Any = self.ridge
        if (
            isinstance(ridge, bool)
            or not isinstance(ridge, int | float)
            or not 1e-6 <= ridge <= 1e6
        ):
            raise InputError("model_kwargs.ridge", ridge, "must be a number in [1e-6, 1e6]")
        kinds: Any = self.whitening
        if not isinstance(kinds, tuple) or not kinds or set(kinds) - set(procedural.KINDS):
            allowed = f"must name some of {', '.join(procedural.KINDS)}, images that code draws: "
            allowed += "statistics of data would tell of its records"
            raise InputError("model_kwargs.whitening", kinds, allowed)
        super().__post_init__()

    def public(self, x: Array) -> Array:
        """Features that no training data reaches.

        Args:
          x: standardised images, float32 `[B, H, W, C]`.

        Returns:
          float32 `[B, D]`.
        """
        self._check_size(x)
        found = normalised(scattering(x.astype(jnp.float32), self.J, self.L))
        if self.is_initializing():
            size = found.shape[1]
            self.put_variable(CONSTANTS, "mean", jnp.zeros(size))
            kept = min(self.components, size)
            self.put_variable(CONSTANTS, "projection", jnp.zeros((size, kept)))
        mean: Any = self.get_variable(CONSTANTS, "mean")
        projection: Any = self.get_variable(CONSTANTS, "projection")
        return jnp.matmul(found - mean[None], projection, precision=_HIGHEST)

    @nn.compact
    def head(self, features: Array) -> Array:
        """The linear layer on the features.

        Args:
          features: float32 `[B, D]`.

        Returns:
          Logits, float32 `[B, K]`.
        """
        self.sow("intermediates", "features", features)
        zeros = nn.initializers.zeros_init()
        return nn.Dense(self.num_classes, kernel_init=zeros, name="linear")(features)

    def __call__(self, x: Array, *, train: bool = False, where: Array | None = None) -> Array:
        """Images float32 [B, H, W, C] to logits [B, K]; `where` bool [B] masks."""
        del train
        return self.head(self.public(mask_examples(x, where)))

    @nn.nowrap
    def constants(
        self, input_shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> dict[str, np.ndarray]:
        """The collection "constants" for standardised images.

        Args:
          input_shape: (H, W, C) of an image.
          mean: by which pixels are standardised, one value per channel.
          std: the same.

        Returns:
          NumPy arrays by name: `mean` float32 `[F]` and `projection` float32 `[F, D]`.
        """
        module: Any = self.clone(num_classes=1, parent=None)  # Linen modules hash by their fields
        return whitening_of(module, input_shape, mean, std)

    @nn.nowrap
    def describe(
        self, input_shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> dict[str, str]:
        """For a release's card: the features in words, and a program of the logits.

        The program reads `model.safetensors` and needs NumPy, safetensors and Kymatio alone.

        Args:
          input_shape: (H, W, C) of an image.
          mean: by which pixels are standardised, one value per channel.
          std: the same.

        Returns:
          Texts by name: "features" and "numpy".
        """
        size, _, channels = input_shape
        paths = 1 + self.J * self.L + self.L**2 * self.J * (self.J - 1) // 2
        per_group = _group_size(paths)
        features = (
            "Scattering up to order 2 (Bruna and Mallat, PAMI 2013), as in Kymatio 0.3 with "
            f"J={self.J} and L={self.L}, of each channel of the standardised images: [B, "
            f"{channels}, {paths} paths, {size >> self.J}, {size >> self.J}]. In each image, every "
            f"group of {per_group} neighbouring paths of a channel is normalised to mean 0 and "
            f"variance 1, with epsilon {_EPSILON} (Tramèr and Boneh, ICLR 2021). Whitening: minus "
            "constants/mean [F], times constants/projection [F, D], both fitted to images that "
            f"code draws ({', '.join(self.whitening)}), to no data. The logits are a linear layer "
            "on that, params/linear/kernel [D, K] and params/linear/bias [K]."
        )
        program = _PROGRAM.format(
            shape=f"[B, {size}, {size}, {channels}]",
            mean=list(mean),
            std=list(std),
            arguments=f"J={self.J}, shape=({size}, {size}), L={self.L}",
            groups=channels * paths // per_group,
            epsilon=_EPSILON,
        )
        return {"features": features, "numpy": program}

    def _check_size(self, x: Array):
        check_images(x)
        height, width = x.shape[1:3]
        if height != width:
            allowed = f"takes square images, not {height}×{width}"
            raise InputError("model", "scattering", allowed)
        least = 2 ** (self.J + 2)
        if height < least:
            allowed = f"needs images of at least {least}×{least} pixels, not {height}×{width}"
            raise InputError("model_kwargs.J", self.J, allowed)


def scattering(images: Array, J: int, L: int) -> Array:
    """Scattering coefficients up to order 2, each channel by itself.

    First order: |x ⋆ ψ_{j,θ}|; second: ||x ⋆ ψ_{j,θ}| ⋆ ψ_{k,η}| with k > j; all of them, and x
    itself, averaged by a Gaussian and subsampled by 2^J. Reflected at the border. Equal to
    Kymatio's `Scattering2D` up to rounding and its 3.1415 for π; the averaging is two small
    matrix products instead of a Fourier transform.

    Args:
      images: float32 [B, H, W, C], H = W ≥ 2^(J+2).
      J: scales.
      L: orientations.

    Returns:
      float32 [B, C, 1 + JL + L²J(J−1)/2, H/2^J, W/2^J].
    """
    batch, size, _, channels = images.shape
    padded, waves, averages = _filters(size, J, L)
    x = jnp.moveaxis(images, 3, 1)  # [B, C, H, W]
    before = (padded - size) // 2
    edges = (before, padded - size - before)
    x = jnp.pad(x, ((0, 0), (0, 0), edges, edges), mode="reflect")

    def averaged(u: Array, scale: int) -> Array:
        rows = jnp.asarray(averages[scale])
        return jnp.einsum("im,...mn,jn->...ij", rows, u, rows, precision=_HIGHEST)

    spectrum = jnp.fft.fft2(x)[:, :, None]
    first = [_moduli(spectrum, waves[j, 0], 2**j) for j in range(J)]  # [B, C, L, n, n]
    found = [averaged(x[:, :, None], 0), *(averaged(u, j) for j, u in enumerate(first))]
    for j, u in enumerate(first[:-1]):
        below = jnp.fft.fft2(u)[:, :, :, None]
        second = [
            averaged(_moduli(below, waves[k, j], 2 ** (k - j)), k) for k in range(j + 1, J)
        ]  # [B, C, L, L, m, m]
        both = jnp.concatenate(second, axis=3)
        found.append(both.reshape(batch, channels, -1, *both.shape[-2:]))
    return jnp.concatenate(found, axis=2)


def normalised(coefficients: Array) -> Array:
    """[B, C, P, h, w] to float32 [B, C·P·h·w]: mean 0 and variance 1 in groups of paths.

    A group are a few neighbouring paths of one channel: three, or the next divisor of P.
    """
    batch, channels, paths = coefficients.shape[:3]
    x = coefficients.reshape(batch, channels * paths // _group_size(paths), -1)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)
    return x.reshape(batch, -1)


def _group_size(paths: int) -> int:
    """How many neighbouring paths are normalised together."""
    return next(n for n in range(min(_LEAST_CHANNELS, paths), paths + 1) if paths % n == 0)


@functools.lru_cache(maxsize=8)
def whitening_of(
    module: Scattering,
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, np.ndarray]:
    """Mean [F] of drawn images' features, and the projection [F, D] to their main axes, float32.

    With eigenvalues λ of the features' covariance, axis i is divided by √(λ_i + ridge · mean λ).
    Drawn from a fixed seed.
    """
    height, _, channels = input_shape
    weights = dict.fromkeys(module.whitening, 1.0)
    features = _features_of_drawn(module, height, channels, weights, (mean, std))
    center = features.mean(0)
    features -= center
    # Whichever of the two products is smaller has the same eigenvalues.
    wide = features.shape[1] > len(features)
    gram = (features @ features.T if wide else features.T @ features) / len(features)
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    kept = min(module.components, features.shape[1])
    order = np.argsort(values)[::-1][: min(kept, len(values))]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    if wide:
        axes = features.T @ vectors.astype(np.float32)
        vectors = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    scale = np.sqrt(values + module.ridge * np.square(features).mean())
    projection = np.zeros((features.shape[1], kept), np.float32)
    projection[:, : len(scale)] = vectors / scale
    return {"mean": center, "projection": projection}


def _features_of_drawn(module: Scattering, size: int, channels: int, weights, constants):
    """float32 [N, F]."""
    mean, std = (np.asarray(each, np.float32) for each in constants)
    images = procedural.mixture(7, _DRAWN, size=size, channels=channels, weights=weights)
    images = (images - mean) / std
    parts = np.split(images, _DRAWN // _BATCH)
    return np.concatenate([np.asarray(_features(part, module.J, module.L)) for part in parts])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _features(images: Array, J: int, L: int) -> Array:
    return normalised(scattering(images, J, L))


def _moduli(spectrum: Array, wave: np.ndarray, step: int) -> Array:
    """|x ⋆ ψ|, subsampled, of a spectrum [..., 1, n, n] and filters [L, n, n]: [..., L, m, m]."""
    size = spectrum.shape[-1] // step
    wave = wave.reshape((1,) * (spectrum.ndim - 3) + wave.shape)
    # Subsampling folds the spectrum; block by block, so that no product is held whole.
    blocks = [
        (..., slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
        for i in range(step)
        for j in range(step)
    ]
    folded = sum(
        (spectrum[at] * wave[at] for at in blocks[1:]), spectrum[blocks[0]] * wave[blocks[0]]
    )
    folded = folded / step**2
    z = jnp.fft.ifft2(folded)
    return jnp.sqrt(jnp.square(z.real) + jnp.square(z.imag) + 1e-12)  # has a slope at 0


@functools.lru_cache(maxsize=8)
def _filters(size: int, J: int, L: int):
    """(padded size, {(k, j): spectra float32 [L, n, n] at resolution 2^−j}, averages by scale)."""
    padded = ((size + 2**J) // 2**J + 1) * 2**J
    waves = {}
    for k in range(J):
        full = [_morlet(padded, k, orientation, L) for orientation in range(L)]
        for j in range(k + 1):
            folded = [_folded(_folded(wave, j).T, j).T for wave in full]
            waves[k, j] = np.stack(folded).astype(np.float32)
        waves[k, 0] = np.stack(full).astype(np.float32)
    low = np.real(np.fft.fft2(_gabor(padded, 0.8 * 2 ** (J - 1), 0.0, 0.0, 1.0)))
    low = low[:, 0] / math.sqrt(low[0, 0])  # separable: one factor
    averages = []
    for j in range(J):
        n, step = padded >> j, 2 ** (J - j)
        product = np.fft.fft(np.eye(n), axis=0) * _folded(low[:, None], j)
        folded = product.reshape(step, n // step, n).mean(0)
        averages.append(np.real(np.fft.ifft(folded, axis=0))[1:-1].astype(np.float32))
    return padded, waves, tuple(averages)


def _folded(spectrum: np.ndarray, scale: int) -> np.ndarray:
    """A filter's spectrum [n, …] at resolution 2^−scale, [n/2^scale, …], without what aliases."""
    size = len(spectrum)
    kept = spectrum.copy()
    start, count = int(size * 2 ** (-scale - 1)), int(size * (1 - 2**-scale))
    kept[start : start + count] = 0
    return kept.reshape(2**scale, size >> scale, *spectrum.shape[1:]).sum(0)


def _morlet(size: int, scale: int, orientation: int, L: int) -> np.ndarray:
    """Spectrum of a Morlet wavelet, real [size, size]."""
    angle = (int(L - L / 2 - 1) - orientation) * math.pi / L
    shape = 0.8 * 2**scale, angle
    wave = _gabor(size, *shape, 0.75 * math.pi / 2**scale, 4.0 / L)
    envelope = _gabor(size, *shape, 0.0, 4.0 / L)
    return np.real(np.fft.fft2(wave - wave.sum() / envelope.sum() * envelope))


def _gabor(size: int, sigma: float, angle: float, frequency: float, slant: float) -> np.ndarray:
    """A wave under a Gaussian, periodic, complex [size, size]."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    form = turn @ np.diag([1.0, slant**2]) @ turn.T / (2 * sigma**2)
    place = np.arange(-2 * size, 3 * size)
    rows, columns = place[:, None], place[None]
    square = form[0, 0] * rows**2 + 2 * form[0, 1] * rows * columns + form[1, 1] * columns**2
    phase = frequency * (rows * np.cos(angle) + columns * np.sin(angle))
    whole = np.exp(-square + 1j * phase).reshape(5, size, 5, size).sum((0, 2))
    return whole * slant / (2 * math.pi * sigma**2)
