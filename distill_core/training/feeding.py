"""How a run's batches reach the devices: from the host or from their memory, for a step or more."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models import CONSTANTS
from distill_core.models.flops import count_flops
from distill_core.runtime import backend, parallel
from distill_core.training import loop
from distill_core.training.gradients import AccumulatedGradient
from distill_core.training.optimizers import Averaged, Optimizer
from distill_core.training.step import Update, mean_gradient


def batches(
    hp: Any,
    num_examples: int,
    take: Callable[[np.ndarray, int], Mapping[str, np.ndarray]],
    mode: str,
    *,
    resident: bool,
) -> Callable[[int], Any]:
    """step -> what `Update` takes: batches of the steps of one dispatch, a pure function.

    Args:
      hp: settings `config.Steps` and `config.Device`.
      num_examples: N, of which every epoch sees each once.
      take: `take(rows, step)` gives the batch of these examples.
      mode: as for `parallel.feed`.
      resident: the data is on the devices: only row numbers are sent, int32.
    """
    several = hp.steps_per_dispatch

    def one(step: int) -> Any:
        rows = sampling.batch_indices(hp.seed, step, hp.batch_size, num_examples)
        rows = rows[parallel.local_rows(hp.batch_size, mode)]
        return rows.astype(np.int32) if resident else take(rows, step)

    def batch_fn(step: int) -> Any:
        if several == 1:
            return parallel.feed(one(step), mode)
        steps = range(step, step + loop.dispatch_length(step, several, hp.num_steps))
        found = jax.tree.map(lambda *each: np.stack(each, axis=1), *map(one, steps))
        return parallel.feed(found, mode)

    return batch_fn


def work(
    unit: str,
    per_example: int,
    update: Update,
    hp: Any,
    take: Callable[[np.ndarray, int], Mapping[str, np.ndarray]],
) -> loop.Work:
    """What a step does; of a private one, whose batches have no fixed size, on average.

    An example is so many of the `unit`; the rest as for `batches`.
    """

    def flops(state: Any, frozen: Any) -> float:
        rows = np.zeros(hp.batch_size, np.int32)
        batch = rows if update.resident else take(rows, 0)
        one = dataclasses.replace(update, several=False)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (state, frozen, batch)
        )
        with backend.assume("cpu", None):  # without fused kernels, whose work is not to be seen
            return count_flops(one, *shapes)

    private = not isinstance(update.gradient, AccumulatedGradient) and (
        update.gradient is not mean_gradient
    )
    return loop.Work(unit, hp.batch_size * per_example, None if private else flops)


def recipe(hp: Any, state_of_model: set[str], mode: str) -> tuple[Optimizer | Averaged, Callable]:
    """(optimiser, gradient) of a run that is not private, from `config.Update` and `Optimizer`.

    `state_of_model` names the collections that a step updates besides the parameters; `mode` is as
    for `parallel.wrap`.

    Raises:
      InputError: on `accumulate_steps` or `warmup_steps`.
    """
    optimizer, gradient, parts = Optimizer.of(hp), mean_gradient, hp.accumulate_steps
    if hp.ema_decay:
        optimizer = Averaged(optimizer, decay=hp.ema_decay)
    if parts > 1:
        if changing := state_of_model - {CONSTANTS}:
            names = ", ".join(sorted(changing))
            allowed = f"needs a run without {names}, which would see the parts one by one"
            if "batch_stats" in changing:
                allowed += ": take norm 'group' or 'none'"
            raise InputError("accumulate_steps", parts, allowed)
        own = hp.batch_size // parallel.batch_devices(mode)
        if own % parts:
            raise InputError(
                "accumulate_steps", parts, f"must divide the {own} examples of a device's batch"
            )
        gradient = AccumulatedGradient(parts)
    return optimizer, gradient


def check_private(hp: Any):
    """Raises InputError on what a differentially private run has no use for."""
    if not hp.num_steps:
        raise config.InputError("num_steps", 0, "must be at least 1 with dp")
    # Its batches vary in size, and its ledger counts every step.
    names = ("data_on_device", "steps_per_dispatch")
    config.check_unset(hp, names, "is not for private training (dp)")
    config.check_unset(hp, ("accumulate_steps",), "dp has dp.microbatch_size in its place")
    config.check_unset(hp, ("ema_decay",), "dp has dp.average in its place")
    config.check_unset(hp, ("clip_norm",), "dp bounds each record's gradient: dp.norm")
