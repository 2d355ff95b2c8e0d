"""What a person sees of a run: plain lines, the bar of a terminal, metrics.jsonl, TensorBoard."""

import json
import os
import pty
import re
import sys
import threading

import pytest

from distill_core.runtime import progress

ROWS = [
    {"step": 2, "split": "train", "loss": 0.25, "accuracy": 0.5},
    {"step": 4, "split": "train", "loss": 1234.5, "accuracy": 0.75},
    {"step": 4, "split": "validation", "accuracy": 0.625},
]


def _report(num_steps=4, **settings):
    reporter = progress.Reporter(num_steps, **{"active": True, "label": "nasty.train", **settings})
    reporter.say("8 cpu devices [bold] writing to /runs/[1]")
    reporter.begin(0)
    for row in ROWS:
        reporter.advance(row["step"])
        reporter.metrics(row)
    reporter.end()


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]`: what time it is, in seconds."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("several", [1, 10])
def test_plain_lines_say_how_long_it_will_take_without_compilation(capfd, clock, several):
    reporter = progress.Reporter(1000, active=True)
    reporter.begin(200)  # a resumed run: the steps of the first one do not count
    for dispatch, seconds in enumerate([60.0, 20.0, *[0.5 * several] * 10]):
        clock[0] += seconds
        reporter.advance(200 + several * (dispatch + 1))
    step = 200 + several * 12
    reporter.metrics({"step": step, "split": "train", "loss": 1.0})
    reporter.metrics({"step": step, "split": "test", "accuracy": 0.5})
    left = (1000 - step) // 2
    shown = (
        f"2.0 steps/s  {left // 60}:{left % 60:02d} left\nstep {step}/1000  test accuracy 0.5000"
    )
    assert capfd.readouterr() == ("", f"step {step}/1000  loss 1.0000  {shown}\n")


def test_a_rate_is_that_of_the_latest_half_minute(clock):
    pace = progress.Pace()
    assert pace.rate() is None
    for step in range(1, 100):  # a slow start, then ten times as fast
        clock[0] += 10.0 if step < 50 else 1.0
        pace.advance(step)
    assert pace.rate() == pytest.approx(1.0)
    clock[0] += 1000.0  # a step that takes long: the last two calls count
    pace.advance(100)
    assert 0.0009 < pace.rate() < 0.04


def test_evaluating_and_saving_is_no_time_of_updates(clock):
    pace = progress.Pace()
    for step in range(1, 200):
        clock[0] += 0.1
        pace.advance(step)
        if step % 20 == 0:
            clock[0] += 50.0
            pace.rest()
            assert pace.rate() == pytest.approx(10.0) or step < 4
    assert pace.rate() == pytest.approx(10.0)


def _report_to_a_terminal(monkeypatch) -> str:
    """What a terminal was shown."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    chunks = []

    def read():
        try:
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)
        except OSError:
            pass  # closed at the other end

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        _report()
    reader.join()
    os.close(ours)
    return b"".join(chunks).decode()


def test_a_bar_on_a_terminal_with_evaluations_above_it(monkeypatch):
    shown = _report_to_a_terminal(monkeypatch)
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > -1, "the cursor comes back"
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "8 cpu devices [bold] writing to /runs/[1]" in shown
    assert re.search(r"nasty\.train ━+ 4/4 [\d.]+ steps/s .*loss 1234  accuracy 0.7500", shown)
    assert re.search(r"\rstep 4/4  validation accuracy 0\.6250\s", shown)
    assert "step 4/4  loss" not in shown


# -- metrics.jsonl -----------------------------------------------------------------------------


def _metrics_file(path, *rows):
    metrics = progress.MetricsFile(path, active=True)
    for row in rows:
        metrics.write(row)
    return metrics


@pytest.mark.parametrize(
    ("step", "evaluated", "kept"),
    [(0, True, 0), (2, True, 1), (3, True, 1), (4, True, 3), (4, False, 2), (9, True, 3)],
)
def test_rewinding_forgets_what_came_after_a_checkpoint(tmp_path, step, evaluated, kept):
    path = tmp_path / "metrics.jsonl"
    _metrics_file(path, *ROWS)
    metrics = progress.MetricsFile(path, active=True)
    metrics.rewind(step, evaluated=evaluated)
    metrics.write({"step": 10, "split": "train", "loss": 0.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[:-1] == ROWS[:kept]
    assert rows[-1]["step"] == 10


@pytest.mark.parametrize(
    "rest", ['{"step": 4, "split": "tr', "\x00\x00", "null\n", "[4]\n", '{"step": 4}\n', "\n"]
)
def test_rewinding_forgets_a_line_that_was_cut_short(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    _metrics_file(path, ROWS[0])
    whole = path.read_text()
    path.write_text(whole + rest)
    progress.MetricsFile(path, active=True).rewind(5)
    assert path.read_text() == whole


def test_the_other_processes_say_and_write_nothing(tmp_path, capfd):
    _report(active=False)
    assert capfd.readouterr() == ("", "")
    metrics = progress.MetricsFile(tmp_path / "metrics.jsonl", active=False)
    metrics.rewind(0)
    metrics.write(ROWS[0])
    board = progress.TensorBoard(tmp_path / "tensorboard", 0, active=False)
    board.write(ROWS[0])
    assert not list(tmp_path.iterdir())


def test_in_the_cloud_lines_are_written_seldom_but_whenever_it_matters(bucket, monkeypatch):
    path, clock = "gs://bucket/run/metrics.jsonl", [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def written():
        return [json.loads(line) for line in bucket.cat(path).splitlines()]

    metrics = _metrics_file(path, *ROWS[:2])
    assert written() == ROWS[:1]
    metrics.flush()
    assert written() == ROWS[:2]
    clock[0] += progress.REMOTE_SECONDS
    metrics.write(ROWS[2])
    assert written() == ROWS
    resumed = progress.MetricsFile(path, active=True)
    resumed.rewind(2)
    assert written() == ROWS[:1]
    resumed.write(ROWS[1])
    resumed.flush()
    assert written() == ROWS[:2]


# -- TensorBoard -------------------------------------------------------------------------------


def test_tensorboard_shows_a_resumed_run_as_one(tmp_path):
    """What a killed run wrote after its last checkpoint is replaced, not doubled."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, (2, 4, 6)), (3, (4, 6, 8))):
        board = progress.TensorBoard(tmp_path, start, active=True)
        for step in steps:
            board.write({"step": step, "split": "train", "loss": float(start)})
        board.write({"step": steps[-1], "split": "validation", "accuracy": 0.625, "loss": 0.5})
    found = accumulators.EventAccumulator(str(tmp_path)).Reload()
    shown = {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    assert shown == {
        "train/loss": [(2, 0.0), (4, 3.0), (6, 3.0), (8, 3.0)],
        "validation/accuracy": [(8, 0.625)],
        "validation/loss": [(8, 0.5)],
    }


def test_without_the_extra_there_is_no_event_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    board = progress.TensorBoard(tmp_path / "tensorboard", 0, active=True)
    board.write(ROWS[0])
    assert not (tmp_path / "tensorboard").exists()
