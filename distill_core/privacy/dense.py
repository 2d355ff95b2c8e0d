"""Per-example gradients of dense layers, kept as two vectors each in place of a matrix.

The gradient of x·W for one example is the outer product of x and the gradient δ of the layer's
output, whose norm is ‖x‖·‖δ‖ and of which a weighted sum over examples is one matrix product.
Source: Goodfellow, "Efficient Per-Example Gradient Computations", 2015. Finding the layers in a
loss is ours: Flax lets a function stand in for the calls of a module's methods.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers

Array = jax.Array
PyTree = Any
Loss = Callable[[PyTree, PyTree], Array]

_GAIN = 4  # a matrix is this much larger than the two vectors, or is computed
_PROMOTE = nn.Dense.__dataclass_fields__["promote_dtype"].default


class Vectors(NamedTuple):
    """Gradients of a kernel [D, K] for b examples: outer products of `inputs` and `deltas`."""

    inputs: Array  # float32 [b, D]
    deltas: Array  # float32 [b, K]


def find(loss_fn: Loss, params: PyTree, example: PyTree) -> list[int]:
    """Which leaves of `params` are kernels whose gradients `gradients` gives as `Vectors`.

    They belong to a `nn.Dense` of plain float32 arithmetic, are used in one call on one row, and
    nowhere else in the loss, and are large enough for the two vectors to pay. Calls inside another
    transformation (`jit`, `vmap`, `grad`, a loop, …) do not count. `example` is one example, or its
    shapes.
    """
    calls: dict[int, list[tuple[int, ...]]] = {}

    def traced(params, example):
        with _standing_in(jax.tree.leaves(params), functools.partial(_note, calls)):
            return loss_fn(params, example)

    jax.eval_shape(traced, params, example)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    found = []
    for kernel, inputs in sorted(calls.items()):
        rows, columns = shapes[kernel]
        is_one_row = len(inputs) == 1 and inputs[0] in ((rows,), (1, rows))
        if is_one_row and rows * columns >= _GAIN * (rows + columns):
            found.append(kernel)
    return [kernel for kernel in found if not _is_used_elsewhere(kernel, loss_fn, params, example)]


def gradients(
    loss_fn: Loss, params: PyTree, examples: PyTree, kernels: Sequence[int]
) -> list[Array | Vectors]:
    """Gradients of the loss of each of b examples, by leaf of `params`: [b, …], or `Vectors`.

    `kernels` come from `find`.
    """
    # Copies, so that what the loss reads besides its argument is no kernel of it.
    leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(params)]
    others = {i: leaf for i, leaf in enumerate(leaves) if i not in kernels}
    added = {i: jnp.zeros(leaves[i].shape[1]) for i in kernels}
    given = functools.partial(_loss, loss_fn, jax.tree.structure(params), leaves)
    each = jax.vmap(jax.grad(given, argnums=(0, 1), has_aux=True), (None, None, 0))
    (of_others, deltas), inputs = each(others, added, examples)
    return [
        Vectors(inputs[i], deltas[i]) if i in added else of_others[i] for i in range(len(leaves))
    ]


def _loss(loss_fn: Loss, structure: Any, leaves: Sequence[Array], others, added, example):
    """(loss, inputs of the layers) with something added to these layers' outputs."""
    inputs: dict[int, Array] = {}
    mine = [others.get(i, leaf) for i, leaf in enumerate(leaves)]
    with _standing_in(mine, functools.partial(_add, added, inputs)):
        return loss_fn(jax.tree.unflatten(structure, mine), example), inputs


# What stands in for a call of a layer: (which kernel, its input, the call itself) -> its output.


def _note(calls: dict, kernel: int, x: Array, call: Callable[[], Array]) -> Array:
    calls.setdefault(kernel, []).append(x.shape)
    return call()


def _add(added: Mapping, inputs: dict, kernel: int, x: Array, call: Callable[[], Array]) -> Array:
    if kernel not in added:
        return call()
    inputs[kernel] = x.reshape(-1)
    return call() + added[kernel].reshape((1,) * (x.ndim - 1) + (-1,))


def _leave_out(kernel: int, width: int, place: int, x: Array, call: Callable[[], Array]) -> Array:
    return call() if place != kernel else jnp.zeros((*x.shape[:-1], width)) + x.sum()


def _standing_in(leaves: Sequence[Array], stand_in: Callable[[int, Array, Callable], Array]):
    """Calls of a plain `nn.Dense` whose kernel is one of the leaves go through `stand_in`."""
    places, trace = {id(leaf): i for i, leaf in enumerate(leaves)}, tracers.current_trace()

    def intercept(next_function, args, kwargs, context):
        module: Any = context.module
        plain = (
            type(module) is nn.Dense
            and context.method_name == "__call__"
            and module.dtype in (None, jnp.float32)
            and module.promote_dtype is _PROMOTE
            and module.dot_general is None
            and module.dot_general_cls is None
            and len(args) == 1
            and not kwargs
            and tracers.current_trace() == trace
        )
        if plain and module.has_variable("params", "kernel"):
            kernel, x = module.get_variable("params", "kernel"), args[0]
            if id(kernel) in places and kernel.dtype == x.dtype == jnp.float32:
                return stand_in(places[id(kernel)], x, functools.partial(next_function, *args))
        return next_function(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _is_used_elsewhere(kernel: int, loss_fn: Loss, params: PyTree, example: PyTree) -> bool:
    """Whether a loss depends on a kernel by more than the call that is stood in for."""
    leaves, structure = jax.tree.flatten(params)

    def without(leaf, example):
        mine = [*leaves[:kernel], leaf, *leaves[kernel + 1 :]]
        with _standing_in(mine, functools.partial(_leave_out, kernel, leaf.shape[1])):
            return loss_fn(jax.tree.unflatten(structure, mine), example)

    jaxpr = jax.make_jaxpr(without)(leaves[kernel], example).jaxpr
    given = jaxpr.invars[0]
    return any(given in equation.invars for equation in jaxpr.eqns) or given in jaxpr.outvars
