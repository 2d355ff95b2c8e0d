"""What plain training and plain distillation minimise."""

import dataclasses

from distill_core.losses import cross_entropy, distillation_loss
from distill_core.models.network import Network
from distill_core.training.chunked import chunk_for, cross_entropy_from_hidden
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
class Distillation:
    """Plain distillation, from a network or, without one, from its stored logits.

    `frozen` holds `temperature`, `alpha` and the `teacher`'s variables; stored logits are those of
    the unaugmented images, `batch["teacher_logits"]`.
    """

    student: Network
    teacher: Network | None

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """α τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)) + (1 − α) CE(z_S, y)."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.student.train_apply(params, model_state, images, key)
        if self.teacher is None:
            teacher_logits = batch["teacher_logits"]
        else:
            teacher_logits = self.teacher.apply(frozen["teacher"], images)
        values = distillation_loss(
            logits,
            teacher_logits,
            labels,
            temperature=frozen["temperature"],
            alpha=frozen["alpha"],
        )
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """Cross-entropy with the labels of text."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE of every weighted token, from hidden states."""
        variables = {"params": params, **model_state}
        hidden, embedding = self.network.hidden(variables, batch["tokens"], batch["segments"])
        chunk = chunk_for(self.network.num_classes)
        values, right = cross_entropy_from_hidden(hidden, embedding, batch["labels"], chunk=chunk)
        weights = batch["weights"]
        total, accuracy = (values * weights).sum(), (right * weights).sum()
        return per_token(total, weights, model_state, accuracy=accuracy)
