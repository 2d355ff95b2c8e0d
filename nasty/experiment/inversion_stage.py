"""DeepInversion of both teachers as a stage of the experiment: images, and numbers beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.experiment.plotting import attempt
from distill_core.experiment.stages import Run, run_directory
from distill_core.training import fits
from nasty.experiment import inversion
from nasty.experiment.figures import inversion_grid

TEACHERS = ("normal", "nasty")
FIELDS = {
    "seed": config.integer(0),
    "images_per_class": config.integer(1, default=10),
    # As `inversion.invert` has them where not given.
    "num_steps": config.integer(1, default=None),
    "learning_rate": config.number(0.0, above=True, default=None),
    "statistics": config.number(0.0, default=None),
    "total_variation": config.number(0.0, default=None),
    "l2": config.number(0.0, default=None),
    "normal": config.text(),
    "nasty": config.text(),
    "judge": config.text(),
}
_WEIGHTS = ("num_steps", "learning_rate", "statistics", "total_variation", "l2")


def stage(hp: Mapping[str, Any], workdir: epath.Path) -> Run:
    """The stage of the first seed's teachers; the student that had no teacher judges the images."""
    seed = hp["seeds"][0]
    inputs = {name: run_directory(workdir, f"teacher_{name}", seed) for name in TEACHERS}
    inputs["judge"] = run_directory(workdir, "student_alone", seed)
    return Run("inversion", seed, reconstruct, {**hp["inversion"], "seed": seed}, inputs)


def check(settings: Mapping[str, Any]):
    """Refuses what `inversion` cannot set.

    Raises:
      InputError: on `inversion.FIELD`.
    """
    own = {name: FIELDS[name] for name in ("images_per_class", *_WEIGHTS)}
    with config.within("inversion"):
        config.validate(settings, own)


def reconstruct(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Reconstructs images of every class from both teachers, from the same noise.

    Returns, for each teacher, its `confidence` in the wanted classes, the `noisiness` of the images
    and `judge_accuracy`; writes `images.npz` and `inversion.png` into the workdir.
    """
    del parallel  # a batch of some hundred images at most
    hp = config.validate(settings, FIELDS)
    workdir = epath.Path(workdir)
    teachers = {name: checkpoint.load_model(hp[name]) for name in TEACHERS}
    judge, classes = checkpoint.load_model(hp["judge"]), teachers["normal"].network.classes
    for field, each in (("nasty", teachers["nasty"]), ("judge", judge)):
        fits.check_start(field, hp[field], each.network, teachers["normal"].network)
    labels = np.repeat(np.arange(len(classes)), hp["images_per_class"])
    weights = {name: hp[name] for name in _WEIGHTS if hp[name] is not None}
    made, found = {}, {}
    for name, teacher in teachers.items():
        print(f"reconstructs {len(labels)} images from the {name} teacher", flush=True)
        each = made[name] = inversion.invert(teacher, labels, seed=hp["seed"], **weights)
        found[name] = {
            "confidence": float(each.confidence.mean()),
            "noisiness": inversion.noisiness(each.images),
            "judge_accuracy": inversion.judge_accuracy(each.images, labels, judge),
        }
    with (workdir / "images.npz").open("wb") as file:
        np.savez(file, labels=labels, **{name: each.images for name, each in made.items()})
    attempt(inversion_grid, workdir / "inversion.png", made["normal"], made["nasty"], classes)
    return found
