"""The training step, and the seam at which a method supplies its loss: `Objective` → `Outputs`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distill_core.runtime import sharding
from distill_core.runtime.collectives import all_sum
from distill_core.training import metrics as metrics_lib
from distill_core.training.optimizers import Averaged, Optimizer

Array = jax.Array
PyTree = Any

# Random streams: each use of randomness folds its own constant into the run's key.
STREAM_INIT = 0
STREAM_TRAIN = 1


class TrainState(flax.struct.PyTreeNode):
    """What a run trains and needs to continue. Teachers are not in it: they are `frozen`.

    Attributes:
      step: int32 `[]`, updates done so far.
      params: trained parameters.
      model_state: other variables of the network, e.g. `{"batch_stats": …}`; `{}` if none.
      opt_state: state of the optimiser.
      rng: typed PRNG key, constant over the run.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    rng: Array

    @classmethod
    def create(cls, *, params, model_state, tx: optax.GradientTransformation, rng) -> "TrainState":
        """The state before the first step.

        Args:
          params: first parameters, a tree of arrays.
          model_state: the network's other variables; `{}` if none.
          tx: Optax optimiser, which makes its own state.
          rng: typed PRNG key of the run.

        Returns:
          The state, with `step` 0.
        """
        return cls(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), rng)


class Outputs(NamedTuple):
    """What an objective returns for a batch.

    Attributes:
      values: one loss per example or token.
      weights: of the shape of `values`; how much each loss counts.
      model_state: the network's new state.
      metrics: further means for the log, by name: an array of the shape of `values`, or a pair
        (values, weights) of any one shape.
    """

    values: Array
    weights: Array
    model_state: PyTree
    metrics: Mapping[str, Any]


class Objective(Protocol):
    """What a run minimises: a frozen dataclass, so that equal objectives compile once.

    `params` and `model_state` belong to the network in training; `frozen` is only read, such as a
    teacher's variables; `key` is the step's PRNG key, equal on all devices.
    """

    def __call__(
        self, params: PyTree, model_state: PyTree, frozen: PyTree, batch: PyTree, key: Array
    ) -> Outputs: ...


def per_example(values: Array, model_state: PyTree, **metrics: Array) -> Outputs:
    """Outputs in which all examples have weight 1."""
    return Outputs(values, jnp.ones_like(values), model_state, metrics)


def per_token(total: Array, weights: Array, model_state: PyTree, **sums: Array) -> Outputs:
    """Outputs of a loss that is already summed over tokens with `weights` [B, L].

    `sums` are further weighted sums, for the log.
    """
    weight = jnp.sum(weights)
    known = jnp.where(weight > 0, weight, 1.0)
    metrics = {name: (value[None] / known, weight[None]) for name, value in sums.items()}
    return Outputs(total[None] / known, weight[None], model_state, metrics)


def stream_key(rng: Array, stream: int, step: Array | int) -> Array:
    """The key of one random stream at one step: fold_in(fold_in(rng, stream), step)."""
    return jax.random.fold_in(jax.random.fold_in(rng, stream), step)


def mean_gradient(objective: Objective, params, model_state, frozen, batch, key):
    """Gradient of the global weighted mean of the losses.

    Returns (gradient, model_state, metrics), all equal on every device: local gradients are summed
    over the devices, then divided by the global weight.
    """
    sums, model_state = local_sums(objective, params, model_state, frozen, batch, key)
    grads, metrics = global_means(sums)
    return grads, model_state, metrics


def local_sums(objective: Objective, params, model_state, frozen, batch, key):
    """((gradient, metrics) of a device's examples, weighted sums each, and the new model_state).

    A metric is a pair (weighted sum, weight).
    """

    def weighted_total(params):
        found = objective(params, model_state, frozen, batch, key)
        if reserved := found.metrics.keys() & {"loss", "grad_norm"}:
            raise ValueError(f"metrics: got {sorted(reserved)}; the step has some of these names")
        pairs = {
            name: metrics_lib.weighted_sum(*(v if isinstance(v, tuple) else (v, found.weights)))
            for name, v in {**found.metrics, "loss": found.values}.items()
        }
        return pairs["loss"][0], (pairs, found.model_state)

    again = sharding.gathering_again(weighted_total)
    grads, (pairs, new_model_state) = jax.grad(again, has_aux=True)(params)
    return (grads, pairs), new_model_state


def global_means(sums):
    """(gradient, metrics), means over all devices of what `local_sums` gives."""
    grads, pairs = all_sum(sums)
    count = pairs["loss"][1]
    scale = jnp.where(count > 0, 1.0 / jnp.where(count > 0, count, 1.0), 0.0)
    grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    return grads, {name: metrics_lib.mean(pair) for name, pair in pairs.items()}


def gradient_of_sum(values: Callable[[PyTree], Array], params: PyTree) -> PyTree:
    """Gradient with respect to the parameters of the sum of `values` over all devices."""
    total = sharding.gathering_again(lambda params: jnp.sum(values(params)))
    return all_sum(jax.grad(total)(params))


def train_step(
    state: TrainState,
    frozen: PyTree,
    batch: PyTree,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    gradient: Callable = mean_gradient,
) -> tuple[TrainState, dict[str, Array]]:
    """One update; pure.

    Args:
      state: state of the network in training.
      frozen: what the objective reads but nothing trains.
      batch: this device's examples.
      objective: what is minimised.
      tx: Optax optimiser.
      gradient: computes an objective's gradient, with the signature of `mean_gradient`;
        differentially private training supplies its own.

    Returns:
      The new state and float32 scalars: `loss` and the objective's metrics as global weighted means
      (numerators and denominators are summed over devices, then divided), and `grad_norm`. A batch
      of total weight 0 gives gradient 0.
    """
    key = stream_key(state.rng, STREAM_TRAIN, state.step)
    grads, model_state, metrics = gradient(
        objective, state.params, state.model_state, frozen, batch, key
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
    )
    return state, {**metrics, "grad_norm": optax.tree.norm(grads)}


@dataclasses.dataclass(frozen=True)
class Update:
    """`train_step` with its static arguments, as the loop runs it; equal values compile once.

    Attributes:
      objective, gradient: as for `train_step`.
      optimizer: settings of the optimiser.
      resident: the batch holds row numbers, int32 [B], of `frozen["data"]` on the device, and the
        objective reads `frozen["frozen"]`.
      several: leaves of the batch are [B, K, ...] for K steps, and metrics are [K]. On CPU,
        convolutions inside XLA's loops are many times slower than outside.
    """

    objective: Objective
    optimizer: Optimizer | Averaged
    gradient: Callable = mean_gradient
    resident: bool = False
    several: bool = False

    def __call__(self, state: TrainState, frozen: PyTree, batch: PyTree):
        """(state, metrics) after one step, or after several."""
        if not self.several:
            return self._one(state, frozen, batch)
        in_turn = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch)
        return jax.lax.scan(lambda state, each: self._one(state, frozen, each), state, in_turn)

    def _one(self, state: TrainState, frozen: PyTree, batch: PyTree):
        if self.resident:
            rows = batch
            batch = jax.tree.map(lambda leaf: leaf[rows], frozen["data"])
            batch, frozen = {**batch, "index": rows}, frozen["frozen"]
        tx = self.optimizer.make()
        return train_step(
            state, frozen, batch, objective=self.objective, tx=tx, gradient=self.gradient
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`(variables, frozen, batch) -> {name: (sum, count)}`, summed over devices.

    Attributes:
      measure: a frozen dataclass, `measure(variables, frozen, batch) -> {name: (values, weights)}`,
        one value and one weight per example or token.
    """

    measure: Callable

    def __call__(self, variables: PyTree, frozen: PyTree, batch: PyTree):
        """The sums of one batch."""
        found = self.measure(variables, frozen, batch)
        return all_sum({name: metrics_lib.weighted_sum(*pair) for name, pair in found.items()})
