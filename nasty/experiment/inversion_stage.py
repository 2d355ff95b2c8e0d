"""DeepInversion of both teachers as a stage of the experiment: images, and numbers beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.experiment.plotting import attempt
from distill_core.experiment.stages import Run
from distill_core.training import fits
from nasty.experiment import inversion
from nasty.experiment.figures import inversion_grid

TEACHERS = ("normal", "nasty")


@config.settings
class Chosen:
    """What an experiment may set; as `inversion.invert` has it where not given."""

    images_per_class: int = config.integer(1, default=10, help="to reconstruct")
    num_steps: int | None = config.integer(1, default=None, help="updates of the images")
    learning_rate: float | None = config.number(0.0, above=True, default=None, help="the first")
    statistics: float | None = config.number(0.0, default=None, help="weight of batch statistics")
    total_variation: float | None = config.number(0.0, default=None, help="weight of smoothness")
    l2: float | None = config.number(0.0, default=None, help="weight of the pixels' norm")


@config.settings
class Settings(Chosen):
    """Of the stage."""

    seed: int = config.integer(0, help="of the noise that images begin as")
    normal: str = config.text(help="the normal teacher's checkpoint")
    nasty: str = config.text(help="the nasty teacher's")
    judge: str = config.text(help="the checkpoint of another network, which judges the images")


_WEIGHTS = ("num_steps", "learning_rate", "statistics", "total_variation", "l2")


def stage(settings: Mapping[str, Any], stages: Mapping[str, Run]) -> Run:
    """The run on one seed's teachers; the student that had no teacher judges the images.

    Args:
      settings: the group `inversion`.
      stages: the comparison's runs of that seed by arm.
    """
    inputs = {name: stages[f"teacher_{name}"] for name in TEACHERS}
    seed = inputs["normal"].seed
    inputs["judge"] = stages["student_alone"]
    return Run("inversion", seed, reconstruct, {**settings, "seed": seed}, inputs)


def check(settings: Mapping[str, Any]):
    """Refuses what `inversion` cannot set.

    Raises:
      InputError: on `inversion.FIELD`.
    """
    with config.within("inversion"):
        config.validate(settings, Chosen)


def reconstruct(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Reconstructs images of every class from both teachers, from the same noise.

    Returns, for each teacher, its `confidence` in the wanted classes, the `noisiness` of the images
    and `judge_accuracy`; writes `images.npz` and `inversion.png` into the workdir.
    """
    del parallel  # a batch of some hundred images at most
    hp = config.validate(settings, Settings)
    workdir = epath.Path(workdir)
    teachers = {name: checkpoint.load_model(getattr(hp, name)) for name in TEACHERS}
    judge, classes = checkpoint.load_model(hp.judge), teachers["normal"].network.classes
    for field, each in (("nasty", teachers["nasty"]), ("judge", judge)):
        fits.check_start(field, getattr(hp, field), each.network, teachers["normal"].network)
    labels = np.repeat(np.arange(len(classes)), hp.images_per_class)
    weights = {k: getattr(hp, k) for k in _WEIGHTS if getattr(hp, k) is not None}
    made, found = {}, {}
    for name, teacher in teachers.items():
        print(f"reconstructs {len(labels)} images from the {name} teacher", flush=True)
        each = made[name] = inversion.invert(teacher, labels, seed=hp.seed, **weights)
        found[name] = {
            "confidence": float(each.confidence.mean()),
            "noisiness": inversion.noisiness(each.images),
            "judge_accuracy": inversion.judge_accuracy(each.images, labels, judge),
        }
    with (workdir / "images.npz").open("wb") as file:
        np.savez(file, labels=labels, **{name: each.images for name, each in made.items()})
    attempt(inversion_grid, workdir / "inversion.png", made["normal"], made["nasty"], classes)
    return found
