"""Per-example gradients of dense layers, kept as two vectors each in place of a matrix.

The gradient of x·W for one example is the outer product of x and the gradient δ of the layer's
output, whose norm is ‖x‖·‖δ‖ and of which a weighted sum over examples is one matrix product.
Source: Goodfellow, "Efficient Per-Example Gradient Computations", 2015. Finding the layers in a
loss is ours: Flax lets a function stand in for the calls of a module's methods.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
PyTree = Any

_GAIN = 4  # a matrix is this much larger than the two vectors, or is computed


class Vectors(NamedTuple):
    """Gradients of a kernel [D, K] for b examples: outer products of `inputs` and `deltas`."""

    inputs: Array  # float32 [b, D]
    deltas: Array  # float32 [b, K]


def find(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, example: PyTree) -> list[int]:
    """Which leaves of `params` are kernels whose gradients `gradients` gives as `Vectors`.

    They belong to a `nn.Dense` of plain float32 arithmetic, are used in one call on one row, and
    nowhere else in the loss, and are large enough for the two vectors to pay. `example` is one
    example, or its shapes.
    """
    calls: dict[int, list[tuple[int, ...]]] = {}

    def traced(params, example):
        leaves = jax.tree.leaves(params)

        def note(kernel: int, x: Array, call: Callable[[], Array]) -> Array:
            calls.setdefault(kernel, []).append(x.shape)
            return call()

        with _standing_in(leaves, note):
            return loss_fn(params, example)

    jax.eval_shape(traced, params, example)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]

    def fits(kernel: int, inputs: list[tuple[int, ...]]) -> bool:
        rows, columns = shapes[kernel]
        once = len(inputs) == 1 and inputs[0] in ((rows,), (1, rows))
        return once and rows * columns >= _GAIN * (rows + columns)

    found = sorted(kernel for kernel, inputs in calls.items() if fits(kernel, inputs))
    return [kernel for kernel in found if not _is_used_elsewhere(kernel, loss_fn, params, example)]


def gradients(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    examples: PyTree,
    kernels: Sequence[int],
) -> list[Array | Vectors]:
    """Gradients of the loss of each of b examples, by leaf of `params`: [b, …], or `Vectors`.

    `kernels` come from `find`.
    """
    leaves, structure = jax.tree.flatten(params)
    others = {i: leaf for i, leaf in enumerate(leaves) if i not in kernels}
    zeros = {i: jnp.zeros(jnp.shape(leaves[i])[1]) for i in kernels}

    def one(example):
        def loss(others, added):
            inputs = {}
            mine = [others.get(i, leaf) for i, leaf in enumerate(leaves)]

            def stand_in(kernel: int, x: Array, call: Callable[[], Array]) -> Array:
                if kernel not in added:
                    return call()
                inputs[kernel] = x.reshape(-1)
                return call() + added[kernel].reshape((1,) * (x.ndim - 1) + (-1,))

            with _standing_in(mine, stand_in):
                return loss_fn(jax.tree.unflatten(structure, mine), example), inputs

        (of_others, deltas), inputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(others, zeros)
        return of_others, deltas, inputs

    of_others, deltas, inputs = jax.vmap(one)(examples)
    return [
        Vectors(inputs[i], deltas[i]) if i in zeros else of_others[i] for i in range(len(leaves))
    ]


def _standing_in(leaves: Sequence[Array], stand_in: Callable[[int, Array, Callable], Array]):
    """Calls of a plain `nn.Dense` whose kernel is one of the leaves go through `stand_in`."""
    places = {id(leaf): i for i, leaf in enumerate(leaves)}

    def intercept(next_function, args, kwargs, context):
        module: Any = context.module
        plain = (
            type(module) is nn.Dense
            and context.method_name == "__call__"
            and module.dtype in (None, jnp.float32)
            and module.dot_general is None
            and module.dot_general_cls is None
            and len(args) == 1
            and not kwargs
        )
        if plain and module.has_variable("params", "kernel"):
            kernel, x = module.get_variable("params", "kernel"), args[0]
            if id(kernel) in places and kernel.dtype == x.dtype == jnp.float32:
                return stand_in(places[id(kernel)], x, lambda: next_function(*args))
        return next_function(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _is_used_elsewhere(kernel: int, loss_fn: Callable, params: PyTree, example: PyTree) -> bool:
    """Whether a loss depends on a kernel by more than the call that is stood in for."""
    leaves, structure = jax.tree.flatten(params)

    def loss(leaf, example):
        mine = [*leaves[:kernel], leaf, *leaves[kernel + 1 :]]

        def without(place: int, x: Array, call: Callable[[], Array]) -> Array:
            if place != kernel:
                return call()
            return jnp.zeros((*x.shape[:-1], leaf.shape[1])) + x.sum()

        with _standing_in(mine, without):
            return loss_fn(jax.tree.unflatten(structure, mine), example)

    jaxpr = jax.make_jaxpr(loss)(leaves[kernel], example).jaxpr
    given = jaxpr.invars[0]
    return any(given in equation.invars for equation in jaxpr.eqns) or given in jaxpr.outvars
