"""What a person sees of a run, and metrics.jsonl."""

import json
import sys
import time
from collections.abc import Mapping

from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from distill_core import checkpoint


class Reporter:
    """A bar with rate and time left on a terminal, plain lines otherwise; silent if not `active`.

    Made for one run over `num_steps`; processes other than the first pass `active=False`.
    """

    def __init__(self, num_steps: int, *, active: bool, label: str = "training"):
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=not active)
        self._num_steps, self._label = num_steps, label
        self._bar = self._task = None
        self._began, self._first_step = time.monotonic(), 0

    def say(self, line: str):
        """Prints one line above the bar."""
        self._console.print(line, markup=False)

    def begin(self, step: int):
        """Starts the clock at the step that the run starts from."""
        self._began, self._first_step = time.monotonic(), step
        if self._console.is_terminal and not self._console.quiet:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
            columns += [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(
                self._label, total=self._num_steps, completed=step, rate="", note=""
            )
            self._bar.start()

    def advance(self, step: int):
        """One more step was dispatched."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=self._rate(step))

    def metrics(self, step: int, values: Mapping[str, float]):
        """Shows metrics of a log line."""
        note = "  ".join(f"{k} {_short(v)}" for k, v in values.items() if not isinstance(v, str))
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            left = self._time_left(step)
            self.say(f"step {step}/{self._num_steps}  {note}  {self._rate(step)}{left}")

    def end(self):
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, step: int) -> str:
        return f"{(step - self._first_step) / max(time.monotonic() - self._began, 1e-9):.1f} steps/s"

    def _time_left(self, step: int) -> str:
        done = step - self._first_step
        seconds = (self._num_steps - step) * (time.monotonic() - self._began) / max(done, 1)
        return f"  {int(seconds // 60)}:{int(seconds % 60):02d} left" if seconds >= 1 else ""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with `step` and `split`; no times in it, so
    that a resumed run writes the same file as a straight one."""

    def __init__(self, path: epath.PathLike, *, active: bool):
        self._path, self._active = epath.Path(path), active
        self._lines: list[str] = []

    def rewind(self, step: int):
        """Forgets lines after `step`, and a line cut short by a kill."""
        if not (self._active and self._path.exists()):
            return
        text = self._path.read_text()
        kept = [line for line in text.splitlines() if _step_of(line) <= step]
        self._lines = kept
        if "".join(f"{line}\n" for line in kept) != text:
            self._write_all()

    def has(self, step: int, split: str) -> bool:
        """Whether a line for this step and split is there."""
        found = (json.loads(line) for line in reversed(self._lines))
        return any(row["step"] == step and row["split"] == split for row in found)

    def write(self, row: Mapping[str, object]):
        """Appends one line. Object stores cannot append: there the file is written anew."""
        if not self._active:
            return
        line = json.dumps(row)
        self._lines.append(line)
        if "://" in str(self._path):
            self._write_all()
        else:
            with open(self._path, "a") as file:
                file.write(line + "\n")

    def _write_all(self):
        checkpoint.write_atomically(self._path, "".join(f"{line}\n" for line in self._lines))


class TensorBoard:
    """Event files in `<workdir>/tensorboard`, if the `tensorboard` extra is installed."""

    def __init__(self, directory: epath.PathLike, *, active: bool):
        self._writer = None
        if active:
            try:
                from tensorboard.summary.writer.event_file_writer import EventFileWriter
            except ImportError:
                return
            self._writer = EventFileWriter(str(directory))

    def write(self, row: Mapping[str, object]):
        """One event with a scalar a metric."""
        if self._writer is None:
            return
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=f"{row['split']}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name not in ("step", "split")
        ]
        event = event_pb2.Event(
            wall_time=time.time(), step=row["step"], summary=summary_pb2.Summary(value=values)
        )
        self._writer.add_event(event)

    def close(self):
        """Flushes."""
        if self._writer is not None:
            self._writer.close()


def _short(value) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
