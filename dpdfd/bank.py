"""The bank: queries, their noisy answers, and how often each is replayed.

Training on a noisy answer again is post-processing and costs no privacy. Our reconstruction.
"""

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.data.images.augment import augment
from dpdfd.features import FeatureRidge


def empty_bank(
    num_queries: int, image_shape: tuple[int, ...], num_classes: int, num_features: int = 0
) -> dict:
    """Room for all queries of a run: uint8 images, float32 answers as bought and as trained on.

    `replay_cdf` holds cumulative probabilities of being replayed, 1 after the last bought row.
    With `num_features`, `features` has room for what a student with a public part makes of them.
    """
    features = {"features": np.zeros((num_queries, num_features), np.float32)}
    return {
        **(features if num_features else {}),
        "images": np.zeros((num_queries, *image_shape), np.uint8),
        "answers": np.zeros((num_queries, num_classes), np.float32),
        "targets": np.zeros((num_queries, num_classes), np.float32),
        "replay_cdf": np.zeros(num_queries, np.float32),
    }


def replayed(
    bank: dict, key: jax.Array, index: jax.Array, crop_padding: int
) -> tuple[jax.Array, jax.Array]:
    """Queries `[b, H, W, C]` and answers float32 `[b, K]`, drawn by replay probability; pure.

    `index` holds places int32 `[b]` in the global batch; queries are shifted at random by up to
    `crop_padding` pixels. Of a bank with features they are given in place of the images.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    u = jax.vmap(jax.random.uniform)(keys)
    rows = jnp.searchsorted(bank["replay_cdf"], u, side="right")
    rows = jnp.minimum(rows, len(bank["replay_cdf"]) - 1)
    images, answers = bank.get("features", bank["images"])[rows], bank["targets"][rows]
    if crop_padding:
        shifts = jax.random.fold_in(key, 1)
        images = augment(shifts, images, index, crop_padding=crop_padding, flip=False)
    return images, answers


def deposit(bank: dict, start: int, images: np.ndarray, answers: np.ndarray) -> dict:
    """The bank with a round's queries and answers from row `start` on."""
    filled = {name: np.array(value) for name, value in bank.items()}
    filled["images"][start : start + len(images)] = images
    for name in ("answers", "targets"):
        filled[name][start : start + len(answers)] = answers
    return filled


def smooth(bank: dict, bought: int, noise_std: float) -> dict:
    """The bank with targets that share their noise: the posterior mean of a Gaussian process.

    Its covariance is that of `FeatureRidge`'s public random features, its noise what was really
    added, `noise_std` per entry, and around 1/K it varies as one-hot labels of K equal classes do.
    Post-processing of the `bought` rows in use.
    """
    classes = bank["answers"].shape[1]
    prior = (1 - 1 / classes) / classes
    features = _public_features(bank["images"][:bought])  # [n, D]
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += noise_std**2 / prior
    answers = bank["answers"][:bought].astype(np.float64) - 1 / classes
    weights = np.linalg.solve(gram, features.T @ answers)
    targets = np.array(bank["targets"])
    targets[:bought] = 1 / classes + features @ weights
    return {**bank, "targets": targets}


def _public_features(images: np.ndarray) -> np.ndarray:
    """float64 [n, D] of uint8 images, of a norm of about 1."""
    parts = [np.asarray(_features_of(images[i : i + 512])) for i in range(0, len(images), 512)]
    return np.concatenate(parts).astype(np.float64)


@jax.jit
def _features_of(images: jax.Array) -> jax.Array:
    x = images.astype(jnp.float32) / 255
    return jnp.asarray(FeatureRidge(num_classes=2).public(x))


def balance(bank: dict, bought: int, probs: np.ndarray | None) -> dict:
    """The bank with replay of its `bought` rows balanced over the student's classes.

    `probs` are the student's predictions `[bought, K]`; None for equal weights.
    """
    weights = np.zeros(len(bank["replay_cdf"]))
    weights[:bought] = 1.0
    if probs is not None:
        classes = probs.argmax(-1)
        # Never more than 10 times as often as on average: a class may hold two odd queries.
        share = np.bincount(classes, minlength=probs.shape[1]) / bought
        weights[:bought] = 1.0 / np.maximum(share[classes], 0.1 / probs.shape[1])
    cdf = np.cumsum(weights) / weights.sum()
    return {**bank, "replay_cdf": cdf.astype(np.float32)}


def choose_balanced(probs: np.ndarray, num: int) -> np.ndarray:
    """`num` of the candidates `[P]`, as equally over the predicted classes as they allow.

    Rows of every class in turn, in their order; where a class runs out the others go on.
    """
    classes = probs.argmax(-1)
    turn = np.empty(len(classes), np.int64)  # how many of its class stand before it
    for name in np.unique(classes):
        mine = np.flatnonzero(classes == name)
        turn[mine] = np.arange(len(mine))
    return np.sort(np.lexsort((classes, turn))[:num])
