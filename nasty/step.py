"""What each method of this package minimises: nasty teachers, and the students of their attackers.

The formulas are in `losses`, `defences` and `attacks`; here is what they are computed from.
"""

import dataclasses

from distill_core.losses import distillation_loss
from distill_core.models.network import Network
from distill_core.training.metrics import correct
from distill_core.training.step import Outputs, per_example
from nasty.attacks.htc import htc_loss
from nasty.attacks.skeptical import SOWN, skeptical_loss
from nasty.defences.cmim import cmim_loss, update_centroids
from nasty.defences.stingy import release_top_k
from nasty.losses import nasty_loss

# A collection of the state in training that belongs to no network.
CENTROIDS = "cmim_centroids"


@dataclasses.dataclass(frozen=True)
class Nasty:
    """A nasty teacher against a normally trained adversary, which sees the same images."""

    teacher: Network
    adversary: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(z_T, y) − ω τ² KL(softmax(z_T/τ) ‖ softmax(z_A/τ))."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.teacher.train_apply(params, model_state, images, key)
        adversary_logits = self.adversary.apply(frozen["adversary"], images)
        scales = {name: frozen[name] for name in ("temperature", "omega")}
        values = nasty_loss(logits, adversary_logits, labels, **scales)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class NastyHead:
    """The last layer of a nasty teacher, on features and adversary's logits computed beforehand."""

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """The nasty loss of z_T = features · kernel + bias."""
        labels = batch["label"]
        logits = batch["features"] @ params["kernel"] + params["bias"][None]
        scales = {name: frozen[name] for name in ("temperature", "omega")}
        values = nasty_loss(logits, batch["adversary_logits"], labels, **scales)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class Cmim:
    """A teacher whose answers are alike within a class; its centroids are moving averages."""

    teacher: Network
    decay: float

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(z, y) + weight · mean over t of KL(softmax(z/t) ‖ old centroid_t[y])."""
        images, labels, temperatures = batch["image"], batch["label"], frozen["temperatures"]
        own = dict(model_state)
        centroids = own.pop(CENTROIDS)
        logits, own = self.teacher.train_apply(params, own, images, key)
        values = cmim_loss(
            logits, labels, centroids, weight=frozen["weight"], temperatures=temperatures
        )
        centroids = update_centroids(
            centroids, logits, labels, temperatures=temperatures, decay=self.decay
        )
        state = {**own, CENTROIDS: centroids}
        return per_example(values, state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class Attack:
    """A student of a teacher that may be stingy: plain distillation, or HTC.

    With `htc` only the teacher is softened, and `frozen` has a `multiplier`.
    """

    student: Network
    teacher: Network
    top_k: int | None = None
    htc: bool = False

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """α τ² KL + (1 − α) CE; or α m KL(softmax(z_T/τ) ‖ softmax(z_S)) + (1 − α) CE."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.student.train_apply(params, model_state, images, key)
        answers = release_top_k(self.teacher.apply(frozen["teacher"], images), self.top_k)
        scales = {name: frozen[name] for name in ("temperature", "alpha")}
        if self.htc:
            values = htc_loss(logits, answers, labels, **scales, multiplier=frozen["multiplier"])
        else:
            values = distillation_loss(logits, answers, labels, **scales)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class Averager:
    """A student of the class means of a teacher's answers."""

    student: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """Plain distillation from z_T = class_means[y]."""
        images, labels = batch["image"], batch["label"]
        logits, model_state = self.student.train_apply(params, model_state, images, key)
        answers = frozen["class_means"][labels]
        scales = {name: frozen[name] for name in ("temperature", "alpha")}
        values = distillation_loss(logits, answers, labels, **scales)
        return per_example(values, model_state, accuracy=correct(logits, labels))


@dataclasses.dataclass(frozen=True)
class Skeptical:
    """A student whose final head trusts labels only, and whose inner one listens to the teacher."""

    student: Network
    teacher: Network
    top_k: int | None = None

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """CE(final) + awake · (KD(teacher → auxiliary) + self-distillation(final → auxiliary))."""
        images, labels = batch["image"], batch["label"]
        logits, model_state, sown = self.student.train_apply_sown(params, model_state, images, key)
        answers = release_top_k(self.teacher.apply(frozen["teacher"], images), self.top_k)
        scales = {name: frozen[name] for name in ("temperature", "alpha", "self_weight")}
        values = skeptical_loss(logits, sown[SOWN], answers, labels, **scales, awake=batch["awake"])
        return per_example(values, model_state, accuracy=correct(logits, labels))
