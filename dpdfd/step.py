"""The updates of a conversion: pure functions of static choices and a state.

Student and generator alternate: the student steps towards the teacher on generated queries, by
gradients that are bounded and noised; the generator steps with student or teacher, frozen, as its
guide. With rounds, the student steps on answers bought before. After Liu et al., "Model Conversion
via Differentially Private Data-Free Distillation", IJCAI 2023; the formulas are ours.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import optax

from distill_core.models.network import Network
from distill_core.privacy.per_example import bounded_gradient_sum, noisy_sum
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import Outputs, TrainState, gradient_of_sum, per_example, train_step
from dpdfd import losses
from dpdfd.bank import replayed
from dpdfd.generator import adam, draw_latents, generate, queries
from dpdfd.privacy.mechanism import privatize_logit_gradients

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Static choices; equal ones share what is compiled."""

    student: Network  # without batch statistics
    teacher: Network  # with the mechanism "answers" a `dpdfd.ensemble`
    generator: Network
    batch_size: int  # B, of the global batch
    optimizer: Optimizer  # the student's
    generator_rate: float
    weights: losses.Weights  # of the generator's loss
    mechanism: str | None  # "param", "logit" or "answers"; None without privacy
    bound: str  # "normalize", ĝ = C·g/‖g‖, or "clip", ĝ = g·min(1, C/‖g‖)
    loss: str  # of a replayed answer, "brier" or "cross_entropy"
    temperature: float  # of cross_entropy
    crop_padding: int  # random shifts of replayed queries, in pixels
    guide: str  # of the generator, "student" or "teacher"


class State(flax.struct.PyTreeNode):
    """Training states of student and generator, and the bank of bought answers (see `bank`)."""

    student: TrainState
    generator: TrainState
    bank: PyTree


def alternate(c: Conversion, state: State, frozen: PyTree, batch: PyTree):
    """The student's step on fresh queries x_i = G(z_i), z_i ~ N(0, I).

    `frozen` holds the `teacher`'s variables and, with a mechanism, `noise`: the run's `key`, `norm`
    C and `noise_multiplier`, std/C. `batch` holds `index` int32 [b], places in the global batch.
    """
    images = queries(c.generator, state.generator, batch["index"], state.student.step, c.batch_size)
    student, metrics = student_step(c, state.student, frozen, images)
    return state.replace(student=student), metrics


def student_step(c: Conversion, student: TrainState, frozen: PyTree, images: Array):
    """θ ← θ − lr · (1/B)(Σ_i ĝ_i + noise), on queries [b, H, W, C]."""
    probs = jax.lax.stop_gradient(jax.nn.softmax(c.teacher.apply(frozen["teacher"], images)))
    total = gradient_sum(c, student, frozen.get("noise"), images, probs)
    grads = jax.tree.map(lambda g: g / c.batch_size, total)
    updates, opt_state = c.optimizer.make().update(grads, student.opt_state, student.params)
    params = optax.apply_updates(student.params, updates)
    student = student.replace(step=student.step + 1, params=params, opt_state=opt_state)
    return student, {"grad_norm": optax.tree.norm(grads)}


def gradient_sum(c: Conversion, student: TrainState, noise: PyTree, images: Array, probs: Array):
    """Σ_i ĝ_i + noise over the global batch, of l_i = KL(p_T(x_i) ‖ p_S(x_i)).

    "param": g_i = ∇_θ l_i is bounded, the sum is noised, once for all devices. "logit": p_S − p_T,
    the gradient by the logits, is bounded and noised per query; then one product with the Jacobian.
    """

    def logits(params, images=images):
        return c.student.apply({"params": params, **student.model_state}, images)

    def one_loss(params, row):
        return losses.divergence(row["probs"], logits(params, row["image"][None])[0])

    if c.mechanism is None:
        return gradient_of_sum(lambda p: losses.divergence(probs, logits(p)), student.params)
    key = jax.random.fold_in(noise["key"], student.step)
    scales = {name: noise[name] for name in ("norm", "noise_multiplier")}
    if c.mechanism == "param":
        rows, norm = {"image": images, "probs": probs}, noise["norm"]
        total = bounded_gradient_sum(one_loss, student.params, rows, norm=norm, mode=c.bound)
        return noisy_sum(key, total, **scales)
    noisy = privatize_logit_gradients(key, logits(student.params), probs, mode=c.bound, **scales)
    return gradient_of_sum(lambda p: noisy * logits(p), student.params)


def generator_step(c: Conversion, state: State, frozen: PyTree, batch: PyTree):
    """The generator's step by `GeneratorLoss`; `frozen` holds a teacher if that is the guide."""
    student = {"params": state.student.params, **state.student.model_state}
    guide = student if c.guide == "student" else frozen["teacher"]
    objective, tx = GeneratorLoss(c), adam(c.generator_rate)
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
        if c.weights.diversity:
            terms["diversity"] = losses.diversity_loss(images, z)
        return per_example(losses.generator_loss(terms, c.weights._asdict()), model_state)


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
        """‖p_S(x) − a‖² or KL(a ‖ p_S(x)), x a query of the bank and a its answer."""
        c = self.conversion
        inputs, answers = replayed(frozen, key, batch["index"], c.crop_padding)
        read = c.student.head if "features" in frozen else c.student.apply
        logits = read({"params": params, **model_state}, inputs)
        return per_example(losses.answer_loss(logits, answers, c.loss, c.temperature), model_state)
