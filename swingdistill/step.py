"""The objective of a student of Swing distillation."""

import dataclasses

import jax.numpy as jnp

from distill_core.models.network import Network
from distill_core.training.step import Outputs, per_token
from swingdistill.chunked_loss import swing_loss_from_hidden
from swingdistill.losses import context_ids


@dataclasses.dataclass(frozen=True)
class Swing:
    """The Swing loss against a teacher or its cache, and for some variants a reference.

    `batch` holds `tokens`, `labels`, `segments` int32 [B, L], `weights`, `scores` and, if `noisy`,
    `noise_scale` float32 [B, L]. `frozen` holds the networks' variables and the loss's numbers, and
    if `noisy` the secret `noise_key`. Where it has `released` (see `released.table`), those are the
    targets of the contexts at `batch["released"]`. Without a teacher `batch` holds cached answers,
    `classes`, `log_probs`, `tails` and `drawn` [B, L, ...].

    Attributes:
      student, teacher: language models over one vocabulary; no teacher where there is a cache.
      reference: of public text; None where nothing asks for it.
      variant, entries, keep_ce: as for `swing_loss_from_hidden`.
      noisy: whether targets are noised here, and not beforehand.
    """

    student: Network
    teacher: Network | None
    reference: Network | None
    variant: str
    entries: int | None
    keep_ce: bool
    noisy: bool

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """Σ w (α T_min² KL(p_t ‖ softmax(z_S/T_min)) + (1 − α)(1 − s_t) CE(z_S, y)), with
        p_t = softmax(z_T/T_t + noise), T_t = T_min + (T_max − T_min) s_t^γ; variants aside."""
        inputs = (batch["tokens"], batch["segments"])
        variables = {"params": params, **model_state}
        hidden, embedding = self.student.hidden(variables, *inputs)
        public = (None, None)
        if self.reference is not None:
            public = self.reference.hidden(frozen["reference"], *inputs)
        answers, states, targets = None, None, None
        if self.teacher is not None:
            states, targets = self.teacher.hidden(frozen["teacher"], *inputs)
        else:
            answers = tuple(batch[name] for name in ("classes", "log_probs", "tails", "drawn"))
        total, sums = swing_loss_from_hidden(
            hidden,
            embedding,
            states,
            targets,
            batch["labels"],
            batch["scores"],
            key=frozen["noise_key"] if self.noisy else None,
            noise_ids=context_ids(*inputs) if self.noisy else None,
            weights=batch["weights"],
            alpha=frozen["alpha"],
            t_min=frozen["t_min"],
            t_max=frozen["t_max"],
            gamma=frozen["gamma"],
            noise_scale=batch["noise_scale"] if self.noisy else 0,
            clip=frozen["clip"],
            keep_ce=self.keep_ce,
            variant=self.variant,
            reference_hidden=public[0],
            reference_embedding=public[1],
            teacher_weight=frozen["teacher_weight"],
            entries=self.entries,
            released=_released(frozen, batch),
            cached=answers,
            has_aux=True,
        )
        return per_token(total, batch["weights"], model_state, **sums)


def _released(frozen, batch):
    """(classes, log-probabilities) [B, L, k] of the contexts that have a release, class −1 where
    there is none; None where nothing was released beforehand."""
    if "released" not in frozen:
        return None
    place, table = batch["released"], frozen["released"]
    classes = jnp.where(place[..., None] >= 0, table["classes"][place], -1)
    return classes, table["log_probs"][place]
