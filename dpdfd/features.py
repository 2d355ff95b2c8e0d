"""Image features that no data went into, and two small networks on them.

The features are histograms of oriented gradients (Dalal and Triggs, CVPR 2005), with the four-fold
normalisation of Felzenszwalb et al., "Object Detection with Discriminatively Trained Part-Based
Models", PAMI 2010; orientations are binned softly, by powers of cosines, which is ours. Nothing in
them is fitted. Their settings were chosen on training images of MNIST and Fashion-MNIST, a choice
that no ε counts. That the method works better on such features than on pixels is our finding.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from distill_core.models.layers import check_images, dense, mask_examples

Array = jax.Array

NUM_BINS = 9
_SHARPNESS = 4  # cos^8: half of a bin's weight lies within 23 degrees
_CLIP = 0.3
_HIGHEST = jax.lax.Precision.HIGHEST


def num_cells(size: int) -> int:
    """Cells along a side of `size` pixels: 4 to 8, one per four pixels, at most one per pixel."""
    return min(size, max(4, min(8, size // 4)))


def hog(images: Array) -> Array:
    """Histograms of oriented gradients, smooth in the pixels and of length about 1.

    Nine unsigned orientations in cells of about 4×4 pixels that overlap by half: 7×7 cells for
    28×28 pixels, 8×8 for 32×32, 4×4 for 8×8. Each cell is divided by the energy of the four 2×2
    blocks that it is in, clipped, and averaged over them. Channels add up.

    Args:
      images: float [B, H, W, C], raw or standardised: adding a constant changes nothing, scaling
        little.

    Returns:
      float32 [B, cells(H) · cells(W) · 9] with a unit norm, and 0 for an image of one colour.
    """
    x = images.astype(jnp.float32)
    rows = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    columns = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    down, right = rows[:, 2:] - rows[:, :-2], columns[:, :, 2:] - columns[:, :, :-2]
    # The smallest magnitudes count less, and the root has a slope at 0.
    square = jnp.square(down) + jnp.square(right) + 1e-3
    angles = np.arange(NUM_BINS, dtype=np.float32).reshape(1, 1, 1, 1, -1) * (math.pi / NUM_BINS)
    cosines, sines = np.cos(angles), np.sin(angles)
    along = right[..., None] * cosines + down[..., None] * sines
    share = (jnp.square(along) / square[..., None]) ** _SHARPNESS
    energy = jnp.sum(share * jnp.sqrt(square)[..., None], axis=3)  # [B, H, W, 9]
    pool_rows, pool_columns = (jnp.asarray(_pooling(n)) for n in x.shape[1:3])
    cells = jnp.einsum("bhwk,ih->biwk", energy, pool_rows, precision=_HIGHEST)
    cells = jnp.einsum("biwk,jw->bijk", cells, pool_columns, precision=_HIGHEST)
    found = _normalised(cells)
    found = found.reshape(found.shape[0], -1)
    return found * jax.lax.rsqrt(jnp.sum(jnp.square(found), axis=-1, keepdims=True) + 1e-12)


def _normalised(cells: Array) -> Array:
    """Cells [B, I, J, 9] divided by the energies of their four blocks, clipped and averaged."""
    energy = jnp.pad(jnp.sum(jnp.square(cells), axis=-1), ((0, 0), (1, 1), (1, 1)))
    blocks = energy[:, 1:, 1:] + energy[:, 1:, :-1] + energy[:, :-1, 1:] + energy[:, :-1, :-1]
    scale = jax.lax.rsqrt(blocks + 0.1)[..., None]  # [B, I + 1, J + 1, 1]
    four = (scale[:, 1:, 1:], scale[:, 1:, :-1], scale[:, :-1, 1:], scale[:, :-1, :-1])
    return sum((jnp.minimum(cells * each, _CLIP) for each in four), jnp.zeros(())) / 4


@functools.lru_cache(maxsize=16)
def _pooling(size: int) -> np.ndarray:
    """float32 [cells, size]: each pixel's shares in the two cells whose centres it lies between."""
    cells = num_cells(size)
    place = (np.arange(size) + 0.5) * cells / size - 0.5
    weights = np.maximum(0, 1 - np.abs(place[None] - np.arange(cells)[:, None]))
    return (weights * cells / size * 4).astype(np.float32)


class FeatureMLP(nn.Module):
    """`hog`, then dense layers with ReLU: no batch statistics, every example for itself.

    Source: our reconstruction.

    Attributes:
      num_classes: K.
      hidden: widths; the last is the number D of its "features".
    """

    num_classes: int
    hidden: tuple[int, ...] = (256,)

    def public(self, x: Array) -> Array:
        """What no weight touches: float32 [B, H, W, C] to features float32 [B, F]."""
        check_images(x, min_size=2)
        return hog(x) * math.sqrt(x.shape[1] * x.shape[2])  # about 1 an entry

    @nn.compact
    def head(self, features: Array) -> Array:
        """Features [B, F] of `public` to logits [B, K]."""
        x = features
        for width in self.hidden:
            x = nn.relu(dense(x, width))
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)

    def __call__(self, x: Array, *, train: bool = False, where: Array | None = None) -> Array:
        """Images float32 [B, H, W, C], at least 2×2, to logits [B, K]; `where` bool [B] masks."""
        del train
        return self.head(self.public(mask_examples(x, where)))


class FeatureRidge(nn.Module):
    """Fixed random Fourier features of `hog` and of coarse pixels, then one linear layer.

    Inner products of the random features approximate a Gaussian kernel, so that a linear layer
    fitted in closed form is kernel ridge regression. Sources: Rahimi and Recht, "Random Features
    for Large-Scale Kernel Machines", NIPS 2007; the rest is our reconstruction.

    Attributes:
      num_classes: K.
      num_random: D, the number of random features.
      scale: of the frequencies, the inverse width of the kernel.
      pixels: weight of the pixels, averaged to the cells of `hog`, beside the histograms.
      seed: of the frequencies, which are public.
    """

    num_classes: int
    num_random: int = 1500
    scale: float = 1.0
    pixels: float = 0.3
    seed: int = 0

    def public(self, x: Array) -> Array:
        """Random features float32 [B, D], of norm about 1, of images float32 [B, H, W, C]."""
        check_images(x, min_size=2)
        inputs = jnp.concatenate([hog(x), self.pixels * _coarse(x)], axis=-1)
        frequencies, phases = _frequencies(self.seed, inputs.shape[-1], self.num_random)
        angles = jnp.matmul(inputs, self.scale * frequencies, precision=_HIGHEST) + phases[None]
        return math.sqrt(2 / self.num_random) * jnp.cos(angles)

    @nn.compact
    def head(self, features: Array) -> Array:
        """Random features [B, D] to logits [B, K]."""
        self.sow("intermediates", "features", features)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros_init(), name="linear")(
            features
        )

    def __call__(self, x: Array, *, train: bool = False, where: Array | None = None) -> Array:
        """Images float32 [B, H, W, C], at least 2×2, to logits [B, K]; `where` bool [B] masks."""
        del train
        return self.head(self.public(mask_examples(x, where)))


def _coarse(images: Array) -> Array:
    """float32 [B, H, W, C] averaged to the cells of `hog`, [B, cells · C], 1/√cells of a pixel."""
    rows, columns = (_pooling(n) / np.sum(_pooling(n), 1, keepdims=True) for n in images.shape[1:3])
    means = jnp.einsum("bhwc,ih->biwc", images, jnp.asarray(rows), precision=_HIGHEST)
    means = jnp.einsum("biwc,jw->bijc", means, jnp.asarray(columns), precision=_HIGHEST)
    return means.reshape(images.shape[0], -1) / math.sqrt(
        len(rows) * len(columns) * images.shape[3]
    )


@functools.lru_cache(maxsize=16)
def _frequencies(seed: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal frequencies float32 [inputs, outputs] and uniform phases float32 [outputs]."""
    # RandomState, because NumPy promises that its stream never changes.
    rng = np.random.RandomState(seed)
    frequencies = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return frequencies, rng.uniform(0, 2 * np.pi, outputs).astype(np.float32)
