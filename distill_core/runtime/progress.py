"""Progress of a run: bar and console lines, metrics.jsonl, TensorBoard."""

import collections
import contextlib
import importlib
import io
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn

from distill_core.checkpoint import integrity
from distill_core.runtime import strict_json

REMOTE_SECONDS = 15.0
RATE_SECONDS = 30.0


class Pace:
    """Speed over the last 30 seconds, but at least over the last two calls of `advance`.

    Compilation does not count (whatever precedes the second call, once there are three), nor the
    time that `rest` ends: evaluating and saving.
    """

    def __init__(self):
        self._marks: collections.deque[tuple[int, float]] = collections.deque()  # (step, time)
        self._calls, self._rested = 0, 0.0

    def advance(self, step: int):
        """All steps up to `step` are dispatched."""
        if self._marks and self._marks[-1][0] == step:
            return
        self._calls += 1
        self._marks.append((step, self._now()))
        if self._calls == 3:  # the second step may have compiled again, for inputs placed anew
            self._marks.popleft()
        while len(self._marks) > 2 and self._now() - self._marks[1][1] >= RATE_SECONDS:
            self._marks.popleft()

    def rest(self):
        """The time since the last `advance` does not count."""
        if self._marks:
            self._rested += self._now() - self._marks[-1][1]

    def rate(self) -> float | None:
        """Steps per second; None before the second call of `advance`."""
        if len(self._marks) < 2:
            return None
        (first, began), (last, _) = self._marks[0], self._marks[-1]
        return (last - first) / max(self._now() - began, 1e-9)

    def _now(self) -> float:
        return time.monotonic() - self._rested


class Reporter:
    """A bar with rate and time left on a terminal, else plain lines; silent if not `active`.

    Attributes:
      speed: what is shown beside steps per second, in other units.
    """

    def __init__(self, num_steps: int, *, active: bool, label: str = "training"):
        self._console = Console(
            file=sys.stderr,
            highlight=False,
            soft_wrap=True,
            quiet=not active,
            force_jupyter=False,  # a notebook gets lines: its bar would need ipywidgets
        )
        self._num_steps, self._label = num_steps, label
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._pace = Pace()
        self.rest, self.rate, self.speed = self._pace.rest, self._pace.rate, ""

    def say(self, line: str):
        """Prints one line above the bar."""
        self._console.print(line, markup=False)

    def begin(self, step: int):
        """Starts the bar at the run's first step."""
        if self._console.is_terminal and not self._console.quiet:
            rate, note = "{task.fields[rate]}", "{task.fields[note]}"
            columns = "{task.description}", BarColumn(), MofNCompleteColumn(), rate
            self._bar = Progress(
                *columns, TimeElapsedColumn(), note, console=self._console, transient=True
            )
            self._task = self._bar.add_task(
                self._label, total=self._num_steps, completed=step, rate="", note=""
            )
            self._bar.start()

    def advance(self, step: int):
        """All steps up to `step` are dispatched."""
        self._pace.advance(step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=self._speed(step))

    def metrics(self, row: Mapping[str, Any]):
        """Shows a row of `metrics.jsonl`: of training beside the bar, of evaluations above it."""
        step, is_train = row["step"], row["split"] == "train"
        note = "  ".join(f"{k} {_short(v)}" for k, v in row.items() if k not in ("step", "split"))
        if is_train and self._bar is not None:
            self._bar.update(self._task, note=note)
            return
        line = f"step {step}/{self._num_steps}  {'' if is_train else row['split'] + ' '}{note}"
        if self._bar is None and is_train and (speed := self._speed(step)):
            line += f"  {speed}"
        self.say(line)

    @property
    def has_bar(self) -> bool:
        """Whether there is a bar now."""
        return self._bar is not None

    def end(self):
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _speed(self, step: int) -> str:
        """Rate and time left; "" if not yet known."""
        rate = self._pace.rate()
        if rate is None:
            return ""
        seconds = (self._num_steps - step) / max(rate, 1e-9)
        left = f"  {int(seconds // 60)}:{int(seconds % 60):02d} left" if seconds >= 1 else ""
        speed = f"  {self.speed}" if self.speed else ""
        return f"{rate:.1f} steps/s{speed}{left}"


def watched(items: Iterable[Any], label: str, *, start: int, total: int) -> Iterator[Any]:
    """The items, from number `start` on, with a bar on a terminal; else a line now and then."""
    reporter, said = Reporter(total, active=True, label=label), time.monotonic()
    reporter.say(f"{label}: {total:,} lines" + (f", goes on from {start:,}" if start else ""))
    reporter.begin(start)
    try:
        for i, item in enumerate(items, start):
            yield item
            if i % 1000 == 0:
                reporter.advance(i)
                if not reporter.has_bar and time.monotonic() - said > REMOTE_SECONDS:
                    reporter.say(f"{label}: {i:,} of {total:,} lines")
                    said = time.monotonic()
    finally:
        reporter.end()


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, each with `step` and `split`; without times, so
    that a resumed run writes the same file as an uninterrupted one."""

    def __init__(self, path: epath.PathLike, *, active: bool):
        self._file, self._active = _GrowingFile(path), active

    def rewind(self, step: int, *, evaluated: bool = True):
        """Drops lines after `step`, its evaluation unless `evaluated`, and an incomplete line."""
        if not self._active:
            return
        kept = []
        for line in self._file.read().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                is_train = row["split"] == "train"
                if row["step"] < step or (row["step"] == step and (evaluated or is_train)):
                    kept.append(f"{line}\n")
        self._file.replace("".join(kept))

    def write(self, row: Mapping[str, object]):
        """Adds one line."""
        if self._active:
            self._file.add(f"{strict_json.encode(row)}\n".encode())

    def flush(self):
        """Writes all lines to disk or to the cloud; called before each checkpoint."""
        if self._active:
            self._file.flush()


class TensorBoard:
    """An event file in `<workdir>/tensorboard`, if the `tensorboard` extra is installed.

    A run that starts from `step` replaces what earlier ones showed after it. TensorBoard's own
    writer is not used: it fails in a separate thread, and a kill loses what it buffers.
    """

    def __init__(self, directory: epath.PathLike, step: int, *, active: bool):
        self._file: _GrowingFile | None = None
        if not active:
            return
        try:
            self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        except ImportError:
            return
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = _GrowingFile(directory / name)
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log=started)

    def write(self, row: Mapping[str, Any]):
        """One event with a scalar per metric."""
        if self._file is None:
            return
        values = [
            self._summaries.Summary.Value(tag=f"{row['split']}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name not in ("step", "split")
        ]
        self._add(step=row["step"], summary=self._summaries.Summary(value=values))

    def flush(self):
        """As in `MetricsFile`."""
        if self._file is not None:
            self._file.flush()

    def _add(self, **fields):
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is not None:
            record = io.BytesIO()
            event = self._events.Event(wall_time=time.time(), **fields)
            RecordWriter(record).write(event.SerializeToString())
            self._file.add(record.getvalue())


class _GrowingFile:
    """A file that is appended to, or replaced. A write that fails names it.

    Object stores cannot append, and throttle frequent writes of one object: there the file is
    rewritten at most every few seconds, and when it is flushed.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._is_remote = "://" in str(path)
        self._content = b""  # of a remote file
        self._written_at = -math.inf

    def read(self) -> str:
        return self._path.read_text() if self._path.exists() else ""

    def replace(self, text: str):
        self._content = text.encode()
        if text != self.read():
            with self._naming():
                integrity.write_atomically(self._path, text)

    def add(self, data: bytes):
        if not self._is_remote:
            with self._naming(), self._path.open("ab") as file:
                file.write(data)
            return
        self._content += data
        if time.monotonic() - self._written_at >= REMOTE_SECONDS:
            self._write()

    def flush(self):
        if self._is_remote and self._content:
            self._write()

    def _write(self):
        with self._naming():
            self._path.write_bytes(self._content)
        self._written_at = time.monotonic()

    @contextlib.contextmanager
    def _naming(self):
        try:
            yield
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _short(value) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
