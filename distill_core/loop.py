"""The training loop: resume → batch → step → log → evaluate → save. It knows no method."""

import contextlib
import fcntl
import math
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config, parallel, progress

PyTree = Any


class DivergedError(RuntimeError):
    """The loss, the gradient or a parameter became NaN or infinite."""


class StoppedError(RuntimeError):
    """A signal ended the run; everything up to then is saved."""


def run(
    *,
    workdir: epath.PathLike,
    state: PyTree,
    step_fn: Callable,
    frozen: PyTree,
    batch_fn: Callable[[int], PyTree],
    num_steps: int,
    metadata: Mapping[str, Any],
    split: Callable[[PyTree], tuple[dict, PyTree]],
    merge: Callable[[PyTree, dict, PyTree], PyTree],
    evaluate: Callable[..., dict[str, float]] | None = None,
    best: str | None = None,
    mode: str = "jit",
    log_every: int = 50,
    eval_every: int = 1000,
    save_every: int = 1000,
    label: str = "training",
) -> PyTree:
    """Trains to `num_steps`, from the newest whole checkpoint in `workdir` if there is one.

    Args:
      workdir: the run's own directory, local or `gs://…`.
      state: fresh state; has `step` and is what a resumed state is shaped like.
      step_fn: a wrapped step, `(state, frozen, batch) -> (state, metrics)`; may donate the state.
      frozen: what the step reads and nothing trains, e.g. a teacher; never saved.
      batch_fn: step -> batch, a pure function, ready for `step_fn`.
      num_steps: updates in all.
      metadata: for the checkpoints; `metadata["config"]` is what a resume is checked against.
      split: state -> (parts, train) as `checkpoint.save` takes them.
      merge: (state, parts, train) -> state, the inverse.
      evaluate: `evaluate(state, stopped) -> {name: value}`; may raise StoppedError if `stopped()`.
      best: name of the evaluated metric (higher is better) whose best checkpoint is kept, too.
      mode: as for `parallel.wrap`.
      log_every, eval_every, save_every: in steps; the last step does all three.
      label: what the bar calls this.

    Returns:
      The final state.

    Raises:
      InputError: the workdir is in use, or the settings differ from those it was started with.
      DivergedError: after NaN or infinity; the last good checkpoint is kept.
      StoppedError: after SIGTERM or SIGINT, everything saved.
      CheckpointError: a checkpoint could not be written.
    """
    workdir = epath.Path(workdir)
    main = parallel.is_main()
    report = progress.Reporter(num_steps, active=main, label=label)
    metrics = progress.MetricsFile(workdir / "metrics.jsonl", active=main)
    template = split(state)
    count = sum(leaf.size for part in template[0].values() for leaf in jax.tree.leaves(part["params"]))
    where = f"{parallel.describe()}; {count:,} parameters; writing to {workdir}"

    with contextlib.ExitStack() as stack:
        stack.enter_context(_lock(workdir))
        found = _newest(workdir, metadata["config"])
        checkpoint.remove_unfinished(workdir)
        pending, kept_best, start = [], None, 0
        if found is not None:
            path, old = found
            start, pending, kept_best = old["step"], old["pending"], old["best"]
            state = merge(state, *checkpoint.restore(path, parts=template[0], train=template[1]))
            if start >= num_steps:
                report.say(f"{where}; finished at step {start}, nothing to do")
                return parallel.place(state, mode)
        metrics.rewind(start)
        report.say(f"{where}; {f'resumes from step {start}' if start else 'starts from step 0'}")
        state = parallel.place(state, mode)
        frozen = parallel.place(frozen, mode)
        board = progress.TensorBoard(workdir / "tensorboard", active=main)
        stack.callback(board.close)
        stack.callback(report.end)
        stopped = stack.enter_context(_signals())
        window = _Window(pending)

        def record(row):
            metrics.write(row)
            board.write(row)
            report.metrics(row["step"], {k: v for k, v in row.items() if k != "step"})

        def save(step, best_now):
            window.fetch()
            parts, train = split(state)
            _check_finite(parts, step, window.last_loss)
            checkpoint.save(
                workdir,
                step,
                parts=parts,
                train=train,
                metadata={**metadata, "pending": window.pending, "best": best_now},
            )
            if main:
                keep = set(checkpoint.steps(workdir)[-2:]) | ({best_now["step"]} if best_now else set())
                checkpoint.prune(workdir, keep)

        def evaluate_at(step, best_now):
            values = evaluate(state, stopped)
            record({"step": step, "split": "validation", **values})
            if best is not None and (best_now is None or values[best] > best_now["value"]):
                return {"step": step, "value": values[best]}
            return best_now

        def is_due(step, every):
            return step % every == 0 or step == num_steps

        try:
            if evaluate and start and is_due(start, eval_every) and not metrics.has(start, "validation"):
                kept_best = evaluate_at(start, kept_best)
            report.begin(start)
            for step in range(start, num_steps):
                if parallel.should_stop(step, stopped()):
                    raise StoppedError
                state, values = step_fn(state, frozen, batch_fn(step))
                window.add(step + 1, values)
                report.advance(step + 1)
                if is_due(step + 1, log_every):
                    record({"step": step + 1, "split": "train", **window.close()})
                if evaluate and is_due(step + 1, eval_every):
                    kept_best = evaluate_at(step + 1, kept_best)
                if is_due(step + 1, save_every):
                    save(step + 1, kept_best)
        except StoppedError:
            step = int(state.step)
            if step > start:
                save(step, kept_best)
            raise StoppedError(f"stopped by a signal at step {step}; saved in {workdir}") from None
    return state


class _Window:
    """Per-step metrics since the last log line, fetched from the devices when asked for."""

    def __init__(self, pending: list[dict[str, float]]):
        self.pending = list(pending)
        self.last_loss: float | None = None
        self._on_device: list[tuple[int, dict]] = []

    def add(self, step: int, values: Mapping[str, jax.Array]):
        self._on_device.append((step, dict(values)))

    def fetch(self):
        for step, values in jax.device_get(self._on_device):
            values = {name: float(value) for name, value in values.items()}
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                raise DivergedError(_diverged(step, self.last_loss))
            self.last_loss = values["loss"]
            self.pending.append(values)
        self._on_device = []

    def close(self) -> dict[str, float]:
        self.fetch()
        names = self.pending[0]
        means = {n: sum(row[n] for row in self.pending) / len(self.pending) for n in names}
        self.pending = []
        return means


def _diverged(step: int, last_loss: float | None) -> str:
    last = "none" if last_loss is None else f"{last_loss:.6g}"
    return f"diverged at step {step}: NaN or infinity; last finite loss {last}"


def _check_finite(parts: PyTree, step: int, last_loss: float | None):
    for leaf in jax.tree.leaves(checkpoint.to_host(parts)):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise DivergedError(_diverged(step, last_loss))


def _newest(workdir: epath.Path, settings: Mapping[str, Any]):
    """The newest whole checkpoint, damaged ones moved aside; None if there is none."""
    while steps := checkpoint.steps(workdir):
        path = workdir / checkpoint.FOLDER / str(steps[-1])
        try:
            old = checkpoint.read_metadata(path)
        except checkpoint.DamagedError as error:
            checkpoint.log.warning("skipping damaged checkpoint %s: %s", path, error)
            parallel.barrier(f"damaged-{steps[-1]}")
            if parallel.is_main():
                aside = path.parent / f"{path.name}.damaged"
                aside.rmtree(missing_ok=True)
                path.rename(aside)
            parallel.barrier(f"moved-{steps[-1]}")
            continue
        config.check_resume(old["config"], settings)
        return path, old
    return None


@contextlib.contextmanager
def _lock(workdir: epath.Path):
    """Holds the workdir for this run. The system frees the lock when the process ends, however.

    Object stores have no locks: there two live runs in one workdir are not noticed.
    """
    handle, free = None, True
    if parallel.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        if "://" not in str(workdir):
            handle = open(workdir / ".lock", "w")  # noqa: SIM115 - held until the run ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
    try:
        if not parallel.agree(free):
            raise config.InputError("workdir", str(workdir), "is in use by a live process")
        yield
    finally:
        if handle is not None:
            handle.close()


@contextlib.contextmanager
def _signals():
    """Yields `stopped()`: whether SIGTERM or SIGINT came. A second SIGINT acts at once.

    With several processes JAX's own service watches SIGTERM and makes all of them stop at one step.
    """
    came = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def handler(signum, _):
        if came.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()

    old = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came.is_set
    finally:
        for s, previous in old.items():
            signal.signal(s, previous)
