"""The updates of a conversion, and what it asks: pure functions of static choices and a state.

Student and generator alternate: the student steps towards the teacher on generated queries, by
gradients that are bounded and noised; then the generator steps with the student, frozen, as its
guide. It is given no teacher, unless the teacher itself is the guide (one that was trained with DP,
or a run without privacy). With rounds, the student steps on answers that were bought before. The
idea is that of Liu et al., "Model Conversion via Differentially Private Data-Free Distillation",
IJCAI 2023; the formulas are our reconstruction.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distill_core.data.images.augment import augment
from distill_core.data.images.preprocess import preprocess
from distill_core.losses import kl_divergence
from distill_core.models.network import Network
from distill_core.privacy.per_example import bounded_gradient_sum, noisy_sum
from distill_core.runtime.collectives import all_gather, all_sum, own_rows
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import Outputs, TrainState, per_example, stream_key, train_step
from dpdfd import losses
from dpdfd.generator import draw_latents, generate
from dpdfd.privacy.exact_noise import answer_counts
from dpdfd.privacy.mechanism import privatize_logit_gradients

Array = jax.Array
PyTree = Any
STREAM_QUERIES = 2


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Static choices; equal ones share what is compiled.

    Attributes:
      student: S, without batch statistics, and `optimizer` its optimiser.
      teacher: T; with the mechanism "answers" a `dpdfd.ensemble` of M members.
      generator: G; `generator_rate` is its Adam's learning rate, `weights` are its loss's.
      batch_size: B, of the global batch.
      mechanism: "param", "logit" or "answers"; None without privacy.
      bound: "normalize", ĝ = C·g/‖g‖, or "clip", ĝ = g·min(1, C/‖g‖).
      loss: of a replayed answer, "brier" or "cross_entropy".
      crop_padding: random shifts of replayed queries, in pixels.
      guide: whether "student" or "teacher" guides the generator.
    """

    student: Network
    teacher: Network
    generator: Network
    batch_size: int
    optimizer: Optimizer
    generator_rate: float
    weights: losses.Weights
    mechanism: str | None
    bound: str
    loss: str
    crop_padding: int
    guide: str

    def generator_tx(self) -> optax.GradientTransformation:
        """The generator's optimiser."""
        return optax.adam(self.generator_rate, b1=0.5)


class State(flax.struct.PyTreeNode):
    """Training states of student and generator, and the bank of bought answers (see `bank`)."""

    student: TrainState
    generator: TrainState
    bank: PyTree

    @property
    def step(self) -> Array:
        return self.student.step


def alternate(c: Conversion, state: State, frozen: PyTree, batch: PyTree):
    """The student's step on fresh queries x_i = G(z_i), z_i ~ N(0, I).

    `frozen` holds the `teacher`'s variables and, with a mechanism, `noise`: the run's `key`, `norm`
    C and `noise_multiplier`, std/C. `batch` holds `index` int32 [b], places in the global batch.
    """
    images = _drawn(c, state, batch["index"], state.student.step)
    student, metrics = student_step(c, state.student, frozen, images)
    return state.replace(student=student), metrics


def student_step(c: Conversion, student: TrainState, frozen: PyTree, images: Array):
    """θ ← θ − lr · (1/B)(Σ_i ĝ_i + noise), on queries [b, H, W, C]."""
    probs = jax.lax.stop_gradient(jax.nn.softmax(c.teacher.apply(frozen["teacher"], images)))
    total = gradient_sum(c, student, frozen.get("noise"), images, probs)
    count = all_sum(jnp.float32(len(images)))
    grads = jax.tree.map(lambda g: g / count, total)
    updates, opt_state = c.optimizer.make().update(grads, student.opt_state, student.params)
    params = optax.apply_updates(student.params, updates)
    student = student.replace(step=student.step + 1, params=params, opt_state=opt_state)
    return student, {"grad_norm": optax.tree.norm(grads)}


def gradient_sum(c: Conversion, student: TrainState, noise: PyTree, images: Array, probs: Array):
    """Σ_i ĝ_i + noise over the global batch, of l_i = KL(p_T(x_i) ‖ p_S(x_i)).

    "param": g_i = ∇_θ l_i is bounded, the sum is noised, once for all devices. "logit": p_S − p_T,
    the gradient by the logits, is bounded and noised per query; then one product with the Jacobian.
    """

    def logits_of(params, images):
        return c.student.apply({"params": params}, images)

    def loss(params, row):
        return kl_divergence(_log(row["probs"]), logits_of(params, row["image"][None])[0])

    def total_loss(params):
        return jnp.sum(kl_divergence(_log(probs), logits_of(params, images)))

    if c.mechanism == "param":
        rows = {"image": images, "probs": probs}
        total = bounded_gradient_sum(loss, student.params, rows, norm=noise["norm"], mode=c.bound)
        key, multiplier = jax.random.fold_in(noise["key"], student.step), noise["noise_multiplier"]
        return noisy_sum(key, total, norm=noise["norm"], noise_multiplier=multiplier)
    if c.mechanism == "logit":
        logits, pull_back = jax.vjp(lambda params: logits_of(params, images), student.params)
        return all_sum(pull_back(_released(c, noise, student.step, logits, probs))[0])
    return all_sum(jax.grad(total_loss)(student.params))


def generator_step(c: Conversion, state: State, frozen: PyTree, batch: PyTree):
    """The generator's step by `GeneratorLoss`; `frozen` holds a teacher if that is the guide."""
    student = {"params": state.student.params, **state.student.model_state}
    guide = student if c.guide == "student" else frozen["teacher"]
    objective, tx = GeneratorLoss(c), c.generator_tx()
    generator, metrics = train_step(state.generator, guide, batch, objective=objective, tx=tx)
    return state.replace(generator=generator), {"generator_loss": metrics["loss"]}


@dataclasses.dataclass(frozen=True)
class GeneratorLoss:
    """What the frozen guide, whose variables are `frozen`, makes of x = G(z[, c])."""

    conversion: Conversion

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """w₁ CE(S(x), argmax S(x) or c) + w₂ Σ_k p̄_k log p̄_k − w₃ mean |f(x)| + …"""
        c = self.conversion
        guide, module = c.student if c.guide == "student" else c.teacher, c.generator.module()
        z, labels = draw_latents(key, batch["index"], module, c.batch_size)
        images, model_state = generate(module, {"params": params, **model_state}, z, labels)
        features: Any = guide.features(frozen, images)
        logits = guide.apply(frozen, images)
        terms = {
            "one_hot": losses.one_hot_loss(logits, labels),
            "balance": losses.balance_loss(logits),
            "smoothness": losses.smoothness_loss(images),
        }
        if c.weights.activation:
            terms["activation"] = losses.activation_loss(features)
        if c.weights.diversity:  # over the global batch: pairs do not depend on the devices
            values = losses.diversity_loss(all_gather(images), all_gather(z))
            terms["diversity"] = own_rows(values, len(images))
        return per_example(losses.generator_loss(terms, c.weights._asdict())[0], model_state)


def replay_step(c: Conversion, state: State, frozen: PyTree, batch: PyTree):
    """The student's step by `ReplayLoss`."""
    objective, tx = ReplayLoss(c), c.optimizer.make()
    student, metrics = train_step(state.student, state.bank, batch, objective=objective, tx=tx)
    return state.replace(student=student), metrics


@dataclasses.dataclass(frozen=True)
class ReplayLoss:
    """Distance to answers that are drawn from the bank, which is `frozen`, by their chances."""

    conversion: Conversion

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """‖p_S(x) − a‖² or KL(a ‖ p_S(x)), x a query of the bank and a its noisy answer."""
        c, index = self.conversion, batch["index"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        u = jax.vmap(jax.random.uniform)(keys)
        rows = jnp.searchsorted(frozen["replay_cdf"], u, side="right")
        rows = jnp.minimum(rows, len(frozen["replay_cdf"]) - 1)
        images, answers = frozen["images"][rows], frozen["targets"][rows]
        if c.crop_padding:
            shifts = jax.random.fold_in(key, 1)
            images = augment(shifts, images, index, crop_padding=c.crop_padding, flip=False)
        logits = c.student.apply({"params": params}, images)
        return per_example(losses.answer_loss(logits, answers, c.loss), model_state)


def ask(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> Array:
    """The teacher's answers to public queries, [B, K], all of them on every device.

    "answers": counts of the members' answers, which the host has yet to noise. "logit":
    p_S − ĝ with ĝ = p_S − p_T, bounded and noised: the teacher's noisy answer as long as nothing
    was bounded. None: p_T. `batch` holds `image` [b, H, W, C] and `number` int32 [b], the release's
    in all rows: noise is drawn once for each.
    """
    images, teacher = batch["image"], frozen["teacher"]
    if c.mechanism == "answers":
        inputs = preprocess(images, c.teacher.mean, c.teacher.std)
        ensemble = c.teacher.module()
        members: Any = ensemble.apply(teacher, inputs, "probabilities", method="answers")
        return all_gather(answer_counts(members))
    probs = jax.nn.softmax(c.teacher.apply(teacher, images))
    if c.mechanism is None:
        return all_gather(probs)
    logits = c.student.apply({"params": state.student.params}, images)
    grads = _released(c, frozen["noise"], batch["number"][0], logits, probs)
    return all_gather(jax.nn.softmax(logits) - grads)


def predict(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> Array:
    """The student's probabilities [B, K] of `batch["image"]`."""
    logits = c.student.apply({"params": state.student.params}, batch["image"])
    return all_gather(jax.nn.softmax(logits))


def draw(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> Array:
    """Images [B, H, W, C] of the generator; `batch["number"]`, equal in all rows, says which."""
    return all_gather(_drawn(c, state, batch["index"], batch["number"][0]))


def _drawn(c: Conversion, state: State, index: Array, number: Array) -> Array:
    key, module = stream_key(state.generator.rng, STREAM_QUERIES, number), c.generator.module()
    z, labels = draw_latents(key, index, module, c.batch_size)
    variables = {"params": state.generator.params, **state.generator.model_state}
    return generate(module, variables, z, labels)[0]


def _released(c: Conversion, noise: PyTree, number: Array, logits: Array, probs: Array) -> Array:
    key, scales = jax.random.fold_in(noise["key"], number), dict(noise)
    del scales["key"]
    return privatize_logit_gradients(key, logits, probs, mode=c.bound, **scales)


def _log(probs: Array) -> Array:
    """Logits of probabilities; a certain answer stays certain."""
    return jnp.log(jnp.maximum(probs, 1e-30))
