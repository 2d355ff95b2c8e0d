"""What a user gets wrong costs one line on stderr and exit code 2, and changes nothing on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_core import distill, evaluate, train
from distill_core.checkpoint import integrity
from distill_core.runtime import cli
from nasty import train as nasty_train
from nasty.experiment import comparison as experiment

ROOT = Path(__file__).parents[3]
CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    config = config_dict.ConfigDict()
    config.dataset = "npz:{folder}/data.npz"
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict(
        {{"widths": (4,), "hidden": 8, "norm": "none"}}
    )
    config.learning_rate = 0.05
    config.batch_size = 16
    config.num_steps = 4
    return config.lock()
"""
EXPERIMENT = """
from ml_collections import config_dict

def get_config(arg=""):
    config = config_dict.ConfigDict({{"seeds": (1,), "temperature": 4.0, "omega": 0.01}})
    config.dataset = "npz:{folder}/data.npz"
    for prefix in ("", "student_"):
        config[prefix + "model"] = "cnn"
        config[prefix + "learning_rate"] = 0.05
        config[prefix + "batch_size"] = 16
        config[prefix + "num_steps"] = 4
    return config.lock()
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
    return cli.exit_code(lambda argv: cli.run_training(run, binary.FIELDS, argv), arguments)


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


TEACHER = ["--config.teacher={place}/plain"]
NASTY = ["--config.adversary={place}/plain", "--config.temperature=4", "--config.omega=0.01"]


@pytest.mark.parametrize(
    ("binary", "arguments", "message"),
    [
        # names and types
        (train, ["--config.omgea=1"], "omgea: got '1'; no such field; known: "),
        (nasty_train, ["--config.omgea=1"], "omgea: got '1'; no such field; did you mean omega?"),
        (train, ["--workdri=x"], "workdri: got 'x'; no such flag; did you mean workdir?"),
        (train, ["--batch_size", "3"], "batch_size: got '3'; no such flag; did you mean config.b"),
        (train, ["smoke"], "arguments: got 'smoke'; flags only"),
        (nasty_train, [*NASTY, "--config.omega=abc"], "omega: got 'abc'; must be a number at lea"),
        (train, ["--config.num_steps=1.5"], "num_steps: got 1.5; must be an integer of at least"),
        (train, ["--num_processes=two"], "num_processes: got 'two'; "),
        (train, ["--process_id=1"], "process_id: got [None, None, 1]; give all three or none"),
        (train, ["--parallel=pmpa"], "parallel: got 'pmpa'; must be one of pmap, shard_map, mesh"),
        # ranges
        (nasty_train, [*NASTY, "--config.omega=-1"], "omega: got -1.0; must be a number at lea"),
        (nasty_train, [*NASTY, "--config.temperature=0"], "temperature: got 0; must be a number a"),
        (distill, [*TEACHER, "--config.alpha=1.1"], "alpha: got 1.1; must be a number in [0, 1]"),
        (train, ["--config.batch_size=12"], "batch_size: got 12; must be divisible by the 8 dev"),
        (train, ["--config.num_validation=48"], "num_validation: got 48; must be at least 0 and"),
        (train, ["--config.schedule=step"], "drop_steps: got (); schedule 'step' needs at least"),
        (train, ["--config.drop_steps=80"], "drop_steps: got 80; must be a tuple"),
        (experiment, ["--config.student_drop_steps=3,2"], "student_drop_steps: got (3, 2); must i"),
        # networks
        (train, ["--config.model=cnnn"], "model: got 'cnnn'; must be one of cnn, "),
        (train, ["--config.model=nosuch.net:make"], "nosuch.net cannot be imported: ModuleNotFou"),
        (train, ["--config.model=failing:make"], "failing cannot be imported: OSError: no licence"),
        (train, ["--config.model=string:Net"], "model: got 'string:Net'; string has no 'Net'"),
        (train, ["--config.model_kwargs.hiden=3"], "model_kwargs: got {'hidden': 8, 'hiden': 3,"),
        (train, ["--config.model_kwargs.num_classes=3"], "model_kwargs.num_classes: got 3; comes"),
        (train, ["--config.model_kwargs.name=net"], "model_kwargs.name: got 'net'; "),
        (train, ["--config.model_kwargs.hidden=many"], "cnn fails on images [8, 8, 1]: TypeError"),
        (train, ["--config.model_kwargs.norm=btach"], "norm: got 'btach'; must be"),
        (train, ["--config.model_kwargs.widths=(4,4,4,4)"], "of at least 16×16 pixels"),
        # data
        (train, ["--config.dataset=mnist"], "dataset: got 'mnist'; must be one of digits, tfds:N"),
        (
            train,
            ["--config.dataset=tfds:mnist", "--config.data_dir={place}/nothing"],
            "data_dir: got '{place}/nothing'; has no prepared 'mnist'; to prepare it, run: pip ins",
        ),
        (train, ["--config.dataset=npz:{place}/dat.npz"], "must be an existing .npz file"),
        (train, ["--config.dataset=npz:{place}/keys.npz"], "needs the keys x_train, y_train, "),
        (train, ["--config.dataset=npz:{place}/labels.npz"], "labels must lie in 0 to 1, and lie"),
        (train, ["--config.dataset=npz:{place}/empty.npz"], "the train split must not be empty"),
        (train, ["--config.dataset=folder:{place}"], "dataset: got 'folder:{place}'; must hold "),
        # checkpoints
        (distill, [], "teacher: got None; is required"),
        (distill, ["--config.teacher={place}/nowhere"], "teacher: got '{place}/nowhere'; does not"),
        (distill, ["--config.teacher={place}/nothing"], "nothing'; holds no checkpoint; give a wo"),
        (distill, ["--config.teacher={place}/future"], "future'; has format version 99; this pro"),
        (
            distill,
            [*TEACHER, "--config.dataset=npz:{place}/four.npz"],
            "teacher: got '{place}/plain'; has num_classes 3 where npz:{place}/four.npz needs 4 "
            "(leaf params/Dense_1/bias has shape (3,), not (4,))",
        ),
        (
            nasty_train,
            [*NASTY, "--config.dataset=npz:{place}/large.npz"],
            "adversary: got '{place}/plain'; has input_shape [8, 8, 1] where npz:{place}/large.npz"
            " needs [10, 10, 1] (leaf params/Dense_0/kernel has shape (64, 8), not (100, 8))",
        ),
        (nasty_train, [*NASTY, "--config.adversary=nowhere"], "adversary: got 'nowhere'; does not"),
        (train, ["--config.init_from=nowhere"], "init_from: got 'nowhere'; does not exist; give a"),
        (train, ["--config.init_from={place}/future"], "future'; has format version 99"),
        (
            train,
            ["--config.init_from={place}/plain", "--config.model_kwargs.hidden=9"],
            "init_from: got '{place}/plain'; leaf params/Dense_0/",
        ),
        (
            train,
            ["--config.init_from={place}/plain", "--config.dataset=npz:{place}/colours.npz"],
            "init_from: got '{place}/plain'; takes images of 1 channels; those of npz:{place}/col",
        ),
        (
            train,
            ["--config.init_from={place}/plain", "--config.model_kwargs.norm=batch"],
            "init_from: got '{place}/plain'; has no leaf batch_stats/BatchNorm_0/mean",
        ),
        # stored logits
        (distill, ["--config.teacher=npz:nowhere"], "teacher: got 'npz:nowhere'; holds no `log"),
        (distill, ["--config.teacher=npz:{place}/data.npz"], "write it with distill_core.evaluate"),
        (distill, ["--config.teacher=npz:{place}/notes.txt"], "notes.txt'; holds no `logits`"),
        (distill, ["--config.teacher=npz:{place}/logits.npz"], "`logits` are (21, 3); the trainin"),
        (distill, ["--config.teacher=npz:{place}/others.npz"], "its `labels` are not those of npz"),
        (
            distill,
            ["--config.teacher=npz:{place}/nan.npz"],
            "row 0 of its `logits` holds NaN or +infinity",
        ),
    ],
)
def test_wrong_input_costs_one_line_and_leaves_no_workdir(
    place, tmp_path, monkeypatch, capsys, binary, arguments, message
):
    monkeypatch.syspath_prepend(place)
    name = "experiment.py" if binary is experiment else "config.py"
    given = [argument.format(place=place) for argument in arguments]
    capsys.readouterr()
    code = run_in_process(
        binary, "--config", f"{place}/{name}", "--workdir", str(tmp_path / "run"), *given
    )
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.replace("{place}", str(place)) in err
    assert (code, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("confg.py", "no such file; did you mean config.py?"),
        ("notes.txt", "must be a Python file that defines get_config(arg)"),
        ("failing.py", "fails at line 1 with OSError: no licence"),
        ("raises.py", "fails at line 2 with KeyError: 'smok'"),
        ("raises.py:smoke", "its get_config() takes no argument, not 'smoke'"),
    ],
)
def test_a_file_that_is_no_config_costs_one_line(place, tmp_path, capsys, config, message):
    path = f"{place}/{config}"
    assert run_in_process(train, f"--config={path}", f"--workdir={tmp_path}/run") == 2
    assert capsys.readouterr().err.startswith(f"error: config: got '{path}'; ")
    assert run_in_process(train, f"--config={path}", f"--workdir={tmp_path}/run") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_config_and_workdir_are_asked_for(place, capsys):
    config = f"--config={place}/config.py"
    for arguments, message in (
        (["--workdir=w"], "config: got None; --config is required"),
        ([config], "workdir: got None; --workdir is required"),
        ([config, "--workdir="], "workdir: got ''; --workdir is required"),
        ([config, "--workdir"], "workdir: got None; expected one argument"),
        ([config, f"--workdir={place}/notes.txt"], f"a directory; {place}/notes.txt is a file"),
        ([config, f"--workdir={place}/notes.txt/run"], f"a directory; {place}/notes.txt is a file"),
    ):
        assert run_in_process(train, *arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint: got None; --checkpoint is required"),
        (["--checkpoint=nowhere"], "checkpoint: got 'nowhere'; does not exist"),
        (["--checkpoint={place}/nothing"], "nothing'; holds no checkpoint"),
        (["--checkpoint={place}/future"], "has format version 99; this program reads"),
        (["--checkpoint={place}/plain", "--split=tset"], "split: got 'tset'; must be train or te"),
        (["--checkpoint={place}/plain", "--part=generator"], "part: got 'generator'; "),
        (
            ["--checkpoint={place}/plain", "--dataset=npz:{place}/four.npz"],
            "checkpoint: got '{place}/plain'; has num_classes 3 where",
        ),
        (
            ["--checkpoint={place}/plain", "--logits_out={place}/nowhere/logits.npz"],
            "logits_out: got '{place}/nowhere/logits.npz'; must be a file in an existing direct",
        ),
        (["--checkpoint={place}/plain", "--splt=test"], "splt: got 'test'; no such flag; did you"),
    ],
)
def test_wrong_input_of_evaluate_costs_one_line(place, capsys, arguments, message):
    capsys.readouterr()
    assert run_in_process(evaluate, *(a.format(place=place) for a in arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(place=place) in err


def test_a_resume_under_other_settings_is_refused_and_changes_nothing(place, tmp_path, capsys):
    shutil.copytree(place / "plain", tmp_path / "run")
    before = contents(tmp_path)
    same = [f"--config={place}/config.py", f"--workdir={tmp_path}/run"]
    for binary, change, message in (
        (train, ["--config.learning_rate=0.2"], "learning_rate: got 0.2; this run was started"),
        (train, ["--config.model_kwargs.hidden=9"], "model_kwargs: got {'hidden': 9, "),
        (distill, [f"--config.teacher={place}/plain"], f"teacher: got '{place}/plain'; this run w"),
    ):
        assert run_in_process(binary, *same, *change) == 2
        assert message in capsys.readouterr().err
        assert contents(tmp_path) == before
    assert run_in_process(train, *same, "--config.log_every=1") == 0
    assert "finished at step 4, nothing to do" in capsys.readouterr().err
    assert run_in_process(train, *same, "--config.num_steps=6") == 0
    assert "resumes from step 4" in capsys.readouterr().err


def test_divergence_is_exit_code_3(place, tmp_path, capsys):
    code = run_in_process(
        train,
        f"--config={place}/config.py",
        f"--workdir={tmp_path}/run",
        "--config.learning_rate=1e30",
    )
    assert code == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: diverged at step ")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_flags_and_fields(capsys, flag):
    with pytest.raises(SystemExit) as exit:
        run_in_process(nasty_train, "--workdir=x", flag)
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "python -m nasty.train --config" in out
    assert "--workdir DIR" in out
    assert "learning_rate: must be a number above 0; required" in out
    assert "omega: must be a number at least 0; default None" in out
    assert "optimizer: must be one of sgd, adam; default 'sgd'" in out


@pytest.fixture(scope="module")
def processes(place, tmp_path_factory):
    """Real processes, all started at once; `finish(name)` gives (code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("processes")
    one_device = os.environ | {"XLA_FLAGS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    config, workdir = f"--config={place}/config.py", f"--workdir={folder}/"
    commands = {
        "help": ["distill_core.evaluate", "--help"],
        "evaluate": ["distill_core.evaluate", f"--checkpoint={place}/plain"],
        "omgea": ["nasty.train", config, f"{workdir}omgea", "--config.omgea=1"],
        "teacher": ["distill_core.distill", config, f"{workdir}t", f"--config.teacher={place}"],
        "seeds": ["nasty.experiment", f"--config={place}/experiment.py", f"{workdir}e"]
        + ["--config.seeds=1"],
        "huge": ["distill_core.train", config, f"{workdir}huge", "--config.learning_rate=1e30"],
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=one_device,
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


def test_a_process_that_helps_or_measures_exits_with_0(processes):
    code, out, err = processes("help")
    assert (code, err) == (0, "")
    assert "--logits_out FILE.npz" in out
    code, out, err = processes("evaluate")
    assert (code, err) == (0, "")
    assert out.startswith("test accuracy ")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("omgea", "error: omgea: got '1'; no such field; did you mean omega?\n"),
        ("teacher", "error: teacher: got '{}'; holds no checkpoint; give a workdir or one of its "),
        ("seeds", "error: seeds: got 1; must be a tuple"),
    ],
)
def test_a_process_with_wrong_input_writes_one_line_and_exits_with_2(place, processes, name, line):
    code, out, err = processes(name)
    assert (code, out) == (2, "")
    assert err.startswith(line.format(place))
    assert err.count("\n") == 1


def test_a_process_that_diverges_exits_with_3(processes):
    code, _, err = processes("huge")
    assert code == 3
    assert "error: diverged at step" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_that_lacks_a_sign_still_shows_the_help(encoding):
    done = subprocess.run(
        [sys.executable, "-m", "distill_core.distill", "--help"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "--config FILE.py[:ARG]" in text
    assert "?" in text, "the help has no sign beyond the encoding"
