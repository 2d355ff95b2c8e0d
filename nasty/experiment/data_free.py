"""Distils a student from a teacher's checkpoint alone: no image of any data set is seen.

A generator is trained to make images that the teacher is sure of, and the student learns the
teacher's answers to them, as Chen et al., "Data-Free Learning of Student Networks" (DAFL, ICCV
2019). The training is the binary `dpdfd.train`, guided by the teacher and without privacy, in a
process of its own; a checkpoint is all that passes.
"""

import ast
import contextlib
import os
import pprint
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from distill_core import checkpoint, data, evaluate
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.runtime import cli
from distill_core.training import fits, loop, run_state

BINARY = "dpdfd.train"
# What makes it DAFL: the generator sees the teacher itself, and nothing is noised or drawn by code.
FIXED = {"guide": "teacher", "privacy_unit": "none", "prior": {}}
# Only to measure: the process that trains is not even told of the data set.
_MEASURING = ("dataset", "data_dir")
_KEPT_LINES = 50

_CONFIG = '''"""Written by nasty.experiment.data_free, anew for each run: for {binary}."""

from ml_collections import config_dict


def get_config():
    return config_dict.ConfigDict({settings}).lock()
'''


@trust.config_allows
def train_and_evaluate(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Distils without data to the end or resumes, then measures the student on the test split.

    SIGINT and SIGTERM are passed on, and the process is waited for: it saves before it ends. On
    GPUs it takes memory as it needs it, since this process may hold some; a TPU serves one process
    only, so that nothing may have run on it here before.

    Args:
      settings: `teacher`, `dataset` (to measure only), `data_dir`, `model`, `model_kwargs` and what
        else `dpdfd.train` takes, which checks it; its student has no batch normalisation.
      workdir: the run's own directory; the checkpoint there has the parts `student` and
        `generator`.
      parallel: as the binary's flag.

    Returns:
      {"accuracy", "num_test", "id"}, JSON-able, of the last step.

    Raises:
      InputError: wrong settings, in the words of the process that refused them.
      DivergedError, StoppedError: as of `loop.run`.
      RuntimeError: the process failed otherwise; its last line.
    """
    chosen = _fixed(settings)
    name, folder = (chosen.pop(field, None) for field in _MEASURING)
    if not name:
        raise InputError("dataset", name, "is required: the student is measured on its test split")
    if not isinstance(chosen.get("teacher"), str):
        raise InputError("teacher", chosen.get("teacher"), "must be a workdir or a checkpoint")
    # Before the training, not after it.
    dataset = data.load_dataset(name, data_dir=folder)
    with run_state.about("teacher", chosen["teacher"]):
        teacher = checkpoint.load_model(chosen["teacher"])
    fits.data_for("teacher", chosen["teacher"], teacher, dataset)

    workdir = epath.Path(workdir)
    with _config_file(workdir, chosen) as config:
        command = _command(config, workdir, parallel)
        code, lines, came = _run(command)
    _raise_for(code, lines, came)
    found = evaluate.evaluate_checkpoint(workdir, part="student", dataset=name, data_dir=folder)
    return {
        "accuracy": found["accuracy"],
        "num_test": found["examples"],
        "id": checkpoint.find(workdir)[1]["id"],
    }


def check(settings: Mapping[str, Any]):
    """Asks the binary itself whether it would take these settings, for any teacher.

    Raises:
      InputError: on `data_free.FIELD`, in the words of the binary.
    """
    try:
        chosen = {**_fixed(settings), "teacher": os.devnull}
        for name in _MEASURING:
            chosen.pop(name, None)
        with tempfile.TemporaryDirectory() as folder:
            place = epath.Path(folder)
            with _config_file(place, chosen) as config:
                code, lines, came = _run(_command(config, place / "run", None), show=False)
        _raise_for(code, lines, came)
    except InputError as error:
        if error.field != "teacher":  # which it only looks at when all else is right
            field = f"data_free.{error.field}"
            raise InputError(field, error.given, error.allowed) from None


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with what makes a run of the binary one without data."""
    chosen = _plain(settings)
    for name, value in FIXED.items():
        if chosen.setdefault(name, value) != value:
            raise InputError(name, chosen[name], f"is {value!r} without data; leave it out")
    return chosen


def _command(config: Path, workdir: epath.Path, parallel: str | None) -> list[str]:
    flags = ["--config", str(config), "--workdir", str(workdir)]
    if parallel is not None:
        flags += ["--parallel", parallel]
    flags += [f"--trust={name}" for name in trust.trusted()]
    return [sys.executable, "-m", BINARY, *flags]


@contextlib.contextmanager
def _config_file(workdir: epath.Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A config file with the settings; in the workdir if that is local, for runs by hand."""
    text = _CONFIG.format(binary=BINARY, settings=pprint.pformat(dict(settings), width=88))
    with contextlib.ExitStack() as stack:
        if "://" in str(workdir):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / "data_free_config.py"
        path.write_text(text)
        yield path


def _run(command: Sequence[str], *, show: bool = True) -> tuple[int, list[str], bool]:
    """Runs a process to its end, its stderr shown as it comes.

    Returns its exit code, the last lines of its stderr, and whether a signal came for it.
    """
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        # It finds the modules that this process finds, a user's networks among them.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        process_group=0,  # a terminal's Ctrl-C comes to it through us, once
    )
    lines: list[str] = []
    with process, _passing_signals_to(process) as came:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if show:
                    print(line, end="", file=sys.stderr, flush=True)
                lines = [*lines, line.rstrip()][-_KEPT_LINES:]
        except BaseException:  # nobody to show it to: it shall not live on
            process.terminate()
            raise
        return process.wait(), [line for line in lines if line], bool(came)


@contextlib.contextmanager
def _passing_signals_to(process: subprocess.Popen) -> Iterator[list[int]]:
    """Yields the signals that came, each of which the process got, too."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handler(signum, _):
        came.append(signum)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)

    old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for s, previous in old.items():
            signal.signal(s, previous or signal.SIG_DFL)


def _raise_for(code: int, lines: Sequence[str], came: bool):
    """The exception that the process would have raised here; none where it is done."""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    if came:
        # Also where it ended before it could save, or was done just then: nothing shall follow.
        raise loop.StoppedError(
            last if code == cli.EXIT_STOPPED else f"stopped by a signal: {last}"
        )
    if code == 0:
        return
    if code == cli.EXIT_INPUT:
        refused = re.fullmatch(r"([\w.]+): got (.*?); (.*)", last)
        if refused:
            field, given, allowed = refused.groups()
            raise InputError(field, _value(given), allowed)
    if code == cli.EXIT_DIVERGED:
        raise loop.DivergedError(last)
    if code == cli.EXIT_STOPPED:
        raise loop.StoppedError(last)
    raise RuntimeError(f"python -m {BINARY} ended with exit code {code}: {last}")


def _value(text: str) -> Any:
    """The value that was printed so."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _plain(value: Any) -> Any:
    """Settings in Python's own types, which a config file can spell."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if hasattr(value, "items"):  # a ConfigDict is no Mapping
        return {str(key): _plain(item) for key, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value
