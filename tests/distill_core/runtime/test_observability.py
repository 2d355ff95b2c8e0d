"""What a run tells of itself beside its numbers: traces, speed, where the time went."""

import json
import os
import subprocess
import sys

import jax
import pytest

from distill_core import train
from distill_core.config import InputError
from distill_core.experiment import speed, stages
from distill_core.runtime import cli, clock, compilation_cache, peaks, profiling

DIGITS = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8},
    "learning_rate": 0.05,
    "batch_size": 32,
    "num_steps": 8,
    "log_every": 2,
    "save_every": 4,
    "num_validation": 40,
    "eval_every": 4,
}
LAUNCH = """
import sys
from distill_core import train
from distill_core.runtime import cli
cli.launch_training(train.train_and_evaluate, train.Settings)
"""


def test_the_steps_asked_for_are_traced_for_tensorboard(tmp_path):
    with profiling.steps("3:6"):
        train.train_and_evaluate(DIGITS, tmp_path)
    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    names = [event.name for plane in planes for line in plane.lines for event in line.events]
    assert names.count("train") == 3  # as many step annotations
    assert b"step_num" in trace.read_bytes()


def test_a_dispatch_is_traced_if_one_of_its_steps_is_asked_for(tmp_path):
    with profiling.steps("5:6"):
        train.train_and_evaluate({**DIGITS, "steps_per_dispatch": 2}, tmp_path)
    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    names = [event.name for plane in planes for line in plane.lines for event in line.events]
    assert names.count("train") == 1


def test_an_experiment_of_many_runs_is_not_profiled():
    with profiling.steps("1:2"), pytest.raises(InputError, match="^profile: got '1:2'; an exper"):
        stages.check_seeds((0,))


@pytest.mark.parametrize("asked", ["3", "5:5", "6:2", "a:b", "-1:4", "1:2:3", ""])
def test_what_is_no_range_of_steps_is_refused(asked):
    with (
        pytest.raises(InputError, match="^profile: got .*; must be START:STOP"),
        profiling.steps(asked),
    ):
        pass


def test_steps_that_the_run_does_not_take_are_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(InputError, match="^profile: got '3:9'; must lie within .* 0:8"),
        profiling.steps("3:9"),
    ):
        train.train_and_evaluate(DIGITS, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train.train_and_evaluate({**DIGITS, "num_steps": 4}, tmp_path / "resumed")
    with (
        pytest.raises(InputError, match="^profile: got '3:5'; must lie within .* 4:8"),
        profiling.steps("3:5"),
    ):
        train.train_and_evaluate(DIGITS, tmp_path / "resumed")


def test_speed_is_shown_and_recorded_but_stays_out_of_the_metrics(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peaks, "peak_of_all", lambda: 1e12)
    with clock.recorded() as spent:
        train.train_and_evaluate(DIGITS, tmp_path)
    assert spent.speed["unit"] == "images" and spent.speed["per_second"] > 0
    assert 0 < spent.speed["share_of_peak"] < 1
    assert set(spent.seconds) == set(clock.ACTIVITIES)
    del spent.seconds["compilation"]  # another test may have compiled it
    assert all(seconds > 0 for seconds in spent.seconds.values()), spent.seconds
    err = capsys.readouterr().err
    assert " images/s, " in err and "% of peak" in err
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "validation"}
    assert not any("second" in name or "peak" in name for line in lines for name in line)
    events = next((tmp_path / "tensorboard").glob("events*")).read_bytes()
    assert b"speed/images_per_second" in events and b"speed/share_of_peak" in events


def test_time_is_that_of_one_activity_each():
    with clock.recorded() as spent, clock.counted("evaluation"):
        clock._compiled(clock._COMPILED, 5.0)  # longer than all of this takes
    assert spent.seconds["compilation"] == 5.0
    assert spent.seconds["evaluation"] == spent.seconds["training"] == 0.0
    with clock.counted("saving"):  # without a record
        pass


def test_the_table_of_time_has_medians_of_what_is_known():
    def run(seconds, rate):
        spent = {"seconds": dict.fromkeys(clock.ACTIVITIES, seconds), "speed": {}}
        if rate:
            spent["speed"] = {"unit": "images", "per_second": rate, "share_of_peak": 0.5}
        return {"seconds": seconds, "spent": spent}

    results = {("a", 0): run(1.0, 100.0), ("a", 1): run(3.0, 300.0), ("b", 0): run(2.0, None)}
    results["c", 0] = {"seconds": 1.0, "spent": None}
    found = speed.table(results)
    assert found.rows == [
        ["a", *["2.0"] * 5, "200 images", "50.0%"],
        ["b", *["2.0"] * 5, None, None],
    ]


def test_the_peak_is_of_the_longest_name_that_fits():
    assert peaks.peak("NVIDIA H200") == 989e12
    assert peaks.peak("NVIDIA H100 PCIe") == 756e12  # not the other H100's
    assert peaks.peak("TPU v5 lite") == 197e12
    assert peaks.peak("AMD EPYC") is None and peaks.peak_of_all() is None


def _launch(tmp_path, *flags):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import config_dict\n"
        f"def get_config(arg=''):\n    return config_dict.ConfigDict({DIGITS!r}).lock()\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    env |= {
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", LAUNCH, f"--config={config}", *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_binaries_keep_their_programs_in_the_users_cache_or_where_they_are_told(tmp_path):
    for name, flags, kept in (
        ("default", [], tmp_path / "home" / "guarded-distillation"),
        ("told", [f"--compilation_cache={tmp_path}/mine"], tmp_path / "mine"),
        ("off", ["--compilation_cache=off"], None),
    ):
        done = _launch(tmp_path, f"--workdir={tmp_path}/{name}", *flags)
        assert done.returncode == 0, done.stderr
        found = list(kept.rglob("*-cache")) if kept else []
        assert bool(found) == (kept is not None), name
        if name == "default":
            found[0].parent.rename(tmp_path / "moved")  # so that the others would make it anew
    assert not list((tmp_path / "home").rglob("*-cache"))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")

    def read(argv):
        cli.Flags(None).read(argv)

    before = jax.config.jax_compilation_cache_dir
    assert cli.exit_code(read, [f"--compilation_cache={tmp_path}/file/below"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: compilation_cache: got ") and err.count("\n") == 1
    assert cli.exit_code(read, ["--compilation_cache="]) == 2
    assert capsys.readouterr().err.startswith("error: compilation_cache: got ''; must be a dir")
    # A home that cannot be written to is nobody's wish.
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/file")
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation_cache.keep(None)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
