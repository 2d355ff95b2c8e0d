"""What a user gets wrong costs one line on stderr and exit code 2, and changes nothing on disk."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_core import config, distill, evaluate, train
from distill_core.checkpoint import integrity
from distill_core.runtime import cli
from nasty import train as nasty_train
from nasty.experiment import comparison as experiment

ROOT = Path(__file__).parents[3]
CONFIG = """
NETWORK = {{"model": "cnn", "learning_rate": 0.05, "batch_size": 16, "num_steps": 4}}

def get_config(arg=""):
    kwargs = {{"widths": (4,), "hidden": 8, "norm": "none"}}
    return {{"dataset": "npz:{folder}/data.npz", "model_kwargs": kwargs, **NETWORK}}
"""
EXPERIMENT = """
NETWORK = {{"model": "cnn", "learning_rate": 0.05, "batch_size": 16, "num_steps": 4}}

def get_config(arg=""):
    given = {{"seeds": (1,), "temperature": 4.0, "omega": 0.01, "student": NETWORK}}
    return {{"dataset": "npz:{folder}/data.npz", **NETWORK, **given}}
"""


def write_data(path, *, labels=3, size=8, channels=1, train=48, **more):
    rng = np.random.default_rng(0)
    arrays = dict(more)
    for split, count in (("train", train), ("test", 21)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % labels
    np.savez(path, **arrays)


def run_in_process(binary, *arguments):
    if binary is evaluate:
        return cli.exit_code(evaluate.main, arguments)
    run = binary.run if binary is experiment else binary.train_and_evaluate
    return cli.exit_code(lambda argv: cli.run_training(run, binary.Settings, argv), arguments)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, configs, a finished run `plain`, and things that go wrong."""
    folder = tmp_path_factory.mktemp("place")
    write_data(folder / "data.npz")
    write_data(folder / "four.npz", labels=4)
    write_data(folder / "large.npz", size=10)
    write_data(folder / "labels.npz", classes=np.array(["a", "b"]))
    write_data(folder / "colours.npz", channels=3)
    write_data(folder / "empty.npz", train=0)
    np.savez(folder / "keys.npz", x=np.zeros(3))
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    (folder / "experiment.py").write_text(EXPERIMENT.format(folder=folder))
    (folder / "raises.py").write_text("def get_config():\n    raise KeyError('smok')")
    (folder / "notes.txt").write_text("omega = 1")
    (folder / "nothing").mkdir()
    (folder / "failing.py").write_text("raise OSError('no licence')")
    code = run_in_process(
        train, f"--config={folder}/config.py", f"--workdir={folder}/plain", "--config.save_every=2"
    )
    assert code == 0
    shutil.copytree(folder / "plain", folder / "future")
    integrity.amend(folder / "future" / "checkpoints" / "4", {"format_version": 99})
    shutil.rmtree(folder / "future" / "checkpoints" / "2")
    logits = np.zeros((48, 3), np.float32)
    np.savez(folder / "logits.npz", logits=logits[:21])
    np.savez(folder / "others.npz", logits=logits, labels=np.zeros(48, int))
    np.savez(folder / "nan.npz", logits=np.full((48, 3), np.nan))
    return folder


TEACHER = "--config.teacher={place}/plain"
NASTY = "--config.adversary={place}/plain --config.temperature=4 --config.omega=0.01"
INIT = "--config.init_from={place}/plain"
CHECKPOINT = "--checkpoint={place}/plain"
WRONG = {
    train: [
        # names and types
        ("--config.omgea=1", "omgea"),
        ("--workdri=x", "workdri: .*did you mean workdir"),
        ("--batch_size 3", "batch_size: .*did you mean config.batch_size"),
        ("smoke", "arguments"),
        ("--config.num_steps=1.5", "num_steps"),
        ("--num_processes=two", "num_processes"),
        ("--process_id=1", "coordinator_address, num_processes, process_id"),
        ("--parallel=pmpa", "parallel"),
        ("--config=", "config"),
        ("--config={place}/confg.py", "config: .*did you mean config.py"),
        ("--config={place}/notes.txt", "config"),
        ("--config={place}/failing.py", "config: .*line 1 with OSError: no licence"),
        ("--config={place}/raises.py", "config: .*line 2 with KeyError: 'smok'"),
        ("--config={place}/raises.py:smoke", "config: .*'smoke'"),
        ("--workdir=", "workdir"),
        ("--workdir", "workdir"),
        ("--workdir={place}/notes.txt", "workdir"),
        ("--workdir={place}/notes.txt/run", "workdir: .*{place}/notes.txt is a file"),
        # ranges
        ("--config.batch_size=12", "batch_size: .*8 devices"),
        ("--config.num_validation=48", "num_validation"),
        ("--config.schedule=step", "drop_steps"),
        ("--config.drop_steps=80", "drop_steps"),
        # networks
        ("--config.model=cnnn", "model"),
        ("--config.model=nosuch.net:make", "model: .*ModuleNotFoundError"),
        ("--config.model=failing:make", "model: .*OSError: no licence"),
        ("--config.model=string:Net", "model"),
        ("--config.model_kwargs.hiden=3", "model_kwargs"),
        ("--config.model_kwargs.num_classes=3", "model_kwargs.num_classes"),
        ("--config.model_kwargs.name=net", "model_kwargs.name"),
        ("--config.model_kwargs.hidden=many", "model.*: .*TypeError"),
        ("--config.model_kwargs.norm=btach", "model.*: .*norm"),
        ("--config.model_kwargs.widths=(4,4,4,4)", "model.*: .*16×16"),
        # data
        ("--config.dataset=mnist", "dataset"),
        ("--config.dataset=tfds:mnist --config.data_dir={place}/nothing", "data_dir: .*pip"),
        ("--config.dataset=npz:{place}/dat.npz", "dataset"),
        ("--config.dataset=npz:{place}/keys.npz", "dataset"),
        ("--config.dataset=npz:{place}/labels.npz", "dataset"),
        ("--config.dataset=npz:{place}/empty.npz", "dataset"),
        ("--config.dataset=folder:{place}", "dataset"),
        # checkpoints
        ("--config.init_from=nowhere", "init_from"),
        ("--config.init_from={place}/future", "init_from: .*format version 99"),
        (f"{INIT} --config.model_kwargs.hidden=9", "init_from: .*leaf params/Dense_0/"),
        (f"{INIT} --config.dataset=npz:{{place}}/colours.npz", "init_from: .*1 channels"),
        (f"{INIT} --config.model_kwargs.norm=batch", "init_from: .*BatchNorm_0/mean"),
    ],
    distill: [
        ("", "teacher"),
        (f"{TEACHER} --config.alpha=1.1", "alpha"),
        ("--config.teacher={place}/nowhere", "teacher"),
        ("--config.teacher={place}/nothing", "teacher"),
        ("--config.teacher={place}/future", "teacher: .*format version 99"),
        (f"{TEACHER} --config.dataset=npz:{{place}}/four.npz", "teacher: .*leaf params/"),
        # stored logits
        ("--config.teacher=npz:nowhere", "teacher"),
        ("--config.teacher=npz:{place}/data.npz", "teacher"),
        ("--config.teacher=npz:{place}/notes.txt", "teacher"),
        ("--config.teacher=npz:{place}/logits.npz", r"teacher: .*\(21, 3\)"),
        ("--config.teacher=npz:{place}/others.npz", "teacher: .*labels"),
        ("--config.teacher=npz:{place}/nan.npz", "teacher: .*row 0"),
    ],
    nasty_train: [
        ("--config.omgea=1", "omgea: .*did you mean omega"),
        (f"{NASTY} --config.omega=abc", "omega"),
        (f"{NASTY} --config.omega=-1", "omega"),
        (f"{NASTY} --config.temperature=0", "temperature"),
        (f"{NASTY} --config.dataset=npz:{{place}}/large.npz", "adversary: .*leaf params/Dense_0/"),
        (f"{NASTY} --config.adversary=nowhere", "adversary"),
    ],
    experiment: [("--config.student.drop_steps=3,2", "student.drop_steps")],
    evaluate: [
        ("", "checkpoint"),
        ("--checkpoint=nowhere", "checkpoint"),
        ("--checkpoint={place}/nothing", "checkpoint"),
        ("--checkpoint={place}/future", "checkpoint: .*format version 99"),
        (f"{CHECKPOINT} --split=tset", "split"),
        (f"{CHECKPOINT} --part=generator", "part"),
        (f"{CHECKPOINT} --dataset=npz:{{place}}/four.npz", "checkpoint: .*num_classes"),
        (f"{CHECKPOINT} --logits_out={{place}}/nowhere/logits.npz", "logits_out"),
        (f"{CHECKPOINT} --splt=test", "splt: .*did you mean split"),
    ],
}


@pytest.mark.parametrize(
    ("binary", "arguments", "field"),
    [(binary, *case) for binary, cases in WRONG.items() for case in cases],
)
def test_wrong_input_costs_one_line_and_leaves_no_workdir(
    place, tmp_path, monkeypatch, capsys, binary, arguments, field
):
    monkeypatch.syspath_prepend(place)
    given = arguments.replace("{place}", str(place)).split()
    if binary is not evaluate:
        name = "experiment.py" if binary is experiment else "config.py"
        given = [f"--config={place}/{name}", f"--workdir={tmp_path}/run", *given]
    capsys.readouterr()
    code = run_in_process(binary, *given)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"error: {field}".replace("{place}", str(place)), err), err
    assert list(tmp_path.iterdir()) == []


def test_a_resume_under_other_settings_is_refused_and_changes_nothing(place, tmp_path, capsys):
    shutil.copytree(place / "plain", tmp_path / "run")
    before = contents(tmp_path)
    same = [f"--config={place}/config.py", f"--workdir={tmp_path}/run"]
    for binary, change, message in (
        (train, ["--config.learning_rate=0.2"], "learning_rate: got 0.2; this run was started"),
        (train, ["--config.model_kwargs.hidden=9"], "model_kwargs.hidden: got 9; this run was"),
        (distill, [f"--config.teacher={place}/plain"], "frozen_dtype: got 'float32'; this run w"),
    ):
        assert run_in_process(binary, *same, *change) == 2
        assert message in capsys.readouterr().err
        assert contents(tmp_path) == before
    assert run_in_process(train, *same, "--config.log_every=1") == 0
    assert "finished at step 4, nothing to do" in capsys.readouterr().err
    assert run_in_process(train, *same, "--config.num_steps=6") == 0
    assert "resumes from step 4" in capsys.readouterr().err


def test_help_lists_flags_and_fields(capsys):
    with pytest.raises(SystemExit) as exit:
        run_in_process(nasty_train, "--workdir=x", "--help")
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("--workdir", *config.fields(nasty_train.Settings)))


@pytest.fixture(scope="module")
def processes(place, tmp_path_factory):
    """Real processes, all started at once; `finish(name)` gives (code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("processes")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    one_device = os.environ | {"XLA_FLAGS": flags, "PYTHONDONTWRITEBYTECODE": "1"}
    config, workdir = f"--config={place}/config.py", f"--workdir={folder}/"
    commands = {
        "help": ["distill_core.distill", "--help"],
        "evaluate": ["distill_core.evaluate", f"--checkpoint={place}/plain"],
        "omgea": ["nasty.train", config, f"{workdir}omgea", "--config.omgea=1"],
        "huge": ["distill_core.train", config, f"{workdir}huge", "--config.learning_rate=1e30"],
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            # A console that lacks a sign still shows the help.
            env=one_device | ({"PYTHONIOENCODING": "ascii"} if name == "help" else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, command in commands.items()
    }

    def finish(name):
        out, err = started[name].communicate()
        return started[name].returncode, out, err

    yield finish
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("name", "exits_with", "said"),
    [
        ("help", 0, ("--config FILE.py", "?")),  # ? is no sign of the encoding
        ("evaluate", 0, ("test accuracy ",)),
        ("omgea", 2, ("error: omgea: ",)),
        ("huge", 3, ("error: diverged at step",)),
    ],
)
def test_a_process_exits_with_its_code_and_shows_no_traceback(processes, name, exits_with, said):
    code, out, err = processes(name)
    assert code == exits_with
    shown, silent = (err, out) if code else (out, err)
    assert all(words in shown for words in said)
    assert silent == "" and "Traceback" not in shown
    assert code != 2 or err.count("\n") == 1
