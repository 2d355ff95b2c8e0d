"""Distils a student from a teacher's checkpoint alone: no image of any data set is seen.

A generator is trained to make images that the teacher is sure of, and the student learns the
teacher's answers to them, as Chen et al., "Data-Free Learning of Student Networks" (DAFL, ICCV
2019). The training is the binary `dpdfd.train`, guided by the teacher and without privacy.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_core import checkpoint, config, data, evaluate
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.runtime import parallel as devices
from distill_core.training import fits, run_state
from dpdfd import train as conversion

# What makes it DAFL: the generator sees the teacher itself, and nothing is noised or drawn by code.
FIXED = {"guide": "teacher", "privacy_unit": "none", "prior": {}}
# Only to measure: the training is not even told of the data set.
_MEASURING = ("dataset", "data_dir")


@trust.config_allows
def train_and_evaluate(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Distils without data to the end or resumes, then measures the student on the test split.

    `settings` are the `teacher`, `dataset` and `data_dir`, to measure only, and what else
    `dpdfd.train` takes; its student has no batch normalisation. The checkpoint has the parts
    `student` and `generator`. Returns {"accuracy", "num_test", "id"} of the last step.

    Raises:
      InputError: wrong settings, before anything is written.
      DivergedError, StoppedError: see `loop.run`.
    """
    name, folder = settings["dataset"], settings.get("data_dir")
    hp = _checked(settings)
    dataset = data.load_dataset(name, data_dir=folder)
    with run_state.about("teacher", hp.teacher):
        teacher = checkpoint.load_model(hp.teacher)
    fits.data_for("teacher", hp.teacher, teacher, dataset)
    found = conversion.train_and_evaluate(config.to_json(hp), workdir, parallel=parallel)
    measured = evaluate.evaluate_checkpoint(workdir, part="student", dataset=name, data_dir=folder)
    return {
        "accuracy": measured["accuracy"],
        "num_test": measured["examples"],
        "id": found["id"],
    }


def check(settings: Mapping[str, Any]):
    """Refuses what `dpdfd.train` would not take, for any teacher.

    Raises:
      InputError: on `data_free.FIELD`.
    """
    with config.within("data_free"):
        checked = _checked({**settings, "teacher": "given"})
        devices.check_batch_size(checked.batch_size, devices.choose_mode())


def _checked(settings: Mapping[str, Any]) -> conversion.Settings:
    """What `dpdfd.train` is told: the settings, with what makes its run one without data."""
    chosen = {name: value for name, value in settings.items() if name not in _MEASURING}
    for name, value in FIXED.items():
        if chosen.setdefault(name, value) != value:
            raise InputError(name, chosen[name], f"is {value!r} without data; leave it out")
    return conversion.validate(chosen)
