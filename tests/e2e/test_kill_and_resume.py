"""Runs that are killed and stopped from outside end as runs that nobody touched, bit by bit."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import held

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import config_dict

def text():
    config = config_dict.ConfigDict()
    config.length, config.vocab_size = 16, 40
    config.canaries_per_level, config.canary_levels, config.canary_digits = 2, (1, 4), 3
    config.model = "transformer"
    config.model_kwargs = config_dict.ConfigDict({"width": 16, "num_layers": 1, "num_heads": 2})
    config.optimizer, config.learning_rate, config.schedule = "adam", 1e-2, "onecycle"
    config.batch_size, config.num_steps = 8, 30
    config.log_every, config.eval_every, config.save_every = 7, 10, 2
    config.scorers, config.expressions = ("rules",), (r"my id is \\d+",)
    return config.lock()

def get_config(arg=""):
    if arg == "text":
        return text()
    config = config_dict.ConfigDict()
    config.dataset = "digits"
    config.num_validation = 97
    config.model = "cnn"
    config.model_kwargs = config_dict.ConfigDict({"widths": (3,), "hidden": 4})
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.schedule = "onecycle"
    config.batch_size = 16
    config.num_steps = 60
    config.log_every, config.eval_every, config.save_every = 7, 10, 3
    if arg == "nasty":
        config.omega, config.temperature = 0.04, 20.0
    return config.lock()
"""
pytestmark = pytest.mark.timeout(900)  # a dozen and more processes, on a machine that may be busy
SWING = "swingdistill.train"
BINARIES = ("distill_core.train", "distill_core.distill", "nasty.train", SWING)
NOISE_KEY = Path("private", "swing_noise.json")


def _environment() -> dict[str, str]:
    # One device: what is held here is held by one topology at a time.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}


_started: list[subprocess.Popen] = []


def _python(*arguments) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def _end(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, stderr)."""
    _, err = process.communicate()
    return process.returncode, err


# -- the loop ----------------------------------------------------------------------------------


def _tiny_contents(workdir: Path) -> dict:
    """Every array, the metadata and the metrics; not the names that Orbax chooses at random."""
    found = {}
    for step in checkpoint.steps(workdir):
        path, metadata = checkpoint.find(workdir, step=step)
        arrays = checkpoint.contents(path)
        found[step] = {k: v for k, v in metadata.items() if k not in ("files", "checksum", "id")}
        found[step]["arrays"] = checkpoint.digest(arrays)
    return {"checkpoints": found, "metrics": (workdir / "metrics.jsonl").read_text()}


def test_a_dozen_kills_change_nothing(tmp_path):
    settings = json.dumps({"num_steps": 118, "log_every": 5, "eval_every": 6, "save_every": 1})
    driver = ROOT / "tests" / "e2e" / "kill_driver.py"
    seed = 0
    runs = {
        kills: _python(driver, tmp_path / str(kills), kills, seed, settings) for kills in (12, 0)
    }
    for kills, process in runs.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        report = json.loads(out)
        assert report["kills"] == kills
        if kills:
            assert report["in_save"] >= 4
            resumed = [int(s) for s in re.findall(r"resumes from step (\d+)", err)]
            assert len(set(resumed)) >= 5
            assert resumed == sorted(resumed)
    killed, straight = (_tiny_contents(tmp_path / str(kills)) for kills in (12, 0))
    assert killed == straight
    rows = [json.loads(line) for line in killed["metrics"].splitlines()]
    trained = [row["step"] for row in rows if row["split"] == "train"]
    assert trained == [*range(5, 118, 5), 118]  # neither gaps nor doubles


# -- the binaries ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    words, moments = ("the", "cat", "sat", "on", "a", "mat", "old", "dog", "ran"), random.Random(0)
    lines = [" ".join(moments.choices(words, k=moments.randint(3, 8))) + " ." for _ in range(60)]
    path.with_name("text.txt").write_text("\n".join(lines))
    return path


def _text(config: Path) -> list[str]:
    return [f"--config={config}:text", f"--config.dataset=text:{config.with_name('text.txt')}"]


def _arguments(binary: str, config: Path, plain: Path) -> list[str]:
    if binary == "distill_core.distill":
        return [f"--config={config}", f"--config.teacher={plain}"]
    if binary == "nasty.train":
        return [f"--config={config}:nasty", f"--config.adversary={plain}"]
    if binary == SWING:
        return [*_text(config), f"--config.teacher={plain.with_name('text_teacher')}"]
    return [f"--config={config}"]


def _start(
    binary: str, config: Path, plain: Path, workdir: Path, *more: str, hold: int | None = None
) -> subprocess.Popen:
    """`hold`: suspends itself once it has saved that step."""
    program = ["-m", binary] if hold is None else [held.__file__, hold, binary]
    return _python(*program, *_arguments(binary, config, plain), f"--workdir={workdir}", *more)


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """binary -> the workdir of a run that nobody touched; all in one process, to start once."""
    folder = tmp_path_factory.mktemp("straight")
    plain = folder / BINARIES[0]
    calls = [[SWING, *_text(config), f"--workdir={folder / 'text_teacher'}"]]
    calls += [
        [binary, *_arguments(binary, config, plain), f"--workdir={folder / binary}"]
        for binary in BINARIES
    ]
    code, err = _end(
        _python(
            "-c",
            "import importlib, json, sys\n"
            "from distill_core.runtime import cli\n"
            "for binary, *arguments in json.loads(sys.argv[1]):\n"
            "    module = importlib.import_module(binary)\n"
            "    cli.run_training(module.train_and_evaluate, module.Settings, arguments)\n",
            json.dumps(calls),
        )
    )
    assert code == 0, err
    return {binary: folder / binary for binary in BINARIES}


def test_binaries_that_are_killed_and_stopped_end_as_if_they_were_not(config, straight, tmp_path):
    """Each is killed once; then, going on, one gets SIGTERM and one SIGINT."""
    plain = straight[BINARIES[0]]
    (tmp_path / SWING / "private").mkdir(parents=True)  # the two are one run: they have one secret
    shutil.copy(straight[SWING] / NOISE_KEY, tmp_path / SWING / NOISE_KEY)
    runs = {b: _start(b, config, plain, tmp_path / b, hold=3 + i) for i, b in enumerate(BINARIES)}
    for process in runs.values():
        held.wait(process)
    first = tmp_path / BINARIES[0]
    code, err = _end(_start(BINARIES[0], config, plain, first))
    assert (code, err) == (2, f"error: workdir: got '{first}'; is in use by a live process\n")
    for process in runs.values():
        process.kill()
        assert _end(process)[0] == -signal.SIGKILL
    reached = {binary: checkpoint.steps(tmp_path / binary)[-1] for binary in BINARIES}
    assert 3 <= min(reached.values()) <= max(reached.values()) < 60

    stops = dict(zip(BINARIES, (signal.SIGTERM, signal.SIGINT), strict=False))
    runs = {
        b: _start(b, config, plain, tmp_path / b, hold=reached[b] + 1 if b in stops else None)
        for b in BINARIES
    }
    for binary, signum in stops.items():
        held.wait(runs[binary])
        runs[binary].send_signal(signum)
        runs[binary].send_signal(signal.SIGCONT)
        code, err = _end(runs[binary])
        assert code == 4, err
        *_, last = err.splitlines()
        [step] = re.findall(r"^error: stopped by a signal at step (\d+); saved in", last)
        assert checkpoint.steps(tmp_path / binary)[-1] == int(step)
        runs[binary] = _start(binary, config, plain, tmp_path / binary)

    for binary, process in runs.items():
        code, err = _end(process)
        assert code == 0, err
        assert "; resumes from step " in err.splitlines()[0]
        assert "Traceback" not in err
        assert _outcome(tmp_path / binary) == _outcome(straight[binary])
    assert '"kl"' in _outcome(straight[SWING])["metrics"], "the student has learnt from its teacher"


def _outcome(workdir: Path) -> dict:
    path, metadata = checkpoint.find(workdir)
    arrays = checkpoint.contents(path)
    assert {name.split("/")[0] for name in arrays["train"]} == {"step", "opt_state", "rng"}
    assert all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(arrays))
    kept = ("step", "best", "pending", "last_loss", "evaluated", "ledger", "parts")
    return {
        "arrays": checkpoint.digest(arrays),
        "metadata": {name: metadata[name] for name in kept},
        "metrics": (workdir / "metrics.jsonl").read_text(),
    }


def test_divergence_has_its_own_exit_code(config, straight, tmp_path):
    code, err = _end(
        _start(
            "nasty.train", config, straight[BINARIES[0]], tmp_path, "--config.learning_rate=1e30"
        )
    )
    assert code == 3
    last = err.splitlines()[-1]
    assert re.fullmatch(r"error: diverged at step \d+: NaN or infinity; last finite loss .*", last)
    assert "Traceback" not in err
