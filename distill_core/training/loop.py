"""The training loop of every method: resume → batch → step → log → evaluate → save."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.checkpoint import integrity
from distill_core.runtime import clock, parallel, peaks, process, profiling, progress
from distill_core.training import inputs

PyTree = Any


class DivergedError(RuntimeError):
    """The loss, the gradient or a parameter became NaN or infinite."""


class StoppedError(RuntimeError):
    """A signal or a deadline ended the run; everything up to then is saved."""


class Layout(Protocol):
    """How a checkpoint stores a state; see `run_state.Layout`.

    `split` gives (parts, train) as `checkpoint.save` takes them, and `merge` is its inverse.
    """

    def split(self, state: PyTree) -> tuple[dict, PyTree]: ...

    def merge(self, state: PyTree, parts: dict, train: PyTree) -> PyTree: ...


class Plan(NamedTuple):
    """What is known only once the run holds its workdir and knows at which step it starts.

    Attributes:
      frozen: what the step reads, in place of the program's.
      ledger: step -> the ledger of a checkpoint of that step, in place of the metadata's.
      num_steps: where to end; at most `run`'s.
    """

    frozen: PyTree
    ledger: Callable[[int], Mapping[str, Any]]
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a run logs, evaluates and saves, in steps; the last step does all three."""

    log_every: int = 50
    eval_every: int = 1000
    save_every: int = 1000


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, to tell its speed.

    Attributes:
      unit: of the examples, "images" or "tokens".
      per_step: examples in a step, over all devices.
      flops: (state, frozen) -> operations of a step over all devices, called where the devices'
        peak is known; None where they are not known themselves.
    """

    unit: str
    per_step: int
    flops: Callable[[PyTree, PyTree], float] | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes.

    Attributes:
      step_fn: a wrapped step, `(state, frozen, batch) -> (state, metrics)`; may donate the state.
        With several steps per dispatch metrics have one value per step.
      batch_fn: step -> batch for `step_fn`, a pure function; with several steps per dispatch the
        batches of `dispatch_length` steps.
      frozen: what the step reads and nothing trains, e.g. a teacher; never saved.
      mode: as for `parallel.wrap`.
      steps_per_dispatch: steps that one call of `step_fn` takes; divides the cadence.
      ahead: whether a batch may be made while the step before it runs.
      work: what a step does; None: its speed is told in steps alone.
    """

    step_fn: Callable
    batch_fn: Callable[[int], PyTree]
    frozen: PyTree
    mode: str = "jit"
    steps_per_dispatch: int = 1
    ahead: bool = False
    work: Work | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """What the checkpoints of a run hold, and what a resume is checked against.

    Attributes:
      layout: how they store the state.
      metadata: of every checkpoint; a resume must have the same `metadata["config"]`.
      reads: field of the config -> fingerprint of what it names, likewise.
    """

    layout: Layout
    metadata: Mapping[str, Any]
    reads: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The evaluation of a run while it trains.

    Attributes:
      measure: `measure(state, stopped) -> {name: value}`; may raise StoppedError if `stopped()`.
      best: name of the metric whose best checkpoint is kept, too; a new best is saved at once,
        whatever `save_every`.
      lowest: whether the lowest value is the best.
      split: the data that it is measured on, for the log.
    """

    measure: Callable[..., dict[str, float]]
    best: str | None = None
    lowest: bool = False
    split: str = "validation"


def run(
    workdir: epath.PathLike,
    state: PyTree,
    program: Program,
    checkpoints: Checkpoints,
    *,
    num_steps: int,
    cadence: Cadence,
    monitor: Monitor | None = None,
    plan: Callable[[int], Plan] | None = None,
) -> PyTree:
    """Trains to `num_steps`, from the newest complete checkpoint in `workdir` if there is one.

    Args:
      workdir: the run's own directory, local or `gs://…`.
      state: fresh state; has the structure of a resumed one. A step that donates uses it up.
      program: what it computes.
      checkpoints: what it saves.
      num_steps: steps in all.
      cadence: how often it logs, evaluates and saves.
      monitor: its evaluation.
      plan: first step -> `Plan`; not called if the run is already finished.

    Returns:
      The final state.

    Raises:
      InputError: the workdir is in use or cannot be written, the settings differ from those it was
        started with, a checkpoint does not fit the state, or `steps_per_dispatch` does not divide
        the cadence.
      DivergedError: after NaN or infinity; the last good checkpoint is kept.
      StoppedError: after SIGTERM, SIGINT or a deadline (`process.stop_after`), everything saved.
      CheckpointError: a checkpoint could not be written.
    """
    several = program.steps_per_dispatch
    for name, every in vars(cadence).items():
        if every % several and every < num_steps:
            raise config.InputError("steps_per_dispatch", several, f"must divide {name}, {every}")
    profiling.check(0, num_steps)
    workdir = epath.Path(workdir)
    one = _Run(workdir, state, program, checkpoints, num_steps, cadence, monitor)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process.hold(workdir))
        stack.callback(one.settle)  # nothing is written any more when the workdir is free
        one.resume(private=plan is not None)
        profiling.check(one.step, num_steps)
        if one.step >= num_steps and not (one.keeps_first or one.unevaluated):
            one.say(f"finished at step {one.step}, nothing to do")
            return parallel.place(one.state, program.mode)
        one.begin(plan)
        stack.callback(one.report.end)
        stack.callback(one.metrics.flush)
        stack.callback(one.board.flush)
        stack.callback(one.tracer.end, one.finished)
        return one.train(stack.enter_context(process.watch_signals()))


def dispatch_length(step: int, steps_per_dispatch: int, num_steps: int) -> int:
    """How many steps the dispatch takes that begins after `step` steps.

    It ends at a multiple of `steps_per_dispatch`, wherever the run resumed, or at `num_steps`.

    >>> dispatch_length(0, 4, 10), dispatch_length(6, 4, 10), dispatch_length(8, 4, 10)
    (4, 2, 2)
    """
    return min(steps_per_dispatch - step % steps_per_dispatch, num_steps - step)


class _Run:
    """A run in the workdir that it holds.

    Attributes:
      step: steps done so far.
      top: {"step", "value"} of the best evaluation; None before the first, or without `best`.
      saving: the newest checkpoint, which may still be written in the background.
      unevaluated: the evaluation due at the checkpoint that it resumes from was interrupted.
    """

    def __init__(
        self,
        workdir: epath.Path,
        state: PyTree,
        program: Program,
        checkpoints: Checkpoints,
        num_steps: int,
        cadence: Cadence,
        monitor: Monitor | None,
    ):
        self.workdir, self.state, self.program = workdir, state, program
        self.checkpoints, self.cadence, self.monitor = checkpoints, cadence, monitor
        self.num_steps, self.frozen = num_steps, program.frozen
        self.keeps_first = num_steps == 0  # a run of no steps keeps the first weights as they are
        self.ledger_at: Callable[[int], Mapping[str, Any]] | None = None
        self.step = self.saved_at = self.evaluated_at = 0
        self.top: dict[str, Any] | None = None
        self.saving: checkpoint.Saving | None = None
        self.unevaluated, self.window = False, _Window()
        self.batch: tuple[int, PyTree] | None = None  # made ahead, and of which step
        self.flops = 0.0  # of a step, once counted
        self.main = parallel.is_main()
        label = checkpoints.metadata["method"]
        self.report = progress.Reporter(num_steps, active=self.main, label=label)
        self.metrics = progress.MetricsFile(workdir / "metrics.jsonl", active=self.main)

    def resume(self, *, private: bool):
        """Restores the newest complete checkpoint, if there is one."""
        parts, train = self.checkpoints.layout.split(self.state)
        settings = self.checkpoints.metadata["config"]
        found = _newest(self.workdir, settings, self.checkpoints.reads, private=private)
        checkpoint.remove_unfinished(self.workdir)
        if found is None:
            return
        path, old = found
        self.step = self.saved_at = self.evaluated_at = old["step"]
        self.top, self.window = old["best"], _Window(old["pending"], old["last_loss"])
        saved = checkpoint.restore(path, parts=parts, train=train)
        self.state = self.checkpoints.layout.merge(self.state, *saved)
        # A signal may have ended the evaluation due at this step.
        self.unevaluated = self.evaluates() and not old["evaluated"]

    def begin(self, plan: Callable[[int], Plan] | None):
        """Opens the logs, places everything on the devices and reports the first step."""
        if plan is not None and self.step < self.num_steps:
            self.frozen, self.ledger_at, self.num_steps = plan(self.step)
        self.metrics.rewind(self.step, evaluated=not self.unevaluated)
        self.say(f"resumes from step {self.step}" if self.step else "starts from step 0")
        mode = self.program.mode
        self.state, self.frozen = (parallel.place(x, mode) for x in (self.state, self.frozen))
        place = self.workdir / "tensorboard"
        self.board = progress.TensorBoard(place, self.step, active=self.main)
        self.tracer = profiling.Tracer(place)
        self.peak = peaks.peak_of_all()

    def train(self, stopped: Callable[[], bool]) -> PyTree:
        """Trains to the end; saves where it is stopped."""
        try:
            if self.unevaluated:
                self.evaluate(stopped)
                self.metrics.flush()
                if self.main:
                    path = self.workdir / checkpoint.FOLDER / str(self.step)
                    integrity.amend(path, {"best": self.top, "evaluated": True})
                self.tidy(self.top)
            self.report.begin(self.step)
            clock.first_step()
            if self.keeps_first:
                self.save()
            while self.step < self.num_steps:
                if parallel.should_stop(stopped()):
                    raise StoppedError
                self.advance(stopped)
            self.settle()
            if stopped():
                raise StoppedError
        except StoppedError:
            if self.step != self.saved_at:
                self.save()
            self.settle()
            cause = "the deadline" if process.is_overdue() else "a signal"
            message = f"stopped by {cause} at step {self.step}; saved in {self.workdir}"
            raise StoppedError(message) from None
        return self.state

    def advance(self, stopped: Callable[[], bool]):
        """One dispatch, and what is due after it."""
        program, (made_for, batch) = self.program, self.batch or (None, None)
        if made_for != self.step:
            batch = program.batch_fn(self.step)
        count = dispatch_length(self.step, program.steps_per_dispatch, self.num_steps)
        with self.tracer.step(self.step, count, self.finished):
            self.state, values = program.step_fn(self.state, self.frozen, batch)
        self.step += count
        if program.ahead and self.step < self.num_steps:  # while the device is busy
            self.batch = self.step, program.batch_fn(self.step)
        self.window.add(self.step, values)
        saves, evaluates = self.is_due(self.cadence.save_every), self.evaluates()
        if saves or evaluates:
            self.window.fetch()  # so that the rate counts the steps alone
        self.report.advance(self.step)
        if self.is_due(self.cadence.log_every):
            self.record({"step": self.step, "split": "train", **self.window.close()})
            self.tell_speed()
        is_best = evaluates and self.evaluate(stopped)
        if is_best or saves:
            self.save()
        if saves or evaluates:
            self.report.rest()

    def finished(self):
        """Waits for all steps so far."""
        jax.block_until_ready(self.state)

    def tell_speed(self):
        """On the bar, to TensorBoard and for the record of the time; not in `metrics.jsonl`, which
        a resumed run writes again bit by bit."""
        work, rate = self.program.work, self.report.rate()
        if work is None or rate is None:
            return
        found = {"unit": work.unit, "per_second": rate * work.per_step}
        if self.peak is not None and work.flops is not None:
            self.flops = self.flops or work.flops(self.state, self.frozen)
            found["share_of_peak"] = rate * self.flops / self.peak
        share = found.get("share_of_peak")
        told = {f"{work.unit}_per_second": found["per_second"]}
        told |= {} if share is None else {"share_of_peak": share}
        self.board.write({"step": self.step, "split": "speed", **told})
        self.report.speed = f"{found['per_second']:,.0f} {work.unit}/s"
        self.report.speed += "" if share is None else f", {share:.1%} of peak"
        clock.note_speed(found)

    def evaluate(self, stopped: Callable[[], bool]) -> bool:
        """Evaluates the state; returns whether it is the best so far."""
        assert self.monitor is not None
        self.window.fetch()  # raises if the state has diverged
        values = self.monitor.measure(self.state, stopped)
        self.record({"step": self.step, "split": self.monitor.split, **values})
        self.evaluated_at = self.step
        best, sign = self.monitor.best, -1 if self.monitor.lowest else 1
        before = sign * self.top["value"] if self.top else -math.inf
        if best is None or not sign * values[best] > before:
            return False
        self.top = {"step": self.step, "value": values[best]}
        return True

    def save(self):
        """Begins a checkpoint of this step, unless the state has diverged."""
        self.window.fetch()
        self.settle()
        with clock.counted("saving"):
            self._save()

    def settle(self):
        """Waits for the checkpoint in the background; raises CheckpointError if it failed."""
        saving, self.saving = self.saving, None
        if saving is not None:
            with clock.counted("saving"):
                saving.wait()

    def _save(self):
        self.metrics.flush()
        self.board.flush()
        parts, train = self.checkpoints.layout.split(self.state)
        if checkpoint.not_finite(parts):
            raise DivergedError(_diverged(self.step, self.window.last_loss))
        metadata = {
            **self.checkpoints.metadata,
            "pending": self.window.pending,
            "last_loss": self.window.last_loss,
            "best": self.top,
            "evaluated": self.evaluated_at == self.step,
        }
        if self.ledger_at is not None:
            metadata["ledger"] = dict(self.ledger_at(self.step))
        then = functools.partial(self.tidy, self.top)
        self.saving = checkpoint.save(
            self.workdir, self.step, parts=parts, train=train, metadata=metadata, then=then
        )
        self.saved_at = self.step

    def tidy(self, best: Mapping[str, Any] | None):
        """Deletes all checkpoints but the newest two and the best."""
        if self.main:
            newest = set(checkpoint.steps(self.workdir)[-2:])
            checkpoint.prune(self.workdir, newest | ({best["step"]} if best else set()))

    def record(self, row: Mapping[str, Any]):
        self.metrics.write(row)
        self.board.write(row)
        self.report.metrics(row)

    def say(self, ending: str):
        """Prints the devices, the number of parameters, the workdir and `ending`."""
        parts, _ = self.checkpoints.layout.split(self.state)
        params = [part["params"] for part in parts.values()]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        where = f"{parallel.describe()}; {count:,} parameters; writing to {self.workdir}"
        self.report.say(f"{where}; {ending}")

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.num_steps

    def evaluates(self) -> bool:
        """Whether an evaluation is due at this step."""
        return self.monitor is not None and self.is_due(self.cadence.eval_every)


class _Window:
    """Per-step metrics since the last log line, fetched from the devices on demand."""

    def __init__(self, pending: Sequence[dict[str, float]] = (), last_loss: float | None = None):
        # A checkpoint stores a metric that was not finite as null.
        self.pending = [
            {k: math.nan if v is None else v for k, v in row.items()} for row in pending
        ]
        self.last_loss = last_loss
        self._on_device: list[tuple[int, dict]] = []

    def add(self, step: int, values: Mapping[str, jax.Array]):
        """Of the dispatch that ended at `step`: scalars, or [K] of several steps."""
        self._on_device.append((step, dict(values)))

    def fetch(self):
        for last, arrays in self._on_device:
            # NumPy, as JAX's own `item` and `device_get` are 8 and 30 times as slow for scalars.
            columns = {name: np.asarray(value).reshape(-1) for name, value in arrays.items()}
            count = max(map(len, columns.values()), default=0)
            for i in range(count):
                values = {name: column[i].item() for name, column in columns.items()}
                if not all(math.isfinite(values.get(name, 0.0)) for name in ("loss", "grad_norm")):
                    raise DivergedError(_diverged(last - count + i + 1, self.last_loss))
                self.last_loss = values.get("loss")  # a private run reports none
                self.pending.append(values)
        self._on_device = []

    def close(self) -> dict[str, float]:
        self.fetch()
        found: dict[str, list[float]] = {}
        for row in self.pending:  # a step may have metrics that another lacks
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        self.pending = []
        return {name: sum(values) / len(values) for name, values in found.items()}


def _diverged(step: int, last_loss: float | None) -> str:
    last = "none" if last_loss is None else f"{last_loss:.6g}"
    return f"diverged at step {step}: NaN or infinity; last finite loss {last}"


def _newest(workdir: epath.Path, settings: Mapping[str, Any], reads, *, private: bool):
    """The newest complete checkpoint, or None; damaged ones that are newer are set aside.

    Changes nothing before settings and data are found to match. A private run's noise may have been
    drawn for steps before its first checkpoint, so its data is checked even without one.
    """
    folder, saved = workdir / checkpoint.FOLDER, checkpoint.steps(workdir)
    found = integrity.first_whole([folder / str(step) for step in reversed(saved)])
    if found is not None:
        config.check_resume(found[1]["config"], settings)
        saved = saved[saved.index(int(found[0].name)) + 1 :]
    warning = ""
    if found is not None or private:
        warning = inputs.check(workdir, reads, settings, resumes=found is not None)
    resumes = found[1]["step"] if found else None
    parallel.roll_call({"settings": settings, "reads": dict(reads), "resumes": resumes})
    if parallel.is_main():
        if warning:
            print(warning, file=sys.stderr, flush=True)
        if found is None or warning:
            inputs.remember(workdir, reads)
        for step in saved:
            integrity.set_aside(folder / str(step))
    return found
