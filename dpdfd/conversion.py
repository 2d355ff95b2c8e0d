"""The conversion's state, and its pure steps: the student's, the generator's, and their draws.

Student and generator alternate: the student steps towards the teacher on generated queries, by
gradients that are bounded and noised; then the generator steps with the student, frozen, as its
guide. The generator's step is given no teacher, unless the teacher itself is the guide (one that
was trained with DP, or a run without privacy). The idea is that of Liu et al., "Model Conversion
via Differentially Private Data-Free Distillation", IJCAI 2023; the formulas are our reconstruction.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distill_core.losses import kl_divergence
from distill_core.privacy.per_example import bounded_gradient_sum, noisy_sum
from distill_core.training.step import TrainState, all_sum, make_train_step
from dpdfd import losses
from dpdfd.generator import Generator
from dpdfd.privacy.mechanism import privatize_logit_gradients

Array = jax.Array
PyTree = Any


class ConversionState(flax.struct.PyTreeNode):
    """What a conversion trains and needs to go on.

    Attributes:
      student: the student's training state; its step counts.
      generator: the generator's.
      bank: answers that were bought, see `rounds`; `{}` where nothing is kept.
    """

    student: TrainState
    generator: TrainState
    bank: PyTree

    @property
    def step(self) -> Array:
        return self.student.step


def split_state(state: ConversionState):
    """(parts, train) for the checkpoint: student and generator are networks of their own.

    Of the bank only the replay probabilities: answers stay in `private/`, see `bought`.
    """
    trained = {"student": state.student, "generator": state.generator}
    parts = {
        name: {"params": one.params, "model_state": one.model_state}
        for name, one in trained.items()
    }
    train = {
        name: {"step": one.step, "opt_state": one.opt_state, "rng": one.rng}
        for name, one in trained.items()
    }
    kept = {name: state.bank[name] for name in ("reach",) if name in state.bank}
    return parts, {**train, "bank": kept}


def merge_state(state: ConversionState, parts, train) -> ConversionState:
    """The inverse of `split_state`; images and answers of the bank are those of `state`."""
    return ConversionState(
        state.student.replace(**parts["student"], **train["student"]),
        state.generator.replace(**parts["generator"], **train["generator"]),
        {**state.bank, **train["bank"]},
    )


def draw_latents(
    key: Array, index: Array, generator: Generator, batch_size: int
) -> tuple[Array, Array | None]:
    """Latent vectors and, for a conditional generator, classes, each by its place in the batch.

    The halves of a batch have the same classes, as `losses.diversity_loss` pairs them.

    Args:
      key: of this draw.
      index: int32 `[b]`, places in the global batch.
      generator: whose sizes count.
      batch_size: B, of the global batch.

    Returns:
      z float32 `[b, latent_size]`, and int32 `[b]` or None.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    z = jax.vmap(lambda key: jax.random.normal(key, (generator.latent_size,)))(keys)
    if not generator.conditional:
        return z, None
    pair = index % max(1, batch_size // 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), pair)
    classes = generator.num_classes or 1
    return z, jax.vmap(lambda key: jax.random.randint(key, (), 0, classes))(keys)


def generate(
    generator: Generator, variables: PyTree, z: Array, labels: Array | None
) -> tuple[Array, PyTree]:
    """Images float32 `[b, H, W, C]` in training mode, and the new model state."""
    collections = [name for name in variables if name != "params"]
    images, changed = generator.apply(variables, z, labels, train=True, mutable=collections)
    return images, dict(changed)


def make_student_step(
    apply: Callable,
    teacher_probs: Callable,
    tx: optax.GradientTransformation,
    *,
    mechanism: str | None,
    bound: str,
    axis_name: str | None,
) -> Callable:
    """One update of the student on public queries.

    Args:
      apply: the student's, `apply(variables, images) -> logits [b, K]`, without statistics of a
        batch.
      teacher_probs: `teacher_probs(variables, images) -> [b, K]`.
      tx: the student's optimiser.
      mechanism: "param": per-example gradients by all parameters are bounded, summed and noised;
        "logit": the logits' gradients are bounded and noised, and go through one product with the
        Jacobian; None: the mean gradient of KL(teacher ‖ student), without privacy.
      bound: "normalize" or "clip".
      axis_name: mapped axis of the devices.

    Returns:
      `step(student, frozen, images) -> (student, metrics)`. `frozen` holds `teacher` and, with a
      mechanism, `noise`: the run's key, `norm` and `noise_multiplier`. The noise is that of the
      student's step, drawn once for all devices.
    """

    def gradient(params, images, probs, noise, step):
        key: Any = None if mechanism is None else jax.random.fold_in(noise["key"], step)
        scales = {name: noise[name] for name in ("norm", "noise_multiplier")} if noise else {}
        if mechanism == "param":

            def loss(params, example):
                logits = apply({"params": params}, example["image"][None])[0]
                return kl_divergence(_log(example["probs"]), logits)

            rows = {"image": images, "probs": probs}
            total = bounded_gradient_sum(loss, params, rows, norm=scales["norm"], mode=bound)
            return noisy_sum(key, total, **scales, axis_name=axis_name)
        if mechanism == "logit":
            logits, pull_back = jax.vjp(lambda p: apply({"params": p}, images), params)
            by_logits = privatize_logit_gradients(
                key, logits, probs, mode=bound, axis_name=axis_name, **scales
            )
            return all_sum(pull_back(by_logits)[0], axis_name)

        def total_loss(params):
            return jnp.sum(kl_divergence(_log(probs), apply({"params": params}, images)))

        return all_sum(jax.grad(total_loss)(params), axis_name)

    def step(student: TrainState, frozen: PyTree, images: Array):
        probs = jax.lax.stop_gradient(teacher_probs(frozen["teacher"], images))
        total = gradient(student.params, images, probs, frozen.get("noise"), student.step)
        count = all_sum(jnp.float32(len(images)), axis_name)
        grads = jax.tree.map(lambda g: g / count, total)
        updates, opt_state = tx.update(grads, student.opt_state, student.params)
        student = student.replace(
            step=student.step + 1,
            params=optax.apply_updates(student.params, updates),
            opt_state=opt_state,
        )
        return student, {"grad_norm": optax.tree.norm(grads)}

    return step


def make_generator_step(
    generator: Generator,
    guide: Callable,
    tx: optax.GradientTransformation,
    *,
    weights: Mapping[str, float],
    batch_size: int,
    axis_name: str | None,
) -> Callable:
    """One update of the generator with a frozen guide.

    Args:
      generator: the module.
      guide: `guide(variables, images) -> (logits [b, K], features [b, D])`.
      tx: the generator's optimiser.
      weights: of the terms `one_hot`, `balance`, `activation`, `diversity` and `smoothness`; the
        first asks for the class that a conditional generator was given, else for the guide's own
        first choice.
      batch_size: B, of the global batch.
      axis_name: mapped axis of the devices.

    Returns:
      `step(state, {"guide": variables}, {"index": int32 [b]}) -> (state, metrics)`.
    """

    def loss_fn(params, model_state, frozen, batch, key):
        z, labels = draw_latents(key, batch["index"], generator, batch_size)
        images, model_state = generate(generator, {"params": params, **model_state}, z, labels)
        logits, features = guide(frozen["guide"], images)
        terms = {
            "one_hot": losses.one_hot_loss(logits, labels),
            "balance": losses.balance_loss(logits, axis_name=axis_name),
            "smoothness": losses.smoothness_loss(images),
        }
        if weights["activation"]:
            terms["activation"] = losses.activation_loss(features)
        if weights["diversity"]:
            terms["diversity"] = _global_diversity(images, z, axis_name)
        values, _ = losses.generator_loss(terms, weights)
        return values, jnp.ones_like(values), model_state, {}

    return make_train_step(loss_fn, tx, axis_name=axis_name)


def _global_diversity(images: Array, z: Array, axis_name: str | None) -> Array:
    """The term over the whole batch, whose pairs do not depend on the devices; this device's."""
    if axis_name is None:
        return losses.diversity_loss(images, z)
    whole = [jax.lax.all_gather(x, axis_name, tiled=True) for x in (images, z)]
    values = losses.diversity_loss(*whole)
    return jax.lax.dynamic_slice_in_dim(
        values, jax.lax.axis_index(axis_name) * len(images), len(images)
    )


def _log(probs: Array) -> Array:
    """Logits of probabilities; a certain answer stays certain."""
    return jnp.log(jnp.maximum(probs, 1e-30))
