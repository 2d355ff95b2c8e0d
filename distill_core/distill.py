r"""Distils a student from any checkpoint, or from a black-box teacher's stored logits.

    python -m distill_core.distill --config configs/distill_core/distill_digits.py \
        --config.teacher=runs/plain --workdir runs/student
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.models import trust
from distill_core.models.network import stored_as
from distill_core.runtime import cli, paths
from distill_core.step import Distillation, StandardizedDistillation
from distill_core.training import classification, fits, run_state


@config.settings
class Settings(config.Frozen, config.Training):
    """Of a distillation."""

    teacher: str = config.text(help="a checkpoint, or npz:FILE of a teacher's stored logits")
    temperature: float = config.number(0.0, above=True, default=4.0, help="τ, softens both sides")
    alpha: float = config.number(0.0, 1.0, default=0.9, help="α, weight of the teacher's answers")
    standardize: bool = config.boolean(
        default=False, help="z-scores the logits of both sides before the softmax"
    )


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Distils to the end or resumes; returns what `classification.train` does."""
    hp = config.validate(settings, Settings)
    # Traced values, not constants: students that differ only in them share one compiled step.
    frozen: dict[str, Any] = {k: jnp.float32(getattr(hp, k)) for k in ("temperature", "alpha")}
    if hp.teacher.startswith("npz:"):
        config.check_unset(hp, config.fields(config.Frozen), "stored logits need no network")
        dataset, splits = classification.load_splits(hp, workdir)
        logits, teacher = _stored_logits(hp, workdir, dataset)
        network, stored = None, {"teacher_logits": logits[splits.train.index]}
    else:
        teacher, dataset, splits = classification.load_with(hp, "teacher", workdir)
        asked = stored_as(teacher, hp.frozen_dtype)
        network, stored = asked.network, {}
        frozen["teacher"] = asked.variables
    run = classification.prepare(
        hp, workdir, method="distill_core.distill", dataset=dataset, splits=splits, mode=parallel
    )
    kind = StandardizedDistillation if hp.standardize else Distillation
    return classification.train(
        run, kind(run.network, network), frozen=frozen, reads={"teacher": teacher}, examples=stored
    )


def _stored_logits(hp, workdir: epath.PathLike, dataset) -> tuple[np.ndarray, str]:
    """`logits` of the training split, float32 [N, C], columns in the order of its classes; and the
    fingerprint of the file's logits and classes."""
    teacher = hp.teacher
    path = paths.expand("teacher", teacher.removeprefix("npz:"), given=teacher)
    shape = (len(dataset.train), dataset.num_classes)
    how = "write it with distill_core.evaluate --split=train --logits_out=FILE"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays.get("labels")
            names = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
        if logits.dtype.kind not in "fV":  # V: bfloat16
            raise TypeError(f"its `logits` are {logits.dtype}, not floats")
        with np.errstate(over="ignore"):  # what overflows is refused below
            logits = logits.astype(np.float32)
    except Exception as error:  # NumPy raises many kinds for what is no such archive
        reason = " ".join(str(error).split()[:20])
        allowed = f"holds no readable `logits` ({type(error).__name__}: {reason}); {how}"
        raise config.InputError("teacher", teacher, allowed) from None
    fingerprint = checkpoint.digest({"logits": logits, "classes": np.array(names or ())})
    run_state.check_unchanged(hp, workdir, {"teacher": fingerprint})
    if logits.shape != shape:
        allowed = f"its `logits` are {logits.shape}; the training split needs {shape}; {how}"
        raise config.InputError("teacher", teacher, allowed)
    for wrong, what in (
        (np.isnan(logits).any(-1) | np.isposinf(logits).any(-1), "NaN or +infinity"),
        (np.isneginf(logits).all(-1), "-infinity for every class"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise config.InputError("teacher", teacher, f"row {row} of its `logits` holds {what}")
    if (logits >= 0).all() and np.allclose(logits.sum(-1), 1.0, atol=1e-3):
        allowed = "its `logits` are probabilities: every row sums to 1; store their logarithms"
        raise config.InputError("teacher", teacher, allowed)
    ours = dataset.classes if dataset.named else None
    order, line = fits.class_order("teacher", teacher, names, ours, what=dataset.name)
    wanted = dataset.train.labels
    if order is not None:
        logits, wanted = logits[:, order], np.array(order)[wanted]
    if labels is not None and not np.array_equal(labels, wanted):
        allowed = f"its `labels` are not those of {dataset.name}'s training split; {how}"
        raise config.InputError("teacher", teacher, allowed)
    fits.say(line)
    return logits, fingerprint


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings)
