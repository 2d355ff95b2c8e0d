"""Answers that are bought once and trained on many times.

A round draws queries, asks the teacher about them under noise, and puts queries and noisy answers
into the bank; then the student trains on the whole bank. What is done to a noisy answer is
post-processing and free, so that all noise goes into the few times that the teacher is asked. All
of it is our reconstruction.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_core.data.images import augment
from distill_core.losses import kl_divergence
from distill_core.training.step import make_train_step
from dpdfd.answers import answer_counts
from dpdfd.features import FeatureRidge
from dpdfd.privacy.mechanism import privatize_logit_gradients

Array = jax.Array
PyTree = Any

LOSSES = ("brier", "cross_entropy")


def empty_bank(num_queries: int, image_shape: tuple[int, ...], num_classes: int) -> dict:
    """Room for all queries of a run: uint8 images, float32 answers as bought and as trained on.

    `reach` holds cumulated probabilities of being replayed; a row that is not bought has none.
    """
    return {
        "images": np.zeros((num_queries, *image_shape), np.uint8),
        "answers": np.zeros((num_queries, num_classes), np.float32),
        "targets": np.zeros((num_queries, num_classes), np.float32),
        "reach": np.zeros(num_queries, np.float32),
    }


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
    added, and around 1/K it varies as one-hot labels of K equal classes do. Post-processing.

    Args:
      bank: as above.
      bought: rows in use.
      noise_std: of an answer's entries, above 0.
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
def _features_of(images: Array) -> Array:
    x = images.astype(jnp.float32) / 255
    return jnp.asarray(FeatureRidge(num_classes=2).random_features(x))


def balance(bank: dict, bought: int, probs: np.ndarray | None) -> dict:
    """The bank with replay balanced over the student's classes.

    Args:
      bank: as above.
      bought: rows in use.
      probs: the student's predictions `[bought, K]`; None for equal weights.
    """
    weights = np.zeros(len(bank["reach"]))
    weights[:bought] = 1.0
    if probs is not None:
        classes = probs.argmax(-1)
        # Never more than 10 times as often as on average: a class may hold two odd queries.
        share = np.bincount(classes, minlength=probs.shape[1]) / bought
        weights[:bought] = 1.0 / np.maximum(share[classes], 0.1 / probs.shape[1])
    reach = np.cumsum(weights) / weights.sum()
    return {**bank, "reach": reach.astype(np.float32)}


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


def make_ask(
    apply: Callable,
    outputs: Callable,
    *,
    mechanism: str | None,
    bound: str,
    axis_name: str | None,
) -> Callable:
    """The teacher's answers to a batch of public queries.

    Args:
      apply: the student's.
      outputs: the teacher's: `outputs(variables, images)` gives probabilities `[b, K]`, of an
        ensemble (mechanism "answers") each one's, `[M, b, K]`.
      mechanism: "answers": `answer_counts`, which the host has yet to noise; "logit": the
        student's probabilities less their noised gradient, which is the teacher's answer with
        noise as long as nothing was bounded;
        None: the probabilities as they are, without privacy.
      bound: for "logit".
      axis_name: mapped axis of the devices, which share the queries.

    Returns:
      `ask(student variables, frozen, {"image": [b, …], "number": int32 [b]}) -> [B, K]`, all
      queries' on every device; `number`, equal in all rows, is the release's: noise is drawn once
      for each.
    """

    def ask(variables: PyTree, frozen: PyTree, batch: PyTree) -> Array:
        images, noise = batch["image"], frozen.get("noise")
        found = outputs(frozen["teacher"], images)
        if mechanism is None:
            return gather(found, axis_name, 0)
        if mechanism == "answers":
            return gather(answer_counts(found), axis_name, 0)
        key = jax.random.fold_in(noise["key"], batch["number"][0])
        logits = apply(variables, images)
        grads = privatize_logit_gradients(
            key,
            logits,
            found,
            norm=noise["norm"],
            noise_multiplier=noise["noise_multiplier"],
            mode=bound,
            axis_name=axis_name,
        )
        return gather(jax.nn.softmax(logits) - grads, axis_name, 0)

    return ask


def make_replay_step(
    apply: Callable,
    tx: optax.GradientTransformation,
    *,
    loss: str,
    crop_padding: int,
    axis_name: str | None,
) -> Callable:
    """One update of the student on bought answers: `step(student, {"bank": …}, {"index"})`.

    Args:
      apply: the student's.
      tx: its optimiser.
      loss: "brier", the squared distance to the raw answer, which noise leaves unbiased, or
        "cross_entropy", KL to the answer brought onto the simplex, for answers with little noise.
      crop_padding: random shifts of the replayed queries, in pixels.
      axis_name: mapped axis of the devices.
    """

    def loss_fn(params, model_state, frozen, batch, key):
        bank = frozen["bank"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        u = jax.vmap(jax.random.uniform)(keys)
        rows = jnp.searchsorted(bank["reach"], u, side="right")
        rows = jnp.minimum(rows, len(bank["reach"]) - 1)
        images, answers = bank["images"][rows], bank["targets"][rows]
        if crop_padding:
            shifts = jax.random.fold_in(key, 1)
            images = augment.augment(
                shifts, images, batch["index"], crop_padding=crop_padding, flip=False
            )
        logits = apply({"params": params}, images)
        if loss == "brier":
            values = jnp.sum(jnp.square(jax.nn.softmax(logits) - answers), -1)
        else:
            kept = jnp.maximum(answers, 0.0)
            kept = kept / jnp.maximum(kept.sum(-1, keepdims=True), 1e-6)
            values = kl_divergence(jnp.log(jnp.maximum(kept, 1e-30)), logits)
        return values, jnp.ones_like(values), model_state, {}

    return make_train_step(loss_fn, tx, axis_name=axis_name)


def gather(x: Array, axis_name: str | None, axis: int) -> Array:
    """All devices' parts of an array, in order; the array itself without a mapped axis."""
    if axis_name is None:
        return x
    return jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)
