"""The objectives of plain training and plain distillation."""

import dataclasses

import jax
import jax.numpy as jnp

from distill_core.losses import cross_entropy, distillation_loss, kl_divergence, standardized
from distill_core.models.network import Network
from distill_core.training.chunked import cross_entropy_from_hidden
from distill_core.training.metrics import correct
from distill_core.training.step import Outputs, per_example, per_token


@dataclasses.dataclass(frozen=True)
class Labels:
    """Cross-entropy with the labels of images."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(z, y)."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.network.train_apply(params, model_state, images, key)
        values = cross_entropy(logits, labels)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class LinearLabels:
    """Cross-entropy with labels of a linear layer on features that were computed beforehand."""

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(F·W + b, y)."""
        layer, labels = params["linear"], batch["label"]
        product = jnp.matmul(
            batch["features"], layer["kernel"], precision=jax.lax.Precision.HIGHEST
        )
        logits = product + layer["bias"][None]
        values = self.losses(logits, batch)
        return per_example(values, model_state, accuracy=correct(logits, labels))

    def losses(self, logits, batch):
        """CE(z, y), float32 [B]: each row for itself, as `LinearGradient` takes it."""
        return cross_entropy(logits, batch["label"])


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Plain distillation from a network or, without one, from its stored logits.

    `frozen` holds `temperature`, `alpha` and the `teacher`'s variables; stored logits are those of
    the unaugmented images, `batch["teacher_logits"]`.
    """

    student: Network
    teacher: Network | None

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """α τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)) + (1 − α) CE(z_S, y)."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.student.train_apply(params, model_state, images, key)
        answers = _answers(self.teacher, frozen, batch)
        scales = {name: frozen[name] for name in ("temperature", "alpha")}
        values = distillation_loss(logits, answers, labels, **scales)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class StandardizedDistillation:
    """Distillation of z-scored logits (Sun et al., CVPR 2024); otherwise as `Distillation`."""

    student: Network
    teacher: Network | None

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """α τ² KL(softmax(Z(z_T)/τ) ‖ softmax(Z(z_S)/τ)) + (1 − α) CE(z_S, y), Z the z-score."""
        labels, tau, alpha = batch["label"], frozen["temperature"], frozen["alpha"]
        logits, model_state = self.student.train_apply(params, model_state, batch["image"], key)
        answers = _answers(self.teacher, frozen, batch)
        soft = kl_divergence(standardized(answers), standardized(logits), temperature=tau)
        values = alpha * tau**2 * soft + (1.0 - alpha) * cross_entropy(logits, labels)
        return per_example(values, model_state, accuracy=correct(logits, labels))


def _answers(teacher: Network | None, frozen, batch):
    """The teacher's logits [B, C], without gradient."""
    if teacher is None:
        return batch["teacher_logits"]
    return teacher.apply(frozen["teacher"], batch["image"])


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """Cross-entropy with the labels of text."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE of every weighted token, from hidden states."""
        variables = {"params": params, **model_state}
        hidden, embedding = self.network.hidden(variables, batch["tokens"], batch["segments"])
        values, right = cross_entropy_from_hidden(hidden, embedding, batch["labels"])
        weights = batch["weights"]
        total, accuracy = (values * weights).sum(), (right * weights).sum()
        return per_token(total, weights, model_state, accuracy=accuracy)
