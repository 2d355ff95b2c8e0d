"""Gradients of a step, in place of `step.mean_gradient`: accumulated, or differentially private."""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from distill_core.privacy.per_example import (
    bounded_gradient_sum,
    linear_gradient_sum,
    noisy_sum,
)
from distill_core.runtime import backend
from distill_core.training import metrics as metrics_lib
from distill_core.training.step import global_means, local_sums


@dataclasses.dataclass(frozen=True)
class AccumulatedGradient:
    """`mean_gradient` of a batch in `parts`, one after another: the same sums, in less memory.

    Row i is in part i mod `parts`. Every part gets the same key, as the devices do. The objective
    must not change the model's state, which would see the parts one by one.
    """

    parts: int

    def __call__(self, objective, params, model_state, frozen, batch, key):
        """(gradient, model_state, metrics) of a batch."""
        # Over a mesh each device has some rows of every part.
        batch = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, self.parts, *x.shape[1:]), 1, 0), batch
        )

        def sums(part):
            return local_sums(objective, params, model_state, frozen, part, key)[0]

        def add(total, part):
            return jax.tree.map(jnp.add, total, sums(part))

        first, *others = (jax.tree.map(lambda x, i=i: x[i], batch) for i in range(self.parts))
        if backend.platform() == "cpu":  # there convolutions in a loop run many times slower
            total = functools.reduce(add, others, sums(first))
        else:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, first))
            total, _ = jax.lax.scan(lambda total, part: (add(total, part), None), zeros, batch)
        grads, metrics = global_means(total)
        return grads, model_state, metrics


_ENTRIES = 2**24  # numbers in the per-record gradients that exist at a time on a CPU


@dataclasses.dataclass(frozen=True)
class PrivateGradient:
    """DP-SGD's gradient, for `train_step`: clipped, summed, noised once, divided.

    The batch comes from `dp_sgd.PrivateRun.batch`: {"rows": …, "where": bool [R], "step": int32
    [r], one number r times}. `frozen["dp"]` holds `key`, `norm`, `noise_multiplier` and
    `batch_size`, all traced. A record's loss is the mean over its `augmentations` copies, each with
    its own randomness (`index` numbers the copies), so that a record always has one gradient.
    Gradients of `microbatch_size` records are held at once, by default as the memory allows. Rows
    that are masked, or whose gradient is NaN or infinite, count exactly 0.

    Formal guarantee: if `key` is secret and used in this run alone, the gradient is a Gaussian
    mechanism of std noise_multiplier·C on a sum of B per-record gradients, of sensitivity
    C·(1 + slack(B)) when a record is zeroed out; everything else that the step returns is computed
    from it. No loss and no norm of the data enters the metrics. Needs a network without batch
    statistics, and whole arrays on each device: in parallel's mode "mesh" XLA splits per-record
    gradients wrongly.
    """

    augmentations: int = 1
    microbatch_size: int | None = None

    def __call__(self, objective, params, model_state, frozen, batch, key):
        """(gradient, model_state, {}) of a batch."""
        dp = frozen["dp"]

        def record_loss(params, row):
            copies = jax.tree.map(lambda x: jnp.repeat(x[None], self.augmentations, axis=0), row)
            copies["index"] = row["index"] * self.augmentations + jnp.arange(self.augmentations)
            own = jax.random.fold_in(key, row["index"])
            found = objective(params, model_state, frozen, copies, own)
            return metrics_lib.mean(metrics_lib.weighted_sum(found.values, found.weights))

        total = bounded_gradient_sum(
            record_loss,
            params,
            batch["rows"],
            norm=dp["norm"],
            mode="clip",
            where=batch["where"],
            microbatch_size=self.microbatch_size or _microbatch(params),
        )
        return _released(total, params, dp, batch["step"]), model_state, {}


class OfLogits(Protocol):
    """An objective that also has its losses as a function of logits.

    `losses(logits [B, K], batch) -> [B]` treats every row for itself.
    """

    def losses(self, logits: jax.Array, batch: Any) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class LinearGradient:
    """`PrivateGradient` of a linear layer on fixed features: the same sum, by matrix products.

    `params` are {"linear": {"kernel" [D, K], "bias" [K]}}, and `batch["rows"]` holds `features`
    [R, D] with what the objective's `losses` read (`OfLogits`). The batch is otherwise that of
    `PrivateGradient`, and so is the formal guarantee, from `linear_gradient_sum`.
    """

    def __call__(self, objective: OfLogits, params, model_state, frozen, batch, key):
        """(gradient, model_state, {}) of a batch."""
        dp, rows = frozen["dp"], batch["rows"]
        total = linear_gradient_sum(
            objective.losses,
            params["linear"],
            rows["features"],
            rows,
            norm=dp["norm"],
            mode="clip",
            where=batch["where"],
        )
        released = _released({"linear": total}, params, dp, batch["step"])
        return released, model_state, {}


def _released(total: Any, params: Any, dp: Any, step: jax.Array) -> Any:
    """The sum over the devices with the step's noise, over the batch size, in `params`' dtypes."""
    noisy = noisy_sum(
        jax.random.fold_in(dp["key"], step[0]),
        total,
        norm=dp["norm"],
        noise_multiplier=dp["noise_multiplier"],
    )
    return jax.tree.map(lambda p, g: (g / dp["batch_size"]).astype(p.dtype), params, noisy)


def _microbatch(params: Any) -> int | None:
    """On a CPU as many as 64 MiB hold: many small parts are slow to compile."""
    if backend.platform() != "cpu":
        return None
    return max(8, _ENTRIES // sum(leaf.size for leaf in jax.tree.leaves(params)))
