"""Trains a plain classifier.

python -m distill_core.train --config configs/distill_core/digits.py --workdir runs/plain
"""

from typing import Any

from etils import epath

from distill_core import classification, cli, config
from distill_core.losses import cross_entropy

FIELDS = config.TRAINING


def objective(logits, images, labels, frozen, extra):
    """Cross-entropy."""
    return cross_entropy(logits, labels)


def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns the test accuracy and the checkpoint."""
    hp = config.validate(settings, FIELDS)
    dataset, splits = classification.load_splits(hp)
    return classification.train(
        hp,
        workdir,
        method="distill_core.train",
        dataset=dataset,
        splits=splits,
        objective=objective,
        frozen={},
        mode=parallel,
    )


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
