"""Trains a plain classifier, or a plain language model; differentially privately with `dp`.

python -m distill_core.train --config configs/distill_core/digits.py --workdir runs/plain
"""

from typing import Any

from etils import epath

from distill_core import config
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.runtime import cli
from distill_core.step import Labels
from distill_core.training import classification, dp_settings, plain_text

FIELDS = {**config.TRAINING, **dp_settings.FIELDS, **plain_text.FIELDS}
_IMAGES_ALONE = ("data_dir", "num_validation", *config.AUGMENTATION, *config.CLASSIFIER)


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns what was found on the test split and the checkpoint."""
    hp = config.validate(settings, FIELDS)
    text = plain_text.is_text(hp["dataset"])
    strange = _IMAGES_ALONE if text else tuple(plain_text.FIELDS)
    for name in strange:
        if hp[name] != FIELDS[name].default:
            allowed = f"belongs to {'images' if text else 'text'}, not to {hp['dataset']}"
            raise InputError(name, hp[name], allowed)
    unused = {*strange, *(() if hp["dp"] else dp_settings.FIELDS)}
    hp = {name: value for name, value in hp.items() if name not in unused}
    if text:
        return plain_text.train(hp, workdir, method="distill_core.train", mode=parallel)
    dataset, splits = classification.load_splits(hp, workdir)
    run = classification.prepare(
        hp, workdir, method="distill_core.train", dataset=dataset, splits=splits, mode=parallel
    )
    return classification.train(run, Labels(run.network), frozen={})


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
