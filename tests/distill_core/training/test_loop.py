"""loop.run: stopping, resuming, refusing, diverging and tidying up, one process and one device.

Kills from outside are in tests/e2e/test_kill_and_resume.py, several processes in
tests/multiprocess.
"""

import asyncio
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import checkpoint, config
from distill_core.checkpoint import store
from distill_core.runtime import process
from distill_core.training import loop

ROOT = Path(__file__).parents[3]
STEPS = 12  # of every run here: lines every 3 steps, evaluations every 4, checkpoints every 2


@pytest.fixture(scope="module")
def straight(tiny_run, tmp_path_factory):
    """What a run holds that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    tiny_run.run(workdir)
    return tiny_run.contents(workdir)


def _files(workdir: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(workdir)): p.read_bytes() if p.is_file() else None
        for p in workdir.rglob("*")
    }


def _signal_at(tiny_run, step, signum=signal.SIGTERM):
    """A batch function that is interrupted while it makes the batch of one step."""

    def batch_fn(at):
        if at == step:
            os.kill(os.getpid(), signum)
        return tiny_run.batch_at(at)

    return batch_fn


def _say(capfd) -> list[str]:
    return capfd.readouterr().err.splitlines()


# -- stopping and going on ---------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 4, 6, 10])
def test_a_signal_saves_and_the_rest_is_as_if_nothing_happened(tiny_run, tmp_path, straight, step):
    """Also between log lines: what they still have to say is in the checkpoint."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signum = signal.SIGINT if step == 4 else signal.SIGTERM
    with pytest.raises(loop.StoppedError, match=f"at step {step + 1}; saved in {tmp_path}"):
        tiny_run.run(tmp_path, batch_fn=_signal_at(tiny_run, step, signum))
    assert before == {s: signal.getsignal(s) for s in before}
    assert checkpoint.steps(tmp_path)[-1] == step + 1
    _, metadata = checkpoint.find(tmp_path)
    assert len(metadata["pending"]) == (step + 1) % 3
    tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


def test_a_deadline_stops_as_a_signal_does(tiny_run, tmp_path, straight, monkeypatch):
    minutes = 0.0
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: 60 * minutes))

    def batch_fn(step):
        nonlocal minutes
        minutes = float(step)
        return tiny_run.batch_at(step)

    ending = f"^stopped by the deadline at step 6; saved in {tmp_path}$"
    with process.stop_after(5.0), pytest.raises(loop.StoppedError, match=ending):
        tiny_run.run(tmp_path, batch_fn=batch_fn)
    with process.stop_after(None):
        tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


def test_a_second_ctrl_c_stops_at_once(tiny_run, tmp_path):
    def batch_fn(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        tiny_run.run(tmp_path, batch_fn=batch_fn)
    tiny_run.run(tmp_path, 1)  # the workdir is free again


@pytest.mark.parametrize("step", [4, 8, STEPS])
def test_a_signal_during_an_evaluation_does_not_wait_for_it(tiny_run, tmp_path, straight, step):
    """The evaluation is done first thing next time, the last one of a run, too."""

    def evaluate(state, stopped):
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped()
            raise loop.StoppedError
        return tiny_run.measure(state)

    with pytest.raises(loop.StoppedError, match=f"at step {step}"):
        tiny_run.run(tmp_path, evaluate=evaluate)
    assert not checkpoint.find(tmp_path)[1]["evaluated"]
    with pytest.raises(loop.StoppedError):  # once more, in the evaluation that is made up for
        tiny_run.run(tmp_path, evaluate=evaluate)
    tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


def test_a_kill_after_an_evaluation_was_made_up_for_does_not_double_its_line(
    tiny_run, tmp_path, straight, monkeypatch
):
    def stop(state, stopped):
        raise loop.StoppedError

    with pytest.raises(loop.StoppedError):
        tiny_run.run(tmp_path, evaluate=stop)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(loop.integrity, "amend", killed)
        tiny_run.run(tmp_path)
    tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


def test_a_signal_during_the_last_save_is_not_lost(tiny_run, tmp_path, straight, monkeypatch):
    """What follows the loop, e.g. the test set, may take long: the run stops before it."""
    save = checkpoint.save

    def interrupted(workdir, step, **kwargs):
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(workdir, step, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(loop.StoppedError, match="at step 12"):
        patch.setattr(checkpoint, "save", interrupted)
        tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


def test_a_run_in_a_thread_with_an_event_loop_runs_without_signal_handlers(
    tiny_run, tmp_path, straight
):
    async def cell():  # as in a notebook
        return tiny_run.run(tmp_path)

    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
    assert tiny_run.contents(tmp_path) == straight


def test_a_run_may_be_prolonged(tiny_run, tmp_path, straight, capfd):
    tiny_run.run(tmp_path, 6)
    capfd.readouterr()
    tiny_run.run(tmp_path, STEPS, log_every=4, eval_every=12, save_every=6)
    assert "; resumes from step 6" in _say(capfd)[0]
    found = tiny_run.contents(tmp_path)
    assert found["arrays"] == straight["arrays"]
    assert [json.loads(line)["step"] for line in found["metrics"]] == [3, 4, 6, 6, 8, 12, 12]


# -- what a run says ---------------------------------------------------------------------------


def test_the_first_line_says_where_on_what_and_from_which_step(tiny_run, tmp_path, capfd):
    for steps, ending in (
        (4, "starts from step 0"),
        (8, "resumes from step 4"),
        (8, "finished at step 8, nothing to do"),
        (6, "finished at step 8, nothing to do"),
    ):
        tiny_run.run(tmp_path, steps)
        first = _say(capfd)[0]
        assert first == f"8 cpu devices; 4 parameters; writing to {tmp_path}; {ending}"


def test_a_finished_run_changes_nothing(tiny_run, tmp_path, capfd):
    state = tiny_run.run(tmp_path)
    before = _files(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}
    capfd.readouterr()

    def never(*_):
        raise AssertionError

    again = tiny_run.run(tmp_path, batch_fn=never, step_fn=never, evaluate=never)
    assert len(_say(capfd)) == 1
    assert _files(tmp_path) == before
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert checkpoint.digest(checkpoint.to_host(again)) == checkpoint.digest(
        checkpoint.to_host(state)
    )


# -- what a run refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_other_settings_are_refused_by_name_and_nothing_is_touched(tiny_run, tmp_path, damaged):
    tiny_run.run(tmp_path, 6, config={"temperature": 4.0})
    if damaged:
        (tmp_path / "checkpoints" / "6" / "metadata.json").write_text("{")
    (tmp_path / "checkpoints" / "7").mkdir()  # an interrupted save
    before = _files(tmp_path)
    with pytest.raises(
        config.InputError, match=r"^temperature: got 5.0; this run was started with 4.0; keep it"
    ):
        tiny_run.run(tmp_path, STEPS, config={"temperature": 5.0})
    assert _files(tmp_path) == before


def test_data_that_changed_is_refused_by_name_and_nothing_is_touched(tiny_run, tmp_path):
    reads = {"dataset": "these", "teacher": "this"}
    tiny_run.run(tmp_path, 4, reads=reads, config={"teacher": "runs/plain"})
    before = _files(tmp_path)
    for finished in (4, 6):
        with pytest.raises(config.InputError) as refused:
            changed = {**reads, "teacher": "that"}
            tiny_run.run(tmp_path, finished, reads=changed, config={"teacher": "runs/plain"})
        message = "teacher: got 'runs/plain'; the data changed since this run began"
        assert str(refused.value).startswith(message)
        assert _files(tmp_path) == before
    tiny_run.run(tmp_path, 6, reads=reads, config={"teacher": "runs/plain"})


def test_what_was_read_is_remembered_in_private_alone(tiny_run, tmp_path):
    tiny_run.run(tmp_path, 4, reads={"dataset": "these images"})
    found = [p for p in tmp_path.rglob("*") if p.is_file() and b"these images" in p.read_bytes()]
    assert found == [tmp_path / "private" / "inputs.json"]
    assert found[0].stat().st_mode & 0o777 == 0o600


def test_a_resume_that_cannot_compare_its_data_says_so_and_goes_on(tiny_run, tmp_path, capsys):
    tiny_run.run(tmp_path, 4, reads={"dataset": "these"})
    shutil.rmtree(tmp_path / "private")
    tiny_run.run(tmp_path, 6, reads={"dataset": "others"})
    assert "cannot check that the data is the same as before" in capsys.readouterr().err
    with pytest.raises(config.InputError, match="^dataset: got None; the data changed"):
        tiny_run.run(tmp_path, 8, reads={"dataset": "these"})
    (tmp_path / "private" / "inputs.json").write_text("{")
    with pytest.raises(config.InputError, match=r"^workdir: .*inputs\.json'; cannot be read"):
        tiny_run.run(tmp_path, 8, reads={"dataset": "others"})
    shutil.rmtree(tmp_path / "checkpoints")  # a run that begins anew may read other data
    tiny_run.run(tmp_path, 4, reads={"dataset": "these"})
    tiny_run.run(tmp_path, 6, reads={"dataset": "these"})


def test_every_save_draws_an_id_and_a_finished_run_keeps_it(tiny_run, tmp_path):
    ids = []
    for name, num_steps in (("a", 4), ("b", 4), ("b", 4), ("b", 6)):
        tiny_run.run(tmp_path / name, num_steps)
        ids.append(checkpoint.find(tmp_path / name)[1]["id"])
    assert len(set(ids)) == 3 and ids[1] == ids[2]
    assert all(len(bytes.fromhex(id)) == 16 for id in ids)


def test_a_workdir_in_use_is_refused(tiny_run, tmp_path, straight):
    def batch_fn(step):
        if step == 7:
            with pytest.raises(config.InputError, match="is in use by a live process") as refused:
                tiny_run.run(tmp_path)
            assert str(refused.value).startswith(f"workdir: got '{tmp_path}'")
        return tiny_run.batch_at(step)

    tiny_run.run(tmp_path, batch_fn=batch_fn)
    assert tiny_run.contents(tmp_path) == straight


# -- damage ------------------------------------------------------------------------------------


def test_resuming_skips_a_damaged_newest_checkpoint_by_name(tiny_run, tmp_path, caplog, capfd):
    tiny_run.run(tmp_path / "run", 4)
    wanted = tiny_run.contents(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    names = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
    for i, name in enumerate(n for n in names if (newest / n).stat().st_size):
        workdir = tmp_path / str(i)
        shutil.copytree(tmp_path / "run", workdir)
        path = workdir / "checkpoints" / "4" / name
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 0x10
        path.write_bytes(whole[:-1] if i % 2 else whole)
        caplog.clear()
        capfd.readouterr()
        tiny_run.run(workdir, 4)
        [warning] = [r.getMessage() for r in caplog.records if r.levelname != "INFO"]
        assert f"skipping damaged checkpoint {workdir}/checkpoints/4: {name} " in warning
        assert "; resumes from step 2" in _say(capfd)[0]
        assert tiny_run.contents(workdir) == wanted
        assert (workdir / "checkpoints" / "4.damaged").is_dir()


def test_without_a_whole_checkpoint_a_run_starts_again(tiny_run, tmp_path, straight, caplog):
    tiny_run.run(tmp_path, 4)
    for path in (tmp_path / "checkpoints").glob("*/metadata.json"):
        path.write_text("")
    tiny_run.run(tmp_path)
    assert len([m for m in caplog.messages if "skipping damaged" in m]) == 2
    assert tiny_run.contents(tmp_path) == straight


# -- which checkpoints stay --------------------------------------------------------------------


def _scores(*values):
    """Evaluations every 2 steps with these results."""
    return lambda state, stopped: {"accuracy": values[int(state.step) // 2 - 1]}


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.1, 0.9, 0.2, 0.3, 0.4, 0.5), [4, 10, 12]),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), [10, 12]),
        ((0.9, 0.9, 0.2, 0.9, 0.4, 0.5), [2, 10, 12]),
        ((math.nan, 0.1, 0.2, 0.9, 0.1, 0.1), [8, 10, 12]),
    ],
    ids=["early", "last", "equal", "nan"],
)
def test_the_newest_two_and_the_best_are_kept(tiny_run, tmp_path, scores, kept):
    seen = []

    def batch_fn(step):
        seen.append(checkpoint.steps(tmp_path))
        return tiny_run.batch_at(step)

    tiny_run.run(tmp_path, evaluate=_scores(*scores), eval_every=2, batch_fn=batch_fn)
    assert checkpoint.steps(tmp_path) == kept
    assert max(map(len, seen)) <= 3


def test_a_new_best_is_saved_at_once_and_remembered_by_a_resumed_run(tiny_run, tmp_path):
    settings = {"evaluate": _scores(0.1, 0.9, 0.2, 0.3, 0.4, 0.5), "eval_every": 2, "save_every": 5}
    with pytest.raises(loop.StoppedError):
        tiny_run.run(tmp_path, batch_fn=_signal_at(tiny_run, 6), **settings)
    assert checkpoint.steps(tmp_path) == [4, 5, 7]
    tiny_run.run(tmp_path, **settings)
    assert checkpoint.steps(tmp_path) == [4, 10, 12]
    assert checkpoint.find(tmp_path)[1]["best"] == {"step": 4, "value": 0.9}


# -- divergence --------------------------------------------------------------------------------


def _poisoned(tiny_run, step, **changes):
    def batch_fn(at):
        batch = tiny_run.batch_at(at)
        if at == step:
            batch |= {k: np.full_like(batch[k], v) for k, v in changes.items()}
        return batch

    return batch_fn


def _losses(tiny_run, tmp_path, steps) -> list[float]:
    tiny_run.run(tmp_path / "losses", steps, log_every=1)
    lines = (tmp_path / "losses" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["loss"] for row in rows if row["split"] == "train"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=["nan", "inf", "overflow"])
def test_divergence_stops_with_step_and_last_loss_and_keeps_the_good(tiny_run, tmp_path, value):
    last = f"{_losses(tiny_run, tmp_path, 6)[-1]:.6g}"
    batch_fn = _poisoned(tiny_run, 6, y=value)
    with pytest.raises(loop.DivergedError) as diverged:
        tiny_run.run(tmp_path / "run", batch_fn=batch_fn)
    assert str(diverged.value) == f"diverged at step 7: NaN or infinity; last finite loss {last}"
    assert checkpoint.steps(tmp_path / "run") == [4, 6]
    # A second try ends alike: it knows the last loss of the first.
    with pytest.raises(loop.DivergedError, match=rf"step 7: .* loss {last}"):
        tiny_run.run(tmp_path / "run", batch_fn=batch_fn)
    tiny_run.run(tmp_path / "run")  # and without the poison it ends well
    assert checkpoint.steps(tmp_path / "run")[-1] == STEPS


def test_an_infinite_gradient_of_a_finite_loss_is_divergence(tiny_run, tmp_path):
    # The square of the residual is finite in float32, that of the gradient is not.
    with pytest.raises(loop.DivergedError, match="diverged at step 6"):
        tiny_run.run(tmp_path, batch_fn=_poisoned(tiny_run, 5, y=1e17, x=1e4))
    assert checkpoint.steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_that_are_not_finite_are_never_saved(tiny_run, tmp_path, dtype):
    def step_fn(state, frozen, batch):
        step = state.step + 1
        w = jnp.full(3, jnp.where(step >= 5, jnp.nan, 1.0), dtype)
        metrics = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(1.0)}
        return state.replace(step=step, params={**state.params, "w": w}), metrics

    with pytest.raises(loop.DivergedError, match=r"at step 6: .* last finite loss 0.5"):
        tiny_run.run(tmp_path, step_fn=step_fn, evaluate=None)
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_a_diverged_state_is_not_evaluated(tiny_run, tmp_path):
    def evaluate(state, stopped):
        assert int(state.step) < 7
        return {"accuracy": 0.5}

    with pytest.raises(loop.DivergedError, match="step 7"):
        tiny_run.run(tmp_path, batch_fn=_poisoned(tiny_run, 6, y=np.nan), evaluate=evaluate)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_signal_after_divergence_saves_nothing(tiny_run, tmp_path):
    def batch_fn(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return _poisoned(tiny_run, 4, y=np.nan)(step)

    with pytest.raises(loop.DivergedError, match="step 5"):
        tiny_run.run(tmp_path, batch_fn=batch_fn)
    assert checkpoint.steps(tmp_path) == [2, 4]


# -- in the background -------------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "until"), [(4, 6), (STEPS, STEPS)], ids=["next", "end"])
def test_a_save_that_fails_in_the_background_ends_the_run_at_the_next_or_at_the_end(
    tiny_run, tmp_path, straight, monkeypatch, failing, until
):
    finish, trained = store.finish, []

    def fail(path, metadata):
        if metadata["step"] == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(path, metadata)

    def batch_fn(step):
        trained.append(step)
        return tiny_run.batch_at(step)

    error = rf"^could not write checkpoint .*/{failing}: No space left on device; earlier"
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError, match=error):
        patch.setattr(store, "finish", fail)
        tiny_run.run(tmp_path, batch_fn=batch_fn)
    assert trained == list(range(until))
    assert checkpoint.steps(tmp_path)[-1] == failing - 2
    assert not (tmp_path / "checkpoints" / str(failing)).exists()
    tiny_run.run(tmp_path)
    assert tiny_run.contents(tmp_path) == straight


@pytest.mark.parametrize("ending", [KeyboardInterrupt, loop.DivergedError])
def test_a_run_that_ends_by_an_error_first_completes_what_is_being_written(
    tiny_run, tmp_path, monkeypatch, ending
):
    finish, ended = store.finish, threading.Event()

    def late(path, metadata):
        if metadata["step"] == 4:
            assert ended.wait(60)
            time.sleep(0.3)
        finish(path, metadata)

    def batch_fn(step):
        if step == 5:
            assert checkpoint.steps(tmp_path) == [2]
            ended.set()
            if ending is KeyboardInterrupt:
                raise KeyboardInterrupt
        return _poisoned(tiny_run, 4, y=np.nan)(step)

    monkeypatch.setattr(store, "finish", late)
    with pytest.raises(ending):
        tiny_run.run(tmp_path, batch_fn=batch_fn, evaluate=None)
    assert checkpoint.steps(tmp_path) == [2, 4]


# -- a full disk -------------------------------------------------------------------------------


def _run_as_program(workdir, **settings):
    program = ROOT / "tests" / "distill_core" / "tiny_run.py"
    limit = settings.pop("limit", None)
    command = [sys.executable, str(program), json.dumps({"workdir": str(workdir), **settings})]
    if limit:  # bytes that a file may have: a disk that is full for every larger one
        command = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash", *command]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # its files would not fit either
    return subprocess.run(command, env=env, text=True, capture_output=True)


def test_a_checkpoint_that_does_not_fit_on_the_disk_ends_in_one_line(tiny_run, tmp_path):
    padding = 50_000  # a checkpoint of about 180 kB
    tiny_run.run(tmp_path, 4, padding=padding)
    shutil.rmtree(tmp_path / "tensorboard", ignore_errors=True)
    before = _files(tmp_path / "checkpoints")
    found = _run_as_program(tmp_path, padding=padding, limit=100 * 1024)
    assert found.returncode == 1
    first, *rest, last = found.stderr.splitlines()
    assert "; resumes from step 4" in first
    assert last == (
        f"error: could not write checkpoint {tmp_path}/checkpoints/6: File too large; "
        "earlier checkpoints are intact"
    )
    assert all(line.startswith("step ") for line in rest)
    assert _files(tmp_path / "checkpoints") == before
    tiny_run.run(tmp_path, 6, padding=padding)  # once there is room again
    assert checkpoint.steps(tmp_path) == [4, 6]


def test_metrics_that_do_not_fit_on_the_disk_end_in_one_line(tiny_run, tmp_path):
    settings = {"log_every": 1, "save_every": 100, "eval_every": 100}
    found = _run_as_program(tmp_path, num_steps=30, limit=1024, **settings)
    assert found.returncode == 1
    *lines, last = found.stderr.splitlines()
    assert last.startswith(f"error: {tmp_path}/")
    assert last.endswith(": File too large")
    assert all(line.startswith(("1 cpu device", "step ")) for line in lines), lines
    # Going on with room, the line that was cut short is not there twice.
    tiny_run.run(tmp_path, 30, **settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, 31))


def test_a_disk_that_is_really_full(tiny_run, tmp_path):
    """On a file system of its own, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        tiny_run.run(disk / "run", 4)
        before = _files(disk / "run" / "checkpoints")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 12_000))
        found = _run_as_program(disk / "run")
        assert found.returncode == 1
        *lines, last = found.stderr.splitlines()
        assert last == (
            f"error: could not write checkpoint {disk}/run/checkpoints/6: No space left on device; "
            "earlier checkpoints are intact"
        )
        assert all(line.startswith(("1 cpu device", "step ")) for line in lines), lines
        assert _files(disk / "run" / "checkpoints") == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- object stores -----------------------------------------------------------------------------


def test_a_workdir_in_the_cloud(tiny_run, bucket, straight, capfd):
    """Against the stand-in of fake_bucket.py, whose docstring says what it covers and what not."""
    workdir = "gs://bucket/runs/one"
    with pytest.raises(loop.StoppedError):
        tiny_run.run(workdir, batch_fn=_signal_at(tiny_run, 6))
    assert checkpoint.find(workdir)[1]["step"] == 7
    # The newest checkpoint is damaged, and an interrupted save lies about.
    [name] = [n for n in bucket.store if "/checkpoints/7/model/manifest" in n]
    bucket.pipe(name, bucket.cat(name)[:-1])
    bucket.pipe("gs://bucket/runs/one/checkpoints/8/model/d/half", b"half")
    tiny_run.run(workdir)
    assert tiny_run.contents(workdir) == straight
    capfd.readouterr()
    before = set(bucket.store)
    tiny_run.run(workdir)
    assert "finished at step 12" in _say(capfd)[0]
    assert set(bucket.store) == before
    folders = {name.split("/")[5] for name in bucket.store if "/checkpoints/" in name}
    assert folders == {"7.damaged", "10", "12"}
