"""The gradient of a differentially private step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distill_core.privacy.per_example import bounded_gradient_sum, noisy_sum
from distill_core.training import metrics as metrics_lib

_ENTRIES = 2**24  # numbers in the gradients of single records that exist at a time


@dataclasses.dataclass(frozen=True)
class PrivateGradient:
    """DP-SGD's gradient, for `train_step`: clipped, summed, noised once, divided.

    The batch is what `dp_sgd.PrivateRun.batch` makes, {"rows": …, "where": bool [R], "step":
    int32 [R]}, and `frozen["dp"]` holds `key`, `norm`, `noise_multiplier` and `batch_size`, all
    traced. A record's loss is the mean over its copies, each with randomness of its own (`index`
    says which copy it is), so that it has one gradient, whatever `augmentations` is. Rows that are
    masked, or whose gradient is NaN or infinite, count exactly 0.

    Formal guarantee: with `key` secret and used in this run alone, the gradient is a Gaussian
    mechanism of std noise_multiplier·C on a sum of B records' gradients, of sensitivity
    C·(1 + slack(B)), a record zeroed out; everything else that the step gives is made of
    it. No loss and no norm of the data goes into the metrics. Needs a network without batch
    statistics, and whole arrays on each device: in parallel's mode "mesh" XLA splits gradients of
    single records wrongly.

    Attributes:
      augmentations: copies of a record in a step.
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
        noisy = noisy_sum(
            jax.random.fold_in(dp["key"], batch["step"][0]),
            total,
            norm=dp["norm"],
            noise_multiplier=dp["noise_multiplier"],
        )
        scaled = jax.tree.map(lambda p, g: (g / dp["batch_size"]).astype(p.dtype), params, noisy)
        return scaled, model_state, {}


def _microbatch(params: Any) -> int:
    """Records whose gradients are held at once, 64 MiB of them: many parts take long to compile."""
    return max(8, _ENTRIES // sum(leaf.size for leaf in jax.tree.leaves(params)))
