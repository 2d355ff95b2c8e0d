"""A student whose state no device has the whole of: killed, and resumed on other meshes."""

import sys
from pathlib import Path

import pytest

from distill_core import checkpoint
from swingdistill import train

sys.path.insert(0, str(Path(__file__).parent))
from test_two_processes import Processes, assert_close, newest

pytestmark = pytest.mark.timeout(900)

NETWORK = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "width": 64}
SETTINGS = {
    "dataset": "records",
    "num_train": 200,
    "length": 32,
    "vocab_size": 256,
    "model": "decoder",
    "model_kwargs": NETWORK,
    "learning_rate": 0.1,
    "clip_norm": 1.0,
    "batch_size": 8,
    "num_steps": 0,
    "eval_every": 1000,
    "save_every": 1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Settings of a student with a teacher and a reference that nobody trained."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("teacher", "reference")):
        train.train_and_evaluate({**SETTINGS, "seed": seed}, folder / name)
    return {
        **SETTINGS,
        "teacher": str(folder / "teacher"),
        "reference": str(folder / "reference"),
        "variant": "anchored",
        "scorers": ("rules",),
        "noise_seed": 3,
    }


def _run(folder, work, student, num_steps, *, processes, devices, mesh):
    config = f"""from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict({ {**student, "num_steps": num_steps}!r}).lock()
"""
    return Processes(
        folder,
        work,
        program=("-m", "swingdistill.train"),
        count=processes,
        devices=devices,
        options=mesh,
        config=config,
    )


def test_a_sharded_run_is_killed_while_it_saves_and_ends_as_one_that_never_was_split(
    student, tmp_path
):
    """Two processes of four devices; then another mesh, `data:2`, and one device."""
    work = tmp_path / "work"
    first = {"processes": 2, "devices": 4, "mesh": ["--mesh=data:4,model:2"]}
    with _run(tmp_path / "first", work, student, 10**6, **first) as run:
        run.wait_for(lambda: checkpoint.steps(work)[-1:] > [2], "checkpoint")
        run.running[1].kill()  # some save is under way: every step begins one
        run.running[0].kill()
        run.wait()
    step = checkpoint.steps(work)[-1]
    for folder, processes, devices, mesh in (
        ("second", 2, 4, ["--mesh=data:8"]),
        ("third", 1, 2, ["--mesh=data:2"]),
        ("fourth", 1, 1, []),
    ):
        shape = {"processes": processes, "devices": devices, "mesh": mesh}
        with _run(tmp_path / folder, work, student, step + 2, **shape) as run:
            assert run.wait() == [0] * processes, run.said()
            assert f"resumes from step {step}\n" in run.said()[0]
        step += 2
    straight = tmp_path / "straight"
    train.train_and_evaluate({**student, "num_steps": step}, straight)
    found, expected = newest(work), newest(straight)
    assert found[0] == expected[0] == step
    assert_close(found[1], expected[1])


def test_a_mesh_that_is_not_the_devices_is_one_line(student, tmp_path):
    shape = {"processes": 1, "devices": 4, "mesh": ["--mesh=data:4,model:2"]}
    with _run(tmp_path / "run", tmp_path / "work", student, 4, **shape) as run:
        assert run.wait() == [2]
        line = "error: mesh: got 'data:4,model:2'; the product must be the number of devices, 4\n"
        assert run.said()[0].endswith(line) and "Traceback" not in run.said()[0]
    assert not (tmp_path / "work").exists()
