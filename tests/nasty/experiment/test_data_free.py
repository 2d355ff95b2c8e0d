"""Distillation without data: `dpdfd.train` does it, told of the teacher's checkpoint alone."""

import pytest
from etils import epath

from distill_core import evaluate, load_model, train
from distill_core.config import InputError
from distill_core.experiment import stages
from nasty.experiment import data_free

TINY = {"widths": (4,), "hidden": 8}
STUDENT = {"model": "cnn", "model_kwargs": {**TINY, "norm": "group"}}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return stages.Runner(epath.Path(tmp_path_factory.mktemp("experiment")), "the data")


@pytest.fixture(scope="module")
def taught(runner):
    """The run of a teacher that is complete."""
    settings = {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": TINY,
        "learning_rate": 0.05,
        "batch_size": 16,
        "num_steps": 2,
    }
    run = stages.Run("teacher_normal", 1, train.train_and_evaluate, settings, {})
    runner.complete(run)
    return run


@pytest.fixture
def teacher(runner, taught):
    return str(runner.directory(taught))


def settings(path, **changes):
    return {
        "teacher": path,
        "dataset": "digits",
        **STUDENT,
        "learning_rate": 0.01,
        "batch_size": 16,
        "num_steps": 2,
        "generator": {"width": 4, "latent_size": 4},
        **changes,
    }


def test_a_student_comes_out_of_the_teachers_checkpoint_alone(runner, taught, teacher):
    own = {name: value for name, value in settings(teacher).items() if name != "teacher"}
    binary = data_free.train_and_evaluate
    run = stages.Run("data_free_of_normal", 1, binary, own, {"teacher": taught})
    found, workdir = runner.complete(run), runner.directory(run)
    student = load_model(workdir, part="student")
    assert (found["num_test"], found["id"]) == (360, student.metadata["id"])
    assert found["accuracy"] == evaluate.evaluate_checkpoint(workdir, dataset="digits")["accuracy"]
    assert student.network.model_kwargs["norm"] == "group"
    trained_with = student.metadata["config"]
    assert trained_with["guide"] == "teacher" and trained_with["privacy_unit"] == "none"
    assert trained_with["dataset"] is None, "the training could see the data set"
    ancestors = student.metadata["ledger"]["ancestors"]
    assert [each["id"] for each in ancestors] == [load_model(teacher).metadata["id"]]
    assert runner.complete(run) == found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guide": "student"}, "guide: got 'student'; is 'teacher' without data; leave it out"),
        (
            {"dataset": None},
            "dataset: got None; is required: the student is measured on its test split",
        ),
        ({"teacher": None}, "teacher: got None; must be a "),
        ({"generator": {"every": [1, 2]}}, "generator.every: got [1, 2]; must be an integer of "),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    teacher, tmp_path, changes, line
):
    with pytest.raises(InputError) as error:
        data_free.train_and_evaluate(settings(teacher, **changes), tmp_path / "refused")
    assert str(error.value).startswith(line)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"generator": {"widht": 4}}, "data_free.generator.widht: .* did you mean width"),
        ({"privacy_unit": "query"}, "data_free.privacy_unit: .* is 'none' without data"),
        ({"batch_size": 15}, "data_free.batch_size: got 15; must be divisible by the 8 devices"),
    ],
)
def test_the_settings_of_an_experiment_are_checked_without_a_teacher(changes, line):
    given = settings("")
    del given["teacher"]
    data_free.check(given)
    with pytest.raises(InputError, match=line):
        data_free.check({**given, **changes})
