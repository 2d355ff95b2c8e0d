"""Distillation without data: `dpdfd.train` does it, told of the teacher's checkpoint alone."""

import pytest
from etils import epath

from distill_core import evaluate, load_model, train
from distill_core.config import InputError
from distill_core.experiment import stages
from nasty.experiment import data_free

TINY = {"widths": (4,), "hidden": 8}
SETTINGS = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {**TINY, "norm": "group"},
    "learning_rate": 0.01,
    "batch_size": 16,
    "num_steps": 2,
    "generator": {"width": 4, "latent_size": 4},
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return stages.Runner(epath.Path(tmp_path_factory.mktemp("experiment")), "the data")


@pytest.fixture(scope="module")
def taught(runner):
    """The run of a teacher that is complete."""
    settings = {name: value for name, value in SETTINGS.items() if name != "generator"}
    settings["model_kwargs"] = TINY
    run = stages.Run("teacher_normal", 1, train.train_and_evaluate, settings, {})
    runner.complete(run)
    return run


def test_a_student_comes_out_of_the_teachers_checkpoint_alone(runner, taught):
    binary = data_free.train_and_evaluate
    run = stages.Run("data_free_of_normal", 1, binary, SETTINGS, {"teacher": taught})
    found, workdir = runner.complete(run), runner.directory(run)
    student = load_model(workdir, part="student")
    assert (found["num_test"], found["id"]) == (360, student.metadata["id"])
    assert found["accuracy"] == evaluate.evaluate_checkpoint(workdir, dataset="digits")["accuracy"]
    assert student.network.model_kwargs["norm"] == "group"
    trained_with = student.metadata["config"]
    assert trained_with["guide"] == "teacher" and trained_with["privacy_unit"] == "none"
    assert trained_with["dataset"] is None, "the training could see the data set"
    ancestors = student.metadata["ledger"]["ancestors"]
    teacher = load_model(runner.directory(taught)).metadata["id"]
    assert [each["id"] for each in ancestors] == [teacher]
    assert runner.complete(run) == found


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("guide", {"guide": "student"}),
        ("privacy_unit", {"privacy_unit": "query"}),
        ("generator.every", {"generator": {"every": [1, 2]}}),
        ("generator.widht", {"generator": {"widht": 4}}),
        ("batch_size", {"batch_size": 15}),  # on eight devices
    ],
)
def test_wrong_settings_are_refused_without_a_teacher_and_before_anything_is_written(
    tmp_path, field, changes
):
    data_free.check(SETTINGS)
    with pytest.raises(InputError, match=f"^data_free.{field}: "):
        data_free.check({**SETTINGS, **changes})
    given = {**SETTINGS, **changes, "teacher": str(tmp_path / "teacher")}
    with pytest.raises(InputError):
        data_free.train_and_evaluate(given, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
