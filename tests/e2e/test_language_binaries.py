"""The binaries for text: a student that is killed ends as one that is not, and can be measured."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config
from distill_core.checkpoint import store
from distill_core.models.network import text_network
from distill_core.runtime import config_file
from distill_core.training import run_state
from swingdistill import private_text, train

sys.path.insert(0, str(Path(__file__).parent))
import held

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    config = config_dict.ConfigDict()
    config.dataset = "text:{folder}/text.txt"
    config.length, config.vocab_size = 16, 40
    config.canaries_per_level, config.canary_levels, config.canary_digits = 2, (1, 4), 3
    config.model = "transformer"
    config.model_kwargs = config_dict.ConfigDict({{"width": 16, "num_layers": 1, "num_heads": 2}})
    config.optimizer, config.learning_rate, config.schedule = "adam", 1e-2, "onecycle"
    config.batch_size, config.num_steps = 8, 30
    config.log_every, config.eval_every, config.save_every = 7, 10, 2
    config.scorers, config.expressions = ("rules",), (r"my id is \\d+",)
    return config.lock()
"""
pytestmark = pytest.mark.timeout(900)  # several processes, on a machine that may be busy


@pytest.fixture(scope="module")
def python():
    """Starts a process; none is left in the end."""
    started = []
    # One device: what is held here is held by one topology at a time.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}

    def python(*arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield python
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a config, and a teacher of random weights."""
    place = tmp_path_factory.mktemp("place")
    rng = random.Random(0)
    words = ("the", "cat", "sat", "on", "a", "mat", "old", "dog", "ran")
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 8))) + " ." for _ in range(60)]
    (place / "text.txt").write_text("\n".join(lines))
    (place / "config.py").write_text(CONFIG.format(folder=place))
    given = config_file.read(f"{place}/config.py", [], train.Settings)
    hp = config.validate(given, train.Settings)
    network = text_network(
        private_text.get_tokenizer(hp),
        hp.length,
        model=hp.model,
        model_kwargs=hp.model_kwargs,
    )
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: draw.normal(scale=0.3, size=x.shape).astype(x.dtype),
        network.shapes()["params"],
    )
    parts = {"model": {"params": params, "model_state": {}}}
    method = "swingdistill.train"
    metadata, _ = run_state.describe(hp, place, method=method, network=network, reads={})
    state = {"step": np.int32(0)}
    checkpoint.save(place / "teacher", 0, parts=parts, train=state, metadata=metadata)
    return place


@pytest.fixture(scope="module")
def student(python, place):
    """`student(workdir)` starts the binary."""

    def student(workdir, hold=None):
        """`hold`: suspends itself once it has saved that step."""
        binary = "swingdistill.train"
        return python(
            *(("-m", binary) if hold is None else (held.__file__, hold, binary)),
            *(f"--config={place}/config.py", f"--workdir={workdir}"),
            f"--config.teacher={place}/teacher",
        )

    return student


@pytest.fixture(scope="module")
def straight(student, place):
    """The workdir of a student that nobody touched."""
    process = student(place / "straight")
    _, err = process.communicate()
    assert process.returncode == 0, err
    return place / "straight"


def outcome(workdir):
    path, metadata = checkpoint.find(workdir)
    arrays = store._orbax().load_checkpointables(path, {"model": None, "train": None})
    kept = ("step", "best", "pending", "last_loss", "evaluated", "ledger", "parts")
    return {
        "arrays": checkpoint.digest(arrays),
        "metadata": {name: metadata[name] for name in kept},
        "metrics": (workdir / "metrics.jsonl").read_text(),
    }


def test_a_student_that_is_killed_ends_as_one_that_is_not(student, straight, tmp_path):
    key = Path("private", "swing_noise.json")  # the two are one run: they have one secret
    (tmp_path / "killed" / "private").mkdir(parents=True)
    shutil.copy(straight / key, tmp_path / "killed" / key)
    process = student(tmp_path / "killed", hold=4)
    held.wait(process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = checkpoint.steps(tmp_path / "killed")[-1]
    assert reached == 4
    process = student(tmp_path / "killed")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert f"; resumes from step {reached}" in err.splitlines()[0]
    found = outcome(tmp_path / "killed")
    assert found == outcome(straight)
    assert found["metadata"]["step"] == 30 and '"kl"' in found["metrics"]


def test_a_checkpoint_is_measured_by_a_binary(python, straight, place):
    process = python(
        *("-m", "swingdistill.evaluate", f"--checkpoint={straight}"),
        *(f"--canaries={place}/teacher", f"--out={place}/found.json"),
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    found = json.loads((place / "found.json").read_text())
    first, *levels = out.splitlines()
    assert first.startswith(f"test perplexity {found['perplexity']:.3f}")
    assert 1 < found["perplexity"] < 40
    assert list(found["exposure"]) == ["1", "4"]
    for line, (level, bits) in zip(levels, found["exposure"].items(), strict=True):
        mean = sum(bits) / len(bits)
        assert line.startswith(f"exposure at {level} repetitions: mean {mean:.2f} bits, worst ")
        assert len(bits) == 2
