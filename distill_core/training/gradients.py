"""The gradients of a differentially private step."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from distill_core.privacy.per_example import (
    bounded_gradient_sum,
    linear_gradient_sum,
    noisy_sum,
)
from distill_core.training import metrics as metrics_lib

_ENTRIES = 2**24  # numbers in the per-record gradients that exist at a time


@dataclasses.dataclass(frozen=True)
class PrivateGradient:
    """DP-SGD's gradient, for `train_step`: clipped, summed, noised once, divided.

    The batch comes from `dp_sgd.PrivateRun.batch`: {"rows": …, "where": bool [R], "step": int32
    [r], one number r times}. `frozen["dp"]` holds `key`, `norm`, `noise_multiplier` and
    `batch_size`, all traced. A record's loss is the mean over its `augmentations` copies, each with
    its own randomness (`index` numbers the copies), so that a record always has one gradient. Rows
    that are masked, or whose gradient is NaN or infinite, count exactly 0.

    Formal guarantee: if `key` is secret and used in this run alone, the gradient is a Gaussian
    mechanism of std noise_multiplier·C on a sum of B per-record gradients, of sensitivity
    C·(1 + slack(B)) when a record is zeroed out; everything else that the step returns is computed
    from it. No loss and no norm of the data enters the metrics. Needs a network without batch
    statistics, and whole arrays on each device: in parallel's mode "mesh" XLA splits per-record
    gradients wrongly.
    """

    augmentations: int = 1

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
            microbatch_size=_microbatch(params),
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


def _microbatch(params: Any) -> int:
    """Records whose gradients are held at once, 64 MiB: many small parts are slow to compile."""
    return max(8, _ENTRIES // sum(leaf.size for leaf in jax.tree.leaves(params)))
