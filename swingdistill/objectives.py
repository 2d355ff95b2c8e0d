"""What a student's training step minimises: the Swing loss against its teacher."""

import functools
import json

import jax.numpy as jnp

from distill_core.models import spec
from swingdistill.chunked_loss import swing_loss_from_hidden
from swingdistill.losses import context_ids


@functools.cache
def swing_objective(
    teacher: str,
    reference: str | None,
    variant: str,
    entries: int | None,
    keep_ce: bool,
    noisy: bool,
):
    """The Swing loss against a teacher (and a reference) of these JSON specs.

    Where `frozen` has "released" (see `released.table`) those are the targets of their contexts.
    """
    teacher_hidden = spec.make_hidden(json.loads(teacher))
    reference_hidden = spec.make_hidden(json.loads(reference)) if reference else None

    def objective(hidden, embedding, batch, frozen):
        inputs = (batch["tokens"], batch["segments"])
        public = (None, None)
        if reference_hidden is not None:
            public = reference_hidden(frozen["reference"], *inputs)
        released = None
        if "released" in frozen:
            place, table = batch["released"], frozen["released"]
            classes = jnp.where(place[..., None] >= 0, table["classes"][place], -1)
            released = (classes, table["log_probs"][place])
        states, targets = teacher_hidden(frozen["teacher"], *inputs)
        total, sums = swing_loss_from_hidden(
            hidden,
            embedding,
            states,
            targets,
            batch["labels"],
            batch["scores"],
            key=frozen["noise_key"] if noisy else None,
            noise_ids=context_ids(*inputs) if noisy else None,
            weights=batch["weights"],
            alpha=frozen["alpha"],
            t_min=frozen["t_min"],
            t_max=frozen["t_max"],
            gamma=frozen["gamma"],
            noise_scale=batch["noise_scale"] if noisy else 0,
            clip=frozen["clip"],
            keep_ce=keep_ce,
            variant=variant,
            reference_hidden=public[0],
            reference_embedding=public[1],
            teacher_weight=frozen["teacher_weight"],
            entries=entries,
            released=released,
            has_aux=True,
        )
        return total, sums

    return objective
