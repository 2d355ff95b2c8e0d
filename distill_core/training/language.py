"""Runs that train a language model: network, batches and evaluation around an objective."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel
from distill_core.training import dp_sgd, feeding, fits, loop, run_state
from distill_core.training.chunked import cross_entropy_from_hidden
from distill_core.training.dp_settings import Dp
from distill_core.training.gradients import PrivateGradient
from distill_core.training.optimizers import Averaged
from distill_core.training.run_state import Layout
from distill_core.training.step import Evaluation, Objective, Update

CLASS = "class_"  # prefix of arrays that select the tokens of a metric of their own
PyTree = Any
Rows = Mapping[str, Any]  # arrays, or what is indexed like them (see `data.columns`)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, without what its objective reads.

    Attributes:
      hp: settings `config.Model`, `Optimizer`, `Update`, `Device` and `Run`, and the method's own.
      rows: `tokens`, `labels`, `segments` int32 [N, L], `weights` float32 [N, L], and what else the
        objective reads, [N, L] each. With `dp` a row is one whole line (`tasks.line_rows`).
      validation: likewise, as `measure` takes them; public, even with `dp`.
      dp: with it training is differentially private (see `dp_sgd`); a record is a line.
    """

    hp: Any
    workdir: epath.PathLike
    method: str
    network: Network
    rows: Rows
    validation: Rows
    mode: str | None = None
    dp: Dp | None = None


def train(
    run: Run,
    objective: Objective,
    *,
    frozen: PyTree | Callable[[int], PyTree],
    reads: Mapping[str, LoadedModel | str],
    description: str = "",
) -> str:
    """Trains a language model with an objective, or resumes it; returns the checkpoint's id.

    Args:
      run: the run.
      objective: its batches hold rows of `run.rows`.
      frozen: what the objective reads, e.g. a teacher's variables; or a function from the step that
        the run starts at to it, called while the run holds its workdir.
      reads: see `run_state.describe`.
      description: a line for the console, printed once everything is checked.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    hp, rows, mode = run.hp, run.rows, parallel.choose_mode(run.mode)
    metadata, prints = run_state.describe(
        hp, run.workdir, method=run.method, network=run.network, reads=reads, mode=mode
    )
    private, plan = None, None
    if run.dp:
        feeding.check_private(hp)
    else:
        parallel.check_batch_size(hp.batch_size, mode)
    optimizer, gradient = feeding.recipe(hp, set(run.network.shapes()) - {"params"}, mode)
    if run.dp:
        _check_lines(rows["segments"])
        given = (hp, run.dp, run.workdir, metadata, run.network)
        private = dp_sgd.PrivateRun(*given, data=rows, mode=mode)
        metadata, prints = private.metadata, prints | private.reads
        assert not callable(frozen), "a private run has no teacher"
        plan = private.plan(frozen)
        gradient = PrivateGradient(private.augmentations, run.dp.microbatch_size)
        optimizer = private.optimizer
    elif callable(frozen):
        ledger = metadata["ledger"]

        def teach(start: int) -> loop.Plan:
            return loop.Plan(at_hand(frozen(start)), lambda step: ledger, hp.num_steps)

        plan = teach
    layout = Layout(averages=isinstance(optimizer, Averaged))

    def at_hand(frozen: PyTree) -> PyTree:
        return {"frozen": frozen, "data": dict(rows)} if hp.data_on_device else frozen

    def take(index: np.ndarray, step: int = 0) -> dict[str, np.ndarray]:
        del step
        return {name: array[index] for name, array in rows.items()}

    if private:
        batch_fn = functools.partial(private.batch, take=take)
    else:
        count = len(rows["tokens"])
        batch_fn = feeding.batches(hp, count, take, mode, resident=hp.data_on_device)

    def evaluate(state, stopped):
        part = layout.split(state)[0][run_state.PART]
        variables = {"params": part["params"], **part["model_state"]}
        size = hp.eval_batch_size
        return _measure(run.network, variables, run.validation, size, mode, stopped)

    state = run_state.initial_state(
        hp, run.workdir, run.network, layout, optimizer=optimizer, mode=mode
    )
    fits.say(description)
    several = hp.steps_per_dispatch
    update = Update(objective, optimizer, gradient, hp.data_on_device, several > 1)
    program = loop.Program(
        parallel.wrap(update, mode, donate=True),
        batch_fn,
        {} if callable(frozen) else at_hand(frozen),
        mode,
        several,
        ahead=private is None,
        work=feeding.work("tokens", rows["tokens"].shape[1], update, hp, take),
    )
    loop.run(
        run.workdir,
        state,
        program,
        loop.Checkpoints(layout, metadata, prints),
        num_steps=hp.num_steps,
        cadence=config.part(hp, loop.Cadence),
        monitor=loop.Monitor(evaluate, best="cross_entropy", lowest=True),
        plan=plan,
    )
    return checkpoint.chosen(run.workdir)[1]["id"]


def measure(
    loaded: LoadedModel, rows: Rows, *, batch_size: int = 64, mode: str | None = None
) -> dict[str, float]:
    """Cross-entropy (nats per token) and accuracy of a language model over all weighted tokens.

    `rows` are as in `Run`; each array `class_NAME` (bool [N, L]) adds a metric `cross_entropy_NAME`
    over those tokens alone, NaN if there are none.
    """
    mode = parallel.choose_mode(mode)
    variables = parallel.place(loaded.variables, mode)
    return _measure(loaded.network, variables, rows, batch_size, mode)


def _check_lines(segments: np.ndarray):
    """A claim about lines needs rows of one whole line each."""
    known = np.where(segments >= 0, segments, segments.max(1, keepdims=True))
    if (known != known[:, :1]).any() or len(np.unique(known[:, 0])) < len(known):
        raise ValueError("rows: got several lines in a row, or a line in several; see line_rows")


def _measure(network: Network, variables, rows, batch_size, mode, stopped=lambda: False):
    names = ["tokens", "labels", "segments", "weights"]
    names += [name for name in rows if name.startswith(CLASS)]

    def take(index, mask):
        batch = {name: rows[name][index] for name in names}
        return {**batch, "weights": batch["weights"] * mask[:, None]}

    return run_state.evaluate(
        Evaluation(_Predicted(network)),
        variables,
        take,
        len(rows["tokens"]),
        batch_size=batch_size,
        mode=mode,
        stopped=stopped,
    )


@dataclasses.dataclass(frozen=True)
class _Predicted:
    network: Network

    def __call__(self, variables, frozen, batch):
        states, embedding = self.network.hidden(variables, batch["tokens"], batch["segments"])
        values, correct = cross_entropy_from_hidden(states, embedding, batch["labels"])
        weights = batch["weights"]
        found = {"cross_entropy": (values, weights), "accuracy": (correct, weights)}
        for name, mask in batch.items():
            if name.startswith(CLASS):
                found[f"cross_entropy_{name.removeprefix(CLASS)}"] = (values, weights * mask)
        return found
