"""Distillation without data: a process of its own does it, and its end is told in our words."""

import signal
import sys

import pytest

from distill_core import evaluate, load_model, train
from distill_core.config import InputError
from distill_core.experiment import stages
from distill_core.runtime import config_file
from distill_core.training import loop
from nasty.experiment import data_free

TINY = {"widths": (4,), "hidden": 8}
STUDENT = {"model": "cnn", "model_kwargs": {**TINY, "norm": "group"}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    train.train_and_evaluate(
        {
            "dataset": "digits",
            "model": "cnn",
            "model_kwargs": TINY,
            "learning_rate": 0.05,
            "batch_size": 16,
            "num_steps": 2,
        },
        workdir,
    )
    return str(workdir)


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


@pytest.fixture
def child(monkeypatch):
    """Puts a few lines of Python in the place of the binary."""

    def put(program):
        monkeypatch.setattr(data_free, "_command", lambda *_: [sys.executable, "-c", program])

    return put


def dies(code, *lines):
    said = "".join(f"print({line!r}, file=sys.stderr);" for line in lines)
    return f"import sys; {said} sys.exit({code})"


def test_a_student_comes_out_of_the_teachers_checkpoint_alone(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # of the process: one device compiles faster than eight
    run = stages.Run(
        "data_free_of_normal",
        1,
        data_free.train_and_evaluate,
        {name: value for name, value in settings(teacher).items() if name != "teacher"},
        {"teacher": teacher},
    )
    found = stages.complete(run, tmp_path, "the data", None)
    workdir = stages.run_directory(tmp_path, run.arm, 1)
    student = load_model(workdir, part="student")
    assert (found["num_test"], found["id"]) == (360, student.metadata["id"])
    assert found["accuracy"] == evaluate.evaluate_checkpoint(workdir, dataset="digits")["accuracy"]
    assert student.network.model_kwargs["norm"] == "group"
    trained_with = student.metadata["config"]
    assert trained_with["guide"] == "teacher" and trained_with["privacy_unit"] == "none"
    assert trained_with["dataset"] is None, "the process could see the data set"
    ancestors = student.metadata["ledger"]["ancestors"]
    assert [each["id"] for each in ancestors] == [load_model(teacher).metadata["id"]]
    assert stages.complete(run, tmp_path, "the data", None) == found


def test_the_process_gets_the_settings_in_a_config_file(teacher, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        path = command[command.index("--config") + 1]
        commands.append(config_file.read(path, [], {}).to_dict())
        return 1, ["enough"], False

    monkeypatch.setattr(data_free, "_run", run)
    with pytest.raises(RuntimeError):
        data_free.train_and_evaluate(settings(teacher), tmp_path / "run", parallel="mesh")
    (command, given) = commands
    assert command[1:3] == ["-m", "dpdfd.train"]
    assert command[-4:] == ["--workdir", str(tmp_path / "run"), "--parallel", "mesh"]
    assert given.pop("model_kwargs") == {**TINY, "norm": "group"}
    expected = settings(teacher, guide="teacher", privacy_unit="none", prior={})
    del expected["dataset"], expected["model_kwargs"]
    assert given == expected


def test_wrong_settings_come_back_as_the_process_named_them(teacher, tmp_path, child, capsys):
    line = "generator.every: got [1, 2]; must be an integer of at least 0; or else"
    child(dies(2, "a warning", f"error: {line}", "a last word of JAX"))
    with pytest.raises(InputError) as error:
        data_free.train_and_evaluate(settings(teacher), tmp_path)
    assert str(error.value) == line
    assert (error.value.field, error.value.given) == ("generator.every", [1, 2])
    assert "a warning" in capsys.readouterr().err, "the user is not shown what it says"


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (3, "error: diverged at step 7: NaN or infinity", loop.DivergedError),
        (4, "error: stopped by a signal at step 7; saved in x", loop.StoppedError),
        (1, "OSError: no such luck", RuntimeError),
        (2, "python: can't open file", RuntimeError),
    ],
)
def test_an_exit_code_becomes_the_projects_exception(
    teacher, tmp_path, child, code, line, expected
):
    child(dies(code, "", line, ""))
    with pytest.raises(RuntimeError, match=line.removeprefix("error: ").split(";")[0]) as error:
        data_free.train_and_evaluate(settings(teacher), tmp_path)
    assert type(error.value) is expected


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_passed_on_and_the_process_may_save(teacher, tmp_path, child, name):
    child(
        f"""
import os, signal, sys, time
def save(*_):
    time.sleep(0.2)
    open({str(tmp_path / "saved")!r}, "w").close()
    print("error: stopped by a signal at step 7; saved", file=sys.stderr)
    sys.exit(4)
signal.signal(signal.{name}, save)
os.kill(os.getppid(), signal.{name})
time.sleep(20)
"""
    )
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(loop.StoppedError, match="^stopped by a signal at step 7; saved$"):
        data_free.train_and_evaluate(settings(teacher), tmp_path)
    assert (tmp_path / "saved").exists(), "did not wait for it"
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_signal_that_kills_the_process_at_once_stops_us_too(teacher, tmp_path, child):
    child("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(20)")
    with pytest.raises(loop.StoppedError, match="stopped by a signal"):
        data_free.train_and_evaluate(settings(teacher), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("guide", "student"), ("dataset", None), ("teacher", None)]
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(teacher, tmp_path, field, value):
    with pytest.raises(InputError) as error:
        data_free.train_and_evaluate(settings(teacher) | {field: value}, tmp_path / "refused")
    assert error.value.field == field
    assert not (tmp_path / "refused").exists()


def test_right_settings_pass_the_binarys_own_check(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    given = settings("")
    del given["teacher"]
    data_free.check(given)
    for wrong, field in (
        ({"generator": {"widht": 4}}, "generator.widht"),
        ({"privacy_unit": "query"}, "privacy_unit"),
    ):
        with pytest.raises(InputError) as error:
            data_free.check({**given, **wrong})
        assert error.value.field == f"data_free.{field}"
