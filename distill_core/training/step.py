"""Pure train and evaluation steps; the seam where a method hands in its loss."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from distill_core.training import metrics as metrics_lib

Array = jax.Array
PyTree = Any

# Named random streams: every use of randomness folds its own constant into the run's key.
STREAM_INIT = 0
STREAM_TRAIN = 1


class TrainState(flax.struct.PyTreeNode):
    """What a run trains and needs to go on. Teachers are not in it: they are `frozen`.

    Attributes:
      step: int32 `[]`, updates done.
      params: trained parameters.
      model_state: other variables of the network, e.g. `{"batch_stats": …}`; `{}` if none.
      opt_state: the optimiser's.
      rng: typed PRNG key, constant over the run.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    rng: Array

    @classmethod
    def create(cls, *, params, model_state, tx: optax.GradientTransformation, rng) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), rng)


def stream_key(rng: Array, stream: int, step: Array | int) -> Array:
    """The key of one named stream at one step: fold_in(fold_in(rng, stream), step)."""
    return jax.random.fold_in(jax.random.fold_in(rng, stream), step)


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    gradient_fn: Callable | None = None,
) -> Callable:
    """Makes one pure update, `step(state, frozen, batch) -> (state, metrics)`.

    Args:
      loss_fn: `loss_fn(params, model_state, frozen, batch, key) -> (values, weights, model_state,
        aux)`: a loss and a weight per example or token (one shape), the new model state, and
        named extra metrics, each an array of the shape of `values`, or a pair (values, weights)
        of its own shape. `key` is the step's; it is equal on all devices.
      tx: Optax optimiser.
      axis_name: the mapped axis that holds the devices; None inside plain jit.
      gradient_fn: how to get gradients from a loss_fn, by default `mean_gradient`, with its
        signature; differentially private training enters here.

    Returns:
      A step. `metrics` holds float32 scalars: `loss` and the extras as global weighted means
      (numerators and denominators are summed over devices, then divided), and `grad_norm`. A batch
      of total weight 0 gives gradient 0.
    """
    gradient_fn = gradient_fn or mean_gradient

    def step(state: TrainState, frozen: PyTree, batch: PyTree):
        key = stream_key(state.rng, STREAM_TRAIN, state.step)
        grads, model_state, metrics = gradient_fn(
            loss_fn, state.params, state.model_state, frozen, batch, key, axis_name=axis_name
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return new_state, {**metrics, "grad_norm": optax.tree.norm(grads)}

    return step


def mean_gradient(loss_fn, params, model_state, frozen, batch, key, *, axis_name):
    """Gradient of the globally weighted mean of the losses.

    Returns (gradient, model_state, metrics), all equal on every device. Written so that the
    device sum is explicit: sum of local gradients over the devices, divided by the global weight.
    """

    def weighted_total(params):
        values, weights, new_model_state, aux = loss_fn(params, model_state, frozen, batch, key)
        if reserved := aux.keys() & {"loss", "grad_norm"}:
            raise ValueError(f"aux: got {sorted(reserved)}; the step has metrics of these names")
        total, count = metrics_lib.weighted_sum(values, weights)
        extras = {name: _as_pair(value, weights) for name, value in aux.items()}
        return total, ({"loss": (total, count), **extras}, new_model_state)

    grads, (pairs, new_model_state) = jax.grad(weighted_total, has_aux=True)(params)
    grads, pairs = all_sum((grads, pairs), axis_name)
    count = pairs["loss"][1]
    scale = jnp.where(count > 0, 1.0 / jnp.where(count > 0, count, 1.0), 0.0)
    grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    return grads, new_model_state, {name: metrics_lib.mean(pair) for name, pair in pairs.items()}


def make_eval_step(eval_fn: Callable, *, axis_name: str | None = None) -> Callable:
    """Makes `eval_step(variables, frozen, batch) -> {name: (sum, count)}`, summed over devices.

    Args:
      eval_fn: `eval_fn(variables, frozen, batch) -> {name: (values, weights)}`, one value and one
        weight per example or token.
      axis_name: as in `make_train_step`.
    """

    def eval_step(variables: PyTree, frozen: PyTree, batch: PyTree):
        found = eval_fn(variables, frozen, batch)
        pairs = {name: metrics_lib.weighted_sum(*pair) for name, pair in found.items()}
        return all_sum(pairs, axis_name)

    return eval_step


def all_sum(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sum over the devices of a mapped axis; the tree itself where there is none."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _as_pair(value, weights):
    if isinstance(value, tuple):
        return metrics_lib.weighted_sum(*value)
    return metrics_lib.weighted_sum(value, weights)
