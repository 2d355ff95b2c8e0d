"""Runs of several processes, and of changing numbers of devices, against a run of one process."""

import fcntl
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint, train
from distill_core.data import columns
from swingdistill import train as swing_train

sys.path.insert(0, str(Path(__file__).parent))
import sharded_run

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "dataset": "digits",
    "num_validation": 100,
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8},
    "learning_rate": 0.01,
    "batch_size": 24,
    "crop_padding": 1,
    "log_every": 4,
    "eval_every": 8,
    "save_every": 1000,
    "num_steps": 9,
}
CONFIG = f"""from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict({SETTINGS!r}).lock()
"""
PATIENCE = 200  # seconds, for a machine with other things to do


class Processes:
    """The processes of one run, by default of `distill_core.train`, and what they say."""

    def __init__(
        self,
        folder: Path,
        workdir: Path,
        *,
        program=("-m", "distill_core.train"),
        count=2,
        devices=2,
        options=(),
        one=(),
        config=CONFIG,
    ):
        """`options` are for all processes, `one` only for the last; `config` is a file's text."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.py").write_text(config)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        self.running, self._err = [], []
        for index in range(count):
            command = [sys.executable, *program, f"--workdir={workdir}"]
            command += [f"--config={folder / 'config.py'}", *options]
            if count > 1:
                command += [f"--coordinator_address=127.0.0.1:{port}"]
                command += [f"--num_processes={count}", f"--process_id={index}"]
            if index == count - 1:
                command += one
            out, err = folder / f"{index}.out", folder / f"{index}.err"
            self._err.append(err)
            with out.open("w") as stdout, err.open("w") as stderr:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
                    stdout=stdout,
                    stderr=stderr,
                )
            self.running.append(process)
        self._out = [path.with_suffix(".out") for path in self._err]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def wait_for(self, happened, what: str):
        """Until `happened()`; fails if a process ends before."""
        end = time.monotonic() + PATIENCE
        while not happened():
            codes = [process.poll() for process in self.running]
            if time.monotonic() > end or any(code is not None for code in codes):
                pytest.fail(f"no {what}; exit codes {codes}; they said {self.said()}")
            time.sleep(0.05)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit codes of all."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0, end - time.monotonic())) for p in self.running]
        except subprocess.TimeoutExpired:
            codes = [process.poll() for process in self.running]
            pytest.fail(f"not all ended in {seconds} s: {codes}; they said {self.said()}")

    def said(self) -> list[str]:
        """Everything on stderr, of each."""
        return [path.read_text() for path in self._err]

    def printed(self) -> list[str]:
        """stdout of each, without what JAX's transport says by itself."""
        texts = (path.read_text() for path in self._out)
        # Its threads may break into each other's lines.
        gloo = re.compile(r"\[Gloo\]|connected peer ranks")
        return ["\n".join(x for x in t.splitlines() if not gloo.search(x)) for t in texts]


def straight(folder: Path, num_steps: int):
    """The newest checkpoint of an uninterrupted run of this process on its eight devices."""
    train.train_and_evaluate({**SETTINGS, "num_steps": num_steps}, folder)
    return newest(folder)


def newest(workdir: Path):
    """(step, parameters and model state) as any one process loads them."""
    loaded = checkpoint.load_model(workdir)
    return loaded.metadata["step"], loaded.variables


def assert_close(found, expected, rtol=1e-5):
    """Each leaf, relative to its largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, want in jax.tree_util.tree_leaves_with_path(expected):
        got = dict(jax.tree_util.tree_leaves_with_path(found))[path]
        atol = rtol * np.abs(want).max()
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def rows(workdir: Path):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """One run of two processes: ended by a signal to one of them, then killed, then finished; by
    another way of spreading a step each time."""
    folder = tmp_path_factory.mktemp("two")
    work, seen = folder / "work", {"work": folder / "work"}
    endless = "--config.num_steps=1000000"

    with Processes(folder / "first", work, options=[endless]) as run:
        run.wait_for((work / "metrics.jsonl").exists, "metrics")
        run.running[1].send_signal(signal.SIGTERM)
        seen["stop_codes"] = run.wait()
        seen["stop_said"], seen["stopped_at"] = run.said(), checkpoint.steps(work)[-1]

    options = [endless, "--config.save_every=3", "--parallel=shard_map"]
    with Processes(folder / "second", work, options=options) as run:
        run.wait_for(lambda: checkpoint.steps(work)[-1:] > [seen["stopped_at"] + 3], "checkpoint")
        for process in run.running:
            process.kill()
        run.wait()
        seen["kill_said"] = run.said()
    # What a kill leaves of a save counts for nothing.
    seen["killed_at"] = checkpoint.steps(work)[-1]

    seen["num_steps"] = seen["killed_at"] + 3
    options = [f"--config.num_steps={seen['num_steps']}", "--parallel=mesh"]
    with Processes(folder / "third", work, options=options) as run:
        seen["end_codes"], seen["end_said"], seen["end_printed"] = (
            run.wait(),
            run.said(),
            run.printed(),
        )
    return seen


def test_a_signal_to_one_process_stops_both_after_the_same_step(history):
    assert history["stop_codes"] == [4, 4]
    for said in history["stop_said"]:
        (step,) = re.findall(r"^error: stopped by a signal at step (\d+); saved in ", said, re.M)
        assert int(step) == history["stopped_at"]


def test_both_resume_from_the_newest_checkpoint(history):
    assert f"; resumes from step {history['stopped_at']}\n" in history["kill_said"][0]
    assert f"; resumes from step {history['killed_at']}\n" in history["end_said"][0]
    assert history["end_codes"] == [0, 0]


def test_only_the_first_process_speaks(history):
    assert "4 cpu devices, 2 processes" in history["end_said"][0]
    assert "test accuracy" in history["end_printed"][0]
    assert history["kill_said"][1] == history["end_said"][1] == history["end_printed"][1] == ""


def test_two_processes_end_where_one_does(history, tmp_path):
    """Stopped, killed and resumed on 2×2 devices, and straight on 1×8."""
    step, found = newest(history["work"])
    assert (step, found) != (0, {})
    expected_step, expected = straight(tmp_path / "one", history["num_steps"])
    assert step == expected_step == history["num_steps"]
    assert_close(found, expected)
    lines, expected_lines = rows(history["work"]), rows(tmp_path / "one")
    for line, expected_line in zip(lines, expected_lines, strict=True):
        assert line.pop("split") == expected_line.pop("split")
        assert line == pytest.approx(expected_line, rel=1e-4, abs=1e-5)


def test_a_run_goes_on_with_fewer_devices(tmp_path):
    """Three steps on each of 8, 2 and 1 devices, against nine on 8."""
    work = tmp_path / "work"
    train.train_and_evaluate({**SETTINGS, "num_steps": 3}, work)
    for devices, num_steps in ((2, 6), (1, 9)):
        options = [f"--config.num_steps={num_steps}"]
        folder = tmp_path / str(devices)
        with Processes(folder, work, count=1, devices=devices, options=options) as run:
            assert run.wait() == [0]
            assert f"{devices} cpu device" in run.said()[0]
            assert f"resumes from step {num_steps - 3}" in run.said()[0]
    step, found = newest(work)
    assert step == 9
    assert_close(found, straight(tmp_path / "straight", 9)[1])


def test_wrong_input_of_one_process_ends_both(tmp_path):
    """The other would wait for it, and JAX for minutes."""
    with Processes(tmp_path, tmp_path / "work", one=["--config.batch_size=26"]) as run:
        assert run.wait() == [2, 2]
        assert run.said() == [
            "error: processes: got [1]; stopped before the run began; see their output\n",
            "error: batch_size: got 26; must be divisible by the 4 devices\n",
        ]
        assert not (tmp_path / "work" / "metrics.jsonl").exists()


def test_processes_with_other_settings_do_not_train_together(tmp_path):
    with Processes(tmp_path, tmp_path / "work", one=["--config.seed=1"]) as run:
        assert run.wait() == [2, 2]
        for said in run.said():
            assert said.startswith("error: processes: got [1]; all need the settings of process 0")


def test_a_workdir_in_use_is_refused_by_both(tmp_path):
    (tmp_path / "work").mkdir()
    with open(tmp_path / "work" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Processes(tmp_path, tmp_path / "work") as run:
            assert run.wait() == [2, 2]
            first, second = run.said()
    assert "workdir: got" in first and "is in use by a live process" in first
    assert "processes: got [0]; stopped before the run began" in second


# -- sharded states ----------------------------------------------------------------------------


def sharded(folder: Path, work: Path, *options: str) -> Processes:
    """Two processes of four devices each that train a state in eight shards."""
    program = (sharded_run.__file__,)
    return Processes(folder, work, program=program, devices=4, options=options)


def test_a_kill_during_a_save_in_the_background_of_sharded_arrays_changes_nothing(tmp_path):
    work, wanted = tmp_path / "work", sharded_run.fresh()
    for _ in range(8):
        wanted = jax.jit(sharded_run.advance)(wanted)
    with sharded(tmp_path / "killed", work, "--num_steps=8", "--hold=4") as run:
        # Both train on beside the save of step 4, and wait for it before that of step 6.
        run.wait_for((work / "checkpoints" / "4" / "model").exists, "save of step 4")
        run.wait_for(lambda: all("step 6" in said for said in run.printed()), "step 6")
        assert checkpoint.steps(work) == [2]
        run.running[1].kill()
        assert run.running[1].wait() == -signal.SIGKILL
    with sharded(tmp_path / "resumed", work, "--num_steps=8") as run:
        assert run.wait() == [0, 0], run.said()
        for said in run.printed():
            assert said.startswith("resumes from step 2\nstep 3\n")
    assert checkpoint.steps(work) == [2, 4, 6, 8]
    path, metadata = checkpoint.find(work)
    for index in range(2):  # each has written its half
        folder = f"model/ocdbt.process_{index}/d/"
        assert any(name.startswith(folder) for name in metadata["files"])
    assert not list(path.glob(".*"))
    for count in (8, 2, 1):
        found = sharded_run.restored(path, jax.devices()[:count])
        assert len(found["w"].sharding.device_set) == count
        for name, leaf in checkpoint.to_host(wanted).items():
            np.testing.assert_array_equal(checkpoint.to_host(found)[name], leaf)


TEXT = {
    "length": 16,
    "vocab_size": 60,
    "model": "transformer",
    "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
    "learning_rate": 0.01,
    "optimizer": "adam",
    "batch_size": 8,
    "num_steps": 3,
    "text_memory": 0,
}


@pytest.fixture
def text(tmp_path):
    """Settings of a student that learns of itself, on lines that stay in their file."""
    rng = random.Random(0)
    words = [a + b for a in "bcdfgh" for b in "aeiou"]
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(400)]
    (tmp_path / "text.txt").write_text("\n".join(f"{line} 555-0147" for line in lines))
    given = {**TEXT, "dataset": f"text:{tmp_path}/text.txt", "text_cache": f"{tmp_path}/cache"}
    swing_train.train_and_evaluate({**given, "num_steps": 0, "half": "first"}, tmp_path / "teacher")
    other = {
        **given,
        "num_steps": 0,
        "half": "second",
        "seed": 1,
        "tokenizer": f"{tmp_path}/teacher",
    }
    swing_train.train_and_evaluate({**other, "seed": 1}, tmp_path / "reference")
    networks = {name: str(tmp_path / name) for name in ("teacher", "reference")}
    scorers = {"scorers": ("rules", "divergence"), "noise_seed": 0, "quantiles": (0.2, 0.9)}
    return {**given, **networks, **scorers}


def _swing(settings):
    made = "from ml_collections import ConfigDict\ndef get_config(arg=''):\n    return ConfigDict"
    return {"program": ("-m", "swingdistill.train"), "config": f"{made}({settings!r})\n"}


def test_two_processes_tokenise_and_score_a_text_once(text, tmp_path):
    """The scores that they compute together are those of one process, and so is the student."""
    given = {**text, "text_cache": f"{tmp_path}/two"}
    with Processes(tmp_path, tmp_path / "work", **_swing(given)) as run:
        assert run.wait() == [0, 0], run.said()
        assert run.said()[0].count("tokenising training text") == 1
        assert run.said()[1] == run.printed()[1] == ""
    swing_train.train_and_evaluate(text, tmp_path / "one")
    assert_close(newest(tmp_path / "work")[1], newest(tmp_path / "one")[1], rtol=1e-4)
    scored = {}
    for name in ("two", "cache"):
        (path,) = (tmp_path / name).glob("*/private/scores-*")
        scored[name] = columns.Column(path)[:]
    np.testing.assert_allclose(scored["two"], scored["cache"], atol=1e-4)
    assert 0.05 < np.mean(scored["two"] > 0.5) < 0.95


def test_text_that_the_first_process_refuses_ends_both(text, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"one\n" * 50 + b"\xff\n")
    with Processes(tmp_path, tmp_path / "work", **_swing(text)) as run:
        assert run.wait() == [2, 2]
        assert "line 51 is not" in run.said()[0]


def test_processes_with_other_text_do_not_train_together(text, tmp_path):
    (tmp_path / "other.txt").write_text("one two\n" * 50)
    one = [f"--config.dataset=text:{tmp_path}/other.txt"]
    with Processes(tmp_path, tmp_path / "work", one=one, **_swing(text)) as run:
        assert run.wait() == [2, 2]
        for said in run.said():
            assert "error: processes: got [1]; all need the settings of process 0" in said
