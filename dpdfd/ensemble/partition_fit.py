"""How each teacher of an ensemble is fitted to its own partition, in closed form or by gradients.

Both steps have the form that `loop.run` takes, with all teachers stacked in the state. What they
compute for a teacher reads its own records, its number and the run's key alone, in one program for
all contents: a changed record changes no other teacher, not by a bit. The partitions' sizes are
public, for they follow from the records' indices. All of it is our reconstruction.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from distill_core import models
from distill_core.data.images.preprocess import preprocess
from distill_core.losses import cross_entropy
from distill_core.training import metrics as metrics_lib
from distill_core.training.step import (
    STREAM_TRAIN,
    TrainState,
    all_sum,
    make_train_step,
    stream_key,
)
from dpdfd.ensemble.partitions import affine_copies
from dpdfd.features import FeatureRidge

Array = jax.Array
PyTree = Any

_MARGIN = 10.0  # between the logits of the right class and of the others that a ridge aims at
_HIGHEST = jax.lax.Precision.HIGHEST


def make_ridge_step(
    member: FeatureRidge, spec: Mapping[str, Any], *, copies: int, strength: float, flip: bool,
    ridge: float,
) -> Callable:  # fmt: skip
    """One teacher a step, by kernel ridge regression on its images and `copies` of each.

    The step's batch is one partition, padded: `teacher` int32 [], `image` [n, H, W, C], `label`
    and `index` int32 [n], `mask` bool [n]; see `partitions.whole`.
    """
    rows = 1 + copies

    def random_features(key, images, index):
        images = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)

        def of_one(each):
            image, number = each[0][None], each[1][None]
            if copies:
                more = affine_copies(
                    key, image, number, copies=copies, strength=strength, flip=flip
                )
                image = jnp.concatenate([image, more[0]])
            return member.random_features(preprocess(image, spec["mean"], spec["std"]))

        # Not all at once, so that memory stays bounded.
        found = jax.lax.map(of_one, (images, index), batch_size=32)  # [n, 1 + R, D]
        return found.reshape(len(images) * rows, -1)

    def step(state: TrainState, frozen: PyTree, batch: PyTree):
        key = stream_key(state.rng, STREAM_TRAIN, 0)
        features = random_features(key, batch["image"], batch["index"])
        weight = jnp.repeat(batch["mask"].astype(jnp.float32), rows)[:, None]
        targets = _MARGIN * jax.nn.one_hot(jnp.repeat(batch["label"], rows), spec["num_classes"])
        kernel, bias, loss = solve_ridge(features, targets, weight, ridge * rows)
        fitted = {"linear": {"kernel": kernel, "bias": bias}}
        place = batch["teacher"]
        stacked = jax.tree.map(
            lambda all_, one: all_.at[place].set(one), state.params["members"], fitted
        )
        metrics = {"loss": loss / _MARGIN**2, "grad_norm": jnp.zeros(())}
        return state.replace(step=state.step + 1, params={"members": stacked}), metrics

    return step


def solve_ridge(
    features: Array, targets: Array, weight: Array, ridge: float | Array
) -> tuple[Array, Array, Array]:
    """Least squares with a penalty of `ridge` times the squared weights, but not the bias.

    It solves for one unknown a row or a feature, whatever there are less of.

    Args:
      features: float32 [R, D].
      targets: float32 [R, K].
      weight: float32 [R, 1], 0 for the rows that do not count and 1 for the others.
      ridge: above 0.

    Returns:
      (kernel [D, K], bias [K], mean squared error []).
    """
    total = jnp.sum(weight)
    mean_x = jnp.sum(weight * features, axis=0, keepdims=True) / total
    mean_y = jnp.sum(weight * targets, axis=0, keepdims=True) / total
    x, y = weight * (features - mean_x), weight * (targets - mean_y)
    if x.shape[0] < x.shape[1]:
        gram = jnp.matmul(x, x.T, precision=_HIGHEST)
        kernel = jnp.matmul(x.T, _solve(gram, y, ridge), precision=_HIGHEST)
    else:
        gram = jnp.matmul(x.T, x, precision=_HIGHEST)
        kernel = _solve(gram, jnp.matmul(x.T, y, precision=_HIGHEST), ridge)
    bias = mean_y - jnp.matmul(mean_x, kernel, precision=_HIGHEST)
    errors = jnp.square(jnp.matmul(x, kernel, precision=_HIGHEST) - y)
    return kernel, bias[0], jnp.sum(errors) / total


def _solve(gram: Array, right: Array, ridge: float | Array) -> Array:
    gram = gram + ridge * jnp.eye(len(gram))
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram, lower=True), right)


def make_gradient_step(
    member: nn.Module, spec: Mapping[str, Any], tx: optax.GradientTransformation, *,
    strength: float, flip: bool, axis_name: str | None,
) -> Callable:  # fmt: skip
    """One update of all teachers by the cross-entropy of their own batches.

    The step's batch has examples on axis 0, which devices share, and teachers on axis 1: `image`
    [B, M, H, W, C], `label` and `index` int32 [B, M]; see `partitions.batch_rows`.
    """
    of_one = _gradient_of_one(member, spec, strength, flip)

    def gradients(_, params, model_state, frozen, batch, key, *, axis_name):
        size, teachers = batch["label"].shape
        own = {name: jnp.swapaxes(array, 0, 1) for name, array in batch.items()}
        found = map_members(
            lambda each: of_one(key, *each), (params["members"], own, jnp.arange(teachers)), member
        )
        count = all_sum(jnp.float32(size), axis_name)
        return _means(all_sum(found, axis_name), count, model_state)

    return make_train_step(_no_loss, tx, axis_name=axis_name, gradient_fn=gradients)


def make_separate_gradient_step(
    member: nn.Module, spec: Mapping[str, Any], tx: optax.GradientTransformation, *,
    strength: float, flip: bool,
) -> Callable:  # fmt: skip
    """As `make_gradient_step`, compiled, but with a call for each teacher.

    For convolutions on one CPU: they are seven times as slow within a compiled loop, and three
    times as slow if all teachers are mapped over at once.
    """
    of_one = _gradient_of_one(member, spec, strength, flip)

    def gradients(_, params, model_state, frozen, batch, key, *, axis_name):
        return _means(batch["found"], batch["count"], model_state)

    @functools.partial(jax.jit, donate_argnums=0)
    def put(found, params, rng, step, batch, teacher):
        key = stream_key(rng, STREAM_TRAIN, step)
        params = jax.tree.map(lambda leaf: leaf[teacher], params["members"])
        own = {name: array[:, teacher] for name, array in batch.items()}
        new = of_one(key, params, own, teacher)
        return jax.tree.map(lambda all_, one: all_.at[teacher].set(one), found, new)

    apply = jax.jit(make_train_step(_no_loss, tx, gradient_fn=gradients), donate_argnums=0)

    def step(state: TrainState, frozen: PyTree, batch: PyTree):
        size, teachers = batch["label"].shape
        batch = jax.device_put(batch)
        zeros = jnp.zeros((2, teachers))
        found = (jax.tree.map(jnp.zeros_like, state.params["members"]), zeros[0], zeros[1])
        for teacher in range(teachers):
            found = put(found, state.params, state.rng, state.step, batch, np.int32(teacher))
        return apply(state, frozen, {"found": found, "count": np.float32(size)})

    return step


def _gradient_of_one(member, spec, strength: float, flip: bool) -> Callable:
    """`(key, params, own, teacher) -> (gradient, loss, correct)`, sums over a teacher's batch."""

    def loss(params, inputs, labels, key):
        logits = member_logits(member, params, inputs, train=True, key=key)
        return jnp.sum(cross_entropy(logits, labels)), metrics_lib.correct(logits, labels)

    def of_one(key, params, own, teacher):
        images = own["image"]
        if strength or flip:
            images = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
            images = affine_copies(
                key, images, own["index"], copies=1, strength=strength, flip=flip
            )[:, 0]  # fmt: skip
        inputs = public_part(member, preprocess(images, spec["mean"], spec["std"]))
        (value, correct), grads = jax.value_and_grad(loss, has_aux=True)(
            params, inputs, own["label"], jax.random.fold_in(key, teacher)
        )
        return grads, value, jnp.sum(correct)

    return of_one


def _means(found: PyTree, count: Array, model_state: PyTree) -> tuple[PyTree, PyTree, dict]:
    """(gradients, model_state, metrics) of all teachers' sums over `count` examples each."""
    grads, values, correct = found
    metrics = {"loss": jnp.mean(values) / count, "accuracy": jnp.mean(correct) / count}
    return {"members": jax.tree.map(lambda g: g / count, grads)}, model_state, metrics


def _no_loss(*_):
    raise NotImplementedError("each teacher has its own")


def has_public_part(member: nn.Module) -> bool:
    """Whether a network has the methods `public` and `head`, as those of `dpdfd.features`."""
    return all(callable(getattr(type(member), name, None)) for name in ("public", "head"))


def public_part(member: nn.Module, images: Array) -> Array:
    """What a member computes of its inputs before any weight: the same for all members.

    Of a network that has no such part it is the images themselves.
    """
    if not has_public_part(member):
        return images
    found: Any = member.apply({}, images, method="public")
    return found


def member_logits(
    member: nn.Module, params: PyTree, inputs: Array, *, train: bool = False,
    key: Array | None = None,
) -> Array:  # fmt: skip
    """float32 logits [B, K] of one member, of what `public_part` gives."""
    logits: Any
    if has_public_part(member):
        logits = member.apply({"params": params}, inputs, method="head")
    elif train:
        logits, _ = models.apply_model(member, {"params": params}, inputs, train=True, key=key)
    else:
        logits = models.apply_model(member, {"params": params}, inputs, train=False)
    return jnp.asarray(logits, jnp.float32)


def map_members(function: Callable, stacked: PyTree, member: nn.Module) -> PyTree:
    """`function` of each teacher's slice, some at a time, so that memory stays bounded."""
    if has_public_part(member):
        return jax.lax.map(function, stacked, batch_size=128)
    return jax.lax.map(function, stacked, batch_size=16)
