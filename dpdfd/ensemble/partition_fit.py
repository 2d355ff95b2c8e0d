"""Fits each teacher of an ensemble to its own partition, in closed form or by gradients.

All teachers are stacked in the state. A step computes a teacher from its own records, its number
and the run's key alone, in one program for all contents: a changed record changes no other teacher,
not by a bit. Partition sizes are public: they follow from the records' indices. Our reconstruction.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.data.images.preprocess import preprocess
from distill_core.losses import cross_entropy
from distill_core.models import CONSTANTS
from distill_core.models.network import Network
from distill_core.runtime.collectives import all_sum
from distill_core.training import metrics as metrics_lib
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import (
    STREAM_TRAIN,
    Objective,
    Outputs,
    TrainState,
    per_example,
    stream_key,
    train_step,
)
from dpdfd.ensemble.network import map_members, member_logits, public_part
from dpdfd.ensemble.partitions import affine_copies

Array = jax.Array
PyTree = Any

_MARGIN = 10.0  # between the logits of the right class and of the others that a ridge aims at
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class RidgeFit:
    """One teacher a step, by kernel ridge regression on its images and `copies` of each.

    The step's batch is one partition, padded: `teacher` int32 [], `image` [n, H, W, C], `label`
    and `index` int32 [n], `mask` bool [n]; see `partitions.whole`.

    Attributes:
      member: a linear layer on public features, such as `FeatureRidge` and `scattering`.
      copies, strength, flip: as for `affine_copies`.
      ridge: above 0, for each image.
    """

    member: Network
    copies: int
    strength: float
    flip: bool
    ridge: float

    def __call__(self, state: TrainState, frozen: PyTree, batch: PyTree):
        """(state, metrics), as the loop runs it."""
        rows = 1 + self.copies
        key = stream_key(state.rng, STREAM_TRAIN, 0)
        constants = state.model_state.get(CONSTANTS, {})
        features = self._features(constants, key, batch["image"], batch["index"])
        weight = jnp.repeat(batch["mask"].astype(jnp.float32), rows)[:, None]
        labels = jnp.repeat(batch["label"], rows)
        targets = _MARGIN * jax.nn.one_hot(labels, self.member.num_classes)
        kernel, bias, loss = solve_ridge(features, targets, weight, self.ridge * rows)
        fitted = {"linear": {"kernel": kernel, "bias": bias}}
        place = batch["teacher"]
        stacked = jax.tree.map(
            lambda all_, one: all_.at[place].set(one), state.params["members"], fitted
        )
        metrics = {"loss": loss / _MARGIN**2, "grad_norm": jnp.zeros(())}
        return state.replace(step=state.step + 1, params={"members": stacked}), metrics

    def _features(self, constants: PyTree, key: Array, images: Array, index: Array) -> Array:
        """float32 [n · (1 + R), D]."""
        member = self.member.module()
        images = _as_floats(images)

        def of_one(each):
            image, number = each[0][None], each[1][None]
            if self.copies:
                copied = {"copies": self.copies, "strength": self.strength, "flip": self.flip}
                more = affine_copies(key, image, number, **copied)
                image = jnp.concatenate([image, more[0]])
            pixels = preprocess(image, self.member.mean, self.member.std)
            return public_part(member, pixels, constants)

        # Not all at once, so that memory stays bounded.
        found = jax.lax.map(of_one, (images, index), batch_size=32)  # [n, 1 + R, D]
        return found.reshape(len(images) * (1 + self.copies), -1)


def solve_ridge(
    features: Array, targets: Array, weight: Array, ridge: float | Array
) -> tuple[Array, Array, Array]:
    """Least squares with a penalty of `ridge` times the squared weights, but not the bias.

    Solves for one unknown per row or per feature, whichever are fewer. `features` are float32
    [R, D], `targets` [R, K], `weight` [R, 1] is 0 for rows that do not count and 1 for others.

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


@dataclasses.dataclass(frozen=True)
class MemberLoss:
    """One teacher's objective: cross-entropy on its own images, deformed.

    Attributes:
      member: its network, without batch statistics.
      strength, flip: as for `affine_copies`.
    """

    member: Network
    strength: float
    flip: bool

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(z, y); `batch` has a `teacher`, the number that its dropout depends on."""
        images, module = batch["image"], self.member.module()
        if self.strength or self.flip:
            copied = {"copies": 1, "strength": self.strength, "flip": self.flip}
            images = affine_copies(key, _as_floats(images), batch["index"], **copied)[:, 0]
        pixels = preprocess(images, self.member.mean, self.member.std)
        inputs = public_part(module, pixels, model_state.get(CONSTANTS, {}))
        own = jax.random.fold_in(key, batch["teacher"])
        logits = member_logits(module, params, inputs, train=True, key=own)
        labels = batch["label"]
        accuracy = metrics_lib.correct(logits, labels)
        return per_example(cross_entropy(logits, labels), model_state, accuracy=accuracy)


def member_gradients(objective: MemberLoss, params, model_state, frozen, batch, key):
    """Each teacher's mean gradient over its own batch, for `train_step`.

    The step's batch has examples on axis 0, which devices share, and teachers on axis 1: `image`
    [B, M, H, W, C], `label` and `index` int32 [B, M]; see `partitions.batch_rows`.
    """
    size, teachers = batch["label"].shape
    own = {name: jnp.swapaxes(array, 0, 1) for name, array in batch.items()}
    own["teacher"] = jnp.arange(teachers)
    found = map_members(
        lambda each: _gradient_sum(objective, each[0], each[1], key),
        (params["members"], own),
        objective.member.module(),
    )
    return _means(all_sum(found), all_sum(jnp.float32(size)), model_state)


@dataclasses.dataclass(frozen=True)
class SeparateUpdate:
    """`train_step` by `member_gradients`, compiled, but with a call for each teacher.

    For convolutions on one CPU: they are seven times as slow within a compiled loop, and three
    times as slow if all teachers are mapped over at once.
    """

    objective: MemberLoss
    optimizer: Optimizer

    def __call__(self, state: TrainState, frozen: PyTree, batch: PyTree):
        """(state, metrics); uses the state up."""
        size, teachers = batch["label"].shape
        batch = jax.device_put(batch)
        zeros = jnp.zeros((2, teachers))
        found = (jax.tree.map(jnp.zeros_like, state.params["members"]), zeros[0], zeros[1])
        for teacher in range(teachers):
            found = _put(self.objective, found, state.params["members"],
                         (state.rng, state.step), batch, np.int32(teacher))  # fmt: skip
        return _applied(self, state, {"found": found, "count": np.float32(size)})


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put(objective: MemberLoss, found, params, clock, batch, teacher):
    """`found` with the sums of one teacher."""
    rng, step = clock
    own = {name: array[:, teacher] for name, array in batch.items()}
    params = jax.tree.map(lambda leaf: leaf[teacher], params)
    key = stream_key(rng, STREAM_TRAIN, step)
    new = _gradient_sum(objective, params, {**own, "teacher": teacher}, key)
    return jax.tree.map(lambda all_, one: all_.at[teacher].set(one), found, new)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _applied(update: SeparateUpdate, state: TrainState, found: PyTree):
    def gradient(objective, params, model_state, frozen, batch, key):
        return _means(batch["found"], batch["count"], model_state)

    tx = update.optimizer.make()
    return train_step(state, {}, found, objective=update.objective, tx=tx, gradient=gradient)


def _gradient_sum(objective: Objective, params, batch, key):
    """(gradient, loss, correct) of one teacher, sums over its batch."""

    def loss(params):
        found = objective(params, {}, {}, batch, key)
        return jnp.sum(found.values), found.metrics["accuracy"]

    (value, correct), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, value, jnp.sum(correct)


def _means(found: PyTree, count: Array, model_state: PyTree) -> tuple[PyTree, PyTree, dict]:
    """(gradients, model_state, metrics) of all teachers' sums over `count` examples each."""
    grads, values, correct = found
    metrics = {"loss": jnp.mean(values) / count, "accuracy": jnp.mean(correct) / count}
    return {"members": jax.tree.map(lambda g: g / count, grads)}, model_state, metrics


def _as_floats(images: Array) -> Array:
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
