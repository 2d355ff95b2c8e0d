"""The training loop: resume → batch → step → log → evaluate → save. It knows no method."""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.checkpoint import integrity
from distill_core.runtime import parallel, process, progress
from distill_core.training import dispatch, inputs

PyTree = Any


class DivergedError(RuntimeError):
    """The loss, the gradient or a parameter became NaN or infinite."""


class StoppedError(RuntimeError):
    """A signal or a deadline ended the run; everything up to then is saved."""


class Layout(Protocol):
    """How a checkpoint keeps a state."""

    def split(self, state: PyTree) -> tuple[dict, PyTree]:
        """(parts, train) as `checkpoint.save` takes them."""
        ...

    def merge(self, state: PyTree, parts: dict, train: PyTree) -> PyTree:
        """The state with what was saved; the inverse of `split`."""
        ...


class Plan(NamedTuple):
    """What a run can only say once it holds its workdir and knows from which step it starts.

    Attributes:
      frozen: what the step reads, in place of `run`'s.
      ledger: step -> the ledger of a checkpoint of that step, in place of the metadata's.
      num_steps: where to end; at most `run`'s.
    """

    frozen: PyTree
    ledger: Callable[[int], Mapping[str, Any]]
    num_steps: int


def run(
    *,
    workdir: epath.PathLike,
    state: PyTree,
    step_fn: Callable,
    frozen: PyTree,
    batch_fn: Callable[[int], PyTree],
    num_steps: int,
    metadata: Mapping[str, Any],
    reads: Mapping[str, str],
    layout: Layout,
    evaluate: Callable[..., dict[str, float]] | None = None,
    plan: Callable[[int], Plan] | None = None,
    best: str | None = None,
    evaluated_on: str = "validation",
    mode: str = "jit",
    log_every: int = 50,
    eval_every: int = 1000,
    save_every: int = 1000,
    steps_per_dispatch: int = 1,
    label: str = "training",
) -> PyTree:
    """Trains to `num_steps`, from the newest whole checkpoint in `workdir` if there is one.

    Args:
      workdir: the run's own directory, local or `gs://…`.
      state: fresh state; has `step` and is what a resumed state is shaped like. A step that donates
        uses it up.
      step_fn: a wrapped step, `(state, frozen, batch) -> (state, metrics)`; may donate the state.
        With several steps a dispatch it takes those of `batch_fn`, and metrics are one an update.
      frozen: what the step reads and nothing trains, e.g. a teacher; never saved.
      batch_fn: step -> batch, a pure function, ready for `step_fn`; with several steps a dispatch
        the batches of `dispatch.length` steps.
      num_steps: updates in all.
      metadata: for the checkpoints; `metadata["config"]` is what a resume is checked against.
      reads: field of the config -> fingerprint of what it names; a resume is checked against it.
      layout: how a checkpoint keeps the state.
      evaluate: `evaluate(state, stopped) -> {name: value}`; may raise StoppedError if `stopped()`.
      plan: for private runs: step to start from -> `Plan`; not asked where nothing is left to do.
      best: name of the evaluated metric (higher is better) whose best checkpoint is kept, too; a
        new best is saved at once, whatever `save_every`.
      evaluated_on: the split that `evaluate` measures, for the log.
      mode: as for `parallel.wrap`.
      log_every, eval_every, save_every: in steps; the last step does all three.
      steps_per_dispatch: updates that one call of `step_fn` makes; the three above are multiples
        of it.
      label: what the bar calls this.

    Returns:
      The final state.

    Raises:
      InputError: the workdir is in use or cannot be written, the settings differ from those it was
        started with, a checkpoint does not fit the state, or dispatches would step over an end.
      DivergedError: after NaN or infinity; the last good checkpoint is kept.
      StoppedError: after SIGTERM, SIGINT or a deadline (`process.stop_after`), everything saved.
      CheckpointError: a checkpoint could not be written.
    """
    workdir = epath.Path(workdir)
    main = parallel.is_main()
    for name, every in (("log", log_every), ("eval", eval_every), ("save", save_every)):
        if every % steps_per_dispatch and every < num_steps:
            allowed = f"must divide {name}_every, {every}"
            raise config.InputError("steps_per_dispatch", steps_per_dispatch, allowed)
    report = progress.Reporter(num_steps, active=main, label=label)
    metrics = progress.MetricsFile(workdir / "metrics.jsonl", active=main)
    template = layout.split(state)
    params = [part["params"] for part in template[0].values()]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    where = f"{parallel.describe()}; {count:,} parameters; writing to {workdir}"

    def is_due(step, every):
        return step % every == 0 or step == num_steps

    with contextlib.ExitStack() as stack:
        stack.enter_context(process.hold(workdir))
        found = _newest(workdir, metadata["config"], reads, private=plan is not None)
        checkpoint.remove_unfinished(workdir)
        start, top, window, unevaluated = 0, None, _Window(), False
        ledger_at: Callable[[int], Mapping[str, Any]] | None = None
        if found is not None:
            path, old = found
            start, top, window = old["step"], old["best"], _Window(old["pending"], old["last_loss"])
            saved = checkpoint.restore(path, parts=template[0], train=template[1])
            state = layout.merge(state, *saved)
            # A signal may have ended the evaluation that was due at this step.
            unevaluated = (
                evaluate is not None and is_due(start, eval_every) and not old["evaluated"]
            )
            if start >= num_steps and not unevaluated:
                report.say(f"{where}; finished at step {start}, nothing to do")
                return parallel.place(state, mode)
        if plan is not None and start < num_steps:
            frozen, ledger_at, num_steps = plan(start)
        metrics.rewind(start, evaluated=not unevaluated)
        report.say(f"{where}; {f'resumes from step {start}' if start else 'starts from step 0'}")
        state = parallel.place(state, mode)
        frozen = parallel.place(frozen, mode)
        board = progress.TensorBoard(workdir / "tensorboard", start, active=main)
        stack.callback(report.end)
        stack.callback(metrics.flush)
        stack.callback(board.flush)
        stopped = stack.enter_context(process.watch_signals())
        saved_at = evaluated_at = start

        def record(row):
            metrics.write(row)
            board.write(row)
            report.metrics(row)

        def tidy():
            if main:
                newest = set(checkpoint.steps(workdir)[-2:])
                checkpoint.prune(workdir, newest | ({top["step"]} if top else set()))

        def save(step):
            nonlocal saved_at
            window.fetch()
            metrics.flush()
            board.flush()
            parts, train = layout.split(state)
            _check_finite(parts, step, window.last_loss)
            so_far = {
                **metadata,
                "pending": window.pending,
                "last_loss": window.last_loss,
                "best": top,
                "evaluated": evaluated_at == step,
            }
            if ledger_at is not None:
                so_far["ledger"] = dict(ledger_at(step))
            checkpoint.save(workdir, step, parts=parts, train=train, metadata=so_far)
            saved_at = step
            tidy()

        def evaluate_at(step):
            """Returns whether this is the best so far."""
            nonlocal top, evaluated_at
            window.fetch()  # no evaluation of a diverged state
            assert evaluate is not None
            values = evaluate(state, stopped)
            record({"step": step, "split": evaluated_on, **values})
            evaluated_at = step
            if best is None or not values[best] > (top["value"] if top else -math.inf):
                return False
            top = {"step": step, "value": values[best]}
            return True

        try:
            if unevaluated:
                evaluate_at(start)
                metrics.flush()
                if main:
                    integrity.amend(path, {"best": top, "evaluated": True})
                tidy()
            report.begin(start)
            step = start
            while step < num_steps:
                if parallel.should_stop(stopped()):
                    raise StoppedError
                state, values = step_fn(state, frozen, batch_fn(step))
                step += dispatch.length(step, steps_per_dispatch, num_steps)
                window.add(step, values)
                pauses = is_due(step, save_every) or (evaluate and is_due(step, eval_every))
                if pauses:
                    window.fetch()  # the updates' own time ends here
                report.advance(step)
                if is_due(step, log_every):
                    record({"step": step, "split": "train", **window.close()})
                is_best = False
                if evaluate and is_due(step, eval_every):
                    is_best = evaluate_at(step)
                if is_best or is_due(step, save_every):
                    save(step)
                if pauses:
                    report.rest()
            if stopped():
                raise StoppedError
        except StoppedError:
            step = int(state.step)
            if step != saved_at:
                save(step)
            cause = "the deadline" if process.is_overdue() else "a signal"
            raise StoppedError(f"stopped by {cause} at step {step}; saved in {workdir}") from None
    return state


class _Window:
    """Per-step metrics since the last log line, fetched from the devices when asked for."""

    def __init__(self, pending: Sequence[dict[str, float]] = (), last_loss: float | None = None):
        # A checkpoint holds null where a metric was not finite.
        self.pending = [
            {k: math.nan if v is None else v for k, v in row.items()} for row in pending
        ]
        self.last_loss = last_loss
        self._on_device: list[tuple[int, dict]] = []

    def add(self, step: int, values: Mapping[str, jax.Array]):
        """Of the dispatch that ended at `step`: scalars, or [K] of several updates."""
        self._on_device.append((step, dict(values)))

    def fetch(self):
        for last, arrays in self._on_device:
            # By NumPy: JAX's own `item` and `device_get` are 8 and 30 times as slow for scalars.
            columns = {name: np.asarray(value).reshape(-1) for name, value in arrays.items()}
            count = max(map(len, columns.values()), default=0)
            for i in range(count):
                values = {name: column[i].item() for name, column in columns.items()}
                if not all(math.isfinite(values.get(name, 0.0)) for name in ("loss", "grad_norm")):
                    raise DivergedError(_diverged(last - count + i + 1, self.last_loss))
                self.last_loss = values.get("loss")  # a private run has none to tell
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


def _check_finite(parts: PyTree, step: int, last_loss: float | None):
    for leaf in jax.tree.leaves(checkpoint.to_host(parts)):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise DivergedError(_diverged(step, last_loss))


def _newest(workdir: epath.Path, settings: Mapping[str, Any], reads, *, private: bool):
    """The newest whole checkpoint, newer damaged ones set aside; None if there is none.

    Changes nothing before settings and data are found to fit. A private run's noise may have been
    drawn for steps before its first checkpoint, so its data counts from its very start.
    """
    folder, saved = workdir / checkpoint.FOLDER, checkpoint.steps(workdir)
    found = integrity.first_whole([folder / str(step) for step in reversed(saved)])
    if found is not None:
        config.check_resume(found[1]["config"], settings)
        saved = saved[saved.index(int(found[0].name)) + 1 :]
    unsaid = ""
    if found is not None or private:
        unsaid = inputs.check(workdir, reads, settings, resumes=found is not None)
    resumes = found[1]["step"] if found else None
    parallel.roll_call({"settings": settings, "reads": dict(reads), "resumes": resumes})
    if parallel.is_main():
        if unsaid:
            print(unsaid, file=sys.stderr, flush=True)
        if found is None or unsaid:
            inputs.remember(workdir, reads)
        for step in saved:
            integrity.set_aside(folder / str(step))
    return found
