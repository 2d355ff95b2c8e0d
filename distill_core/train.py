"""Trains a plain classifier or language model, with differential privacy if `dp` is set.

python -m distill_core.train --config configs/distill_core/digits.py --workdir runs/plain
"""

from typing import Any

from etils import epath

from distill_core import config
from distill_core.models import trust
from distill_core.runtime import cli
from distill_core.step import Labels, LinearLabels
from distill_core.training import classification, dp_settings, plain_text


@config.settings
class Settings(plain_text.Text, dp_settings.Private, config.Training):
    """A plain training run, on images or on text."""

    dataset: str = config.text(
        help="images: digits, tfds:NAME, npz:PATH, folder:PATH; "
        "text: records, text:PATH, tsv:PATH, jsonl:PATH"
    )


_OF_IMAGES = ("data_dir", "num_validation", *config.fields(config.Augmentation))
_OF_IMAGES += ("train_share", "reinitialise")


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns the test metrics and the checkpoint's id."""
    hp = config.validate(settings, Settings)
    text = plain_text.is_text(hp.dataset)
    names = _OF_IMAGES if text else config.fields(plain_text.Text)
    why = f"belongs to {'images' if text else 'text'}, not to {hp.dataset}"
    config.check_unset(hp, names, why)
    if text:
        return plain_text.train(hp, workdir, method="distill_core.train", mode=parallel)
    dataset, splits = classification.load_splits(hp, workdir)
    run = classification.prepare(
        hp,
        workdir,
        method="distill_core.train",
        dataset=dataset,
        splits=splits,
        mode=parallel,
        dp=hp.dp,
    )
    objective = LinearLabels() if run.on_features else Labels(run.network)
    return classification.train(run, objective, frozen={})


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings)
