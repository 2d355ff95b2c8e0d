"""Sums of per-example gradients, each bounded in norm, and the noise on such a sum.

What bound and noise protect depends on how many examples change between neighbours: one in
differentially private training, all of them where a private teacher supplies the loss.
"""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient
from distill_core.privacy import dense
from distill_core.privacy.gaussian import standard_normal
from distill_core.runtime import backend
from distill_core.runtime.collectives import all_sum

Array = jax.Array
PyTree = Any

MODES = ("normalize", "clip")
# How far rounding may carry a bounded gradient beyond `norm`, relatively: a factor 1 + SLACK on Δ.
# What was measured stays below 1e-6, whatever the precision of the matrix products.
SLACK = 1e-4
# The same for what a sum of many rounds, per record: where all gradients point one way, masking one
# was measured to move it by up to 7e-8·B·C more than C.
_SUM_SLACK = 2.0**-23
# Of squared norms. float32 loses squares below 1e-38: a vector of many tiny entries would look
# shorter than it is and be stretched too far. Above this, up to 1e9 of them are within SLACK.
_LEAST_SQUARE = 1e-24
_MICROBATCH = 32  # on a CPU
_SHARE = 16  # of an accelerator's memory for the gradients that are held at once
_HIGHEST = jax.lax.Precision.HIGHEST


def bounded_gradient_sum(
    loss_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batch: PyTree,
    *,
    norm: float | Array,
    mode: str,
    where: Array | None = None,
    microbatch_size: int | None = None,
) -> PyTree:
    """Sum over a batch of per-example gradients g_i, each normalised or clipped to L2 norm C.

        mode="normalize":  Σ C·g_i/‖g_i‖        mode="clip":  Σ g_i·min(1, C/‖g_i‖)

    The norm is taken over all parameters together. A gradient that is zero (below 1e-12), NaN or
    infinite anywhere, whose norm overflows, or that is masked, contributes exactly 0. Without
    noise; `noisy_sum` adds it.

    Formal guarantee: each example contributes a vector of norm at most C·(1 + `SLACK`) that depends
    on no other example, whatever `loss_fn` returns. So Δ, the L2 sensitivity of the sum (whose
    own rounding `slack` covers), is

    | between neighbours | Δ |
    |---|---|
    | one example is masked: an empty one is in its place | C |
    | one example is replaced | 2C |
    | all B change, as when a record of their common teacher changes | 2BC |

    The guarantee assumes that `loss_fn` sees its one example alone: no collective over devices in
    it, and no statistics of a batch. Networks with batch normalisation cannot be used: take
    `norm="group"` or `norm="none"`.

    Norms are taken of the very float32 numbers that are summed, so that neither the precision of
    matrix products nor ties in a maximum touch the bound. (The gradient of Σ w_i·l_i with
    w_i = C/‖g_i‖ held constant computes each g_i again, rounded differently: with a teacher equal
    to the student, contributions of 7C were measured.) The gradient of a dense layer of one row is
    the outer product of two vectors: the numbers are theirs (`dense`).

    Source: for "clip", Abadi et al., "Deep Learning with Differential Privacy", 2016; for
    "normalize", Liu et al., "Model Conversion via Differentially Private Data-Free Distillation",
    IJCAI 2023. Computation and edge cases are our reconstruction.

    Args:
      loss_fn: `loss_fn(params, one_example) -> scalar`; randomness comes in as a key per example.
      params: tree of float arrays.
      batch: tree of arrays `[B, ...]` (typed keys, too); an example is the tree of their rows.
      norm: C > 0, a scalar.
      mode: "normalize" or "clip".
      where: bool `[B]`; False examples contribute exactly 0, even if they hold NaN.
      microbatch_size: how many gradients are held at once; None for 32, or on an accelerator for
        what a sixteenth of its memory holds.

    Returns:
      A tree like `params`, float32.

    Raises:
      ValueError: unknown mode, a Python scalar outside its range, leaves of different leading axes,
        or a loss that is not a scalar.

    >>> data = jnp.array([[3., 4.], [0., 0.], [0., -9.]])
    >>> loss = lambda w, x: jnp.sum(w * x)
    >>> print(bounded_gradient_sum(loss, jnp.zeros(2), data, norm=1.0, mode="normalize"))
    [ 0.6 -0.2]
    """
    check_mode(mode)
    norm = coefficient("norm", norm, (), None, low=0.0, above=True)
    rows = _rows(batch, where)
    size = _microbatch(params) if microbatch_size is None else microbatch_size
    if not isinstance(size, numbers.Integral) or size < 1:
        raise ValueError(f"microbatch_size: got {size}; must be an integer of at least 1, or None")
    size = max(1, min(int(size), rows))
    live = jnp.ones(rows, bool) if where is None else jnp.asarray(where, bool)

    def scalar_loss(params, example):
        value = loss_fn(params, example)
        if jnp.shape(value) != ():
            raise ValueError(f"loss_fn: got a loss of shape {jnp.shape(value)}; must be a scalar")
        return value

    params = jax.tree.map(jnp.asarray, params)
    kernels = dense.find(scalar_loss, params, jax.tree.map(lambda x: x[0], batch)) if rows else []

    def add_part(total, part):
        examples, live = part  # [b, ...], [b]
        grads = dense.gradients(scalar_loss, params, examples, kernels)
        # So that no compiler computes them twice, once for the norm and once for the sum.
        grads = jax.lax.optimization_barrier(grads)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        weights = bounding_weights(_square_norms(grads), live, norm=norm, mode=mode)  # [b]
        return [t + _weighted_sum(weights, g) for t, g in zip(total, grads, strict=True)]

    leaves, structure = jax.tree.flatten(params)
    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, _accumulate(add_part, zeros, (batch, live), size))


def linear_gradient_sum(
    loss_fn: Callable[[Array, PyTree], Array],
    params: PyTree,
    features: Array,
    batch: PyTree,
    *,
    norm: float | Array,
    mode: str,
    where: Array | None = None,
    chunk: int = 4096,
) -> PyTree:
    """`bounded_gradient_sum` of a linear layer in closed form: two matrix products.

        z_i = f_i·W + b      r_i = ∇_z l_i(z_i)      g_i = (f_i, 1) ⊗ r_i
        ‖g_i‖ = ‖r_i‖·√(‖f_i‖² + 1)                  Σ w_i·g_i = (Fᵀ(w∘R), Σ w_i·r_i)

    Formal guarantee: that of `bounded_gradient_sum`, with its table of Δ, whatever the features,
    labels and parameters: the factors w_i ≥ 0 bound each w_i·g_i to C·(1 + `SLACK`), and a row that
    is masked, whose features or residual r_i hold NaN or infinity, or whose ‖r_i‖ is below 1e-12,
    contributes exactly 0. It assumes that `loss_fn` treats every row for itself, and that a row of
    `features` depends on no other record.

    `slack` covers the rounding of the sum. Chunks are added with compensation (Kahan), so that
    little more than the last rounding counts: with 60,000 gradients of one direction, masking one
    was measured to move the sum by up to 0.0054·C more than C, and by 0.0066·C summed over eight
    devices; `slack` is 0.0072.

    Source: the norm of an outer product is in Goodfellow, "Efficient Per-Example Gradient
    Computations", 2015; the rest is our reconstruction.

    Args:
      loss_fn: `loss_fn(logits [b, K], rows of batch) -> [b]`, row by row.
      params: {"kernel": [D, K], "bias": [K]}.
      features: float `[B, D]`, inputs of the layer.
      batch: tree of arrays `[B, ...]`, what the loss reads besides logits.
      norm: C > 0, a scalar.
      mode: "normalize" or "clip".
      where: bool `[B]`; False examples contribute exactly 0, even if they hold NaN.
      chunk: at most so many rows are in one matrix product, whose sum is rounded without
        compensation.

    Returns:
      {"kernel", "bias"}, float32.

    Raises:
      ValueError: unknown mode, a Python scalar outside its range, or leaves of different leading
        axes.

    >>> layer = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    >>> total = linear_gradient_sum(
    ...     lambda z, y: z[:, 0] * y, layer, jnp.ones((2, 1)), jnp.array([3.0, 0.0]),
    ...     norm=1.0, mode="clip")
    >>> print(total["kernel"][0], total["bias"])
    [0.70710677] [0.70710677]
    """
    check_mode(mode)
    norm = coefficient("norm", norm, (), None, low=0.0, above=True)
    rows = _rows((features, batch), where)
    if not isinstance(chunk, numbers.Integral) or chunk < 1:
        raise ValueError(f"chunk: got {chunk}; must be an integer of at least 1")
    live = jnp.ones(rows, bool) if where is None else jnp.asarray(where, bool)
    everything = (features, batch, live, jnp.arange(rows))
    parts = max(1, -(-rows // int(chunk)))
    size = -(-rows // parts)  # equal parts: the last one begins early, and skips what it repeats
    kernel, bias = (params[name].astype(jnp.float32) for name in ("kernel", "bias"))

    def add_part(carry, first):
        take = functools.partial(
            jax.lax.dynamic_slice_in_dim,
            start_index=jnp.minimum(first, rows - size),
            slice_size=size,
        )
        inputs, examples, counts, index = jax.tree.map(take, everything)
        inputs = inputs.astype(jnp.float32)  # [b, D]
        logits = jnp.matmul(inputs, kernel, precision=_HIGHEST) + bias[None]  # [b, K]
        residuals = jax.grad(lambda z: jnp.sum(loss_fn(z, examples)))(logits)
        # So that no compiler computes them twice, once for the norm and once for the sum.
        residuals = jax.lax.optimization_barrier(residuals.astype(jnp.float32))
        lengths, squares = (jnp.sum(jnp.square(x), axis=1) for x in (inputs, residuals))
        # Below it a long feature vector would magnify what the square of the residual lost.
        counts = counts & (index >= first) & (squares >= _LEAST_SQUARE) & (lengths < jnp.inf)
        weights = bounding_weights(squares * (lengths + 1.0), counts, norm=norm, mode=mode)[:, None]
        residuals = jnp.where(weights > 0, weights * residuals, 0.0)
        inputs = jnp.where(lengths[:, None] < jnp.inf, inputs, 0.0)
        part = {
            "kernel": jnp.matmul(inputs.T, residuals, precision=_HIGHEST),
            "bias": jnp.sum(residuals, axis=0),
        }
        total, lost = carry
        return _add_compensated(total, lost, part), None

    zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
    (total, _), _ = jax.lax.scan(add_part, (zeros, zeros), size * jnp.arange(parts))
    return total


def bounding_weights(squares: Array, live: Array, *, norm: Array, mode: str) -> Array:
    """Factors w_i ≥ 0 such that ‖w_i·g_i‖ is C, or at most C; 0 where g_i does not count.

    Args:
      squares: ‖g_i‖², float32 `[...]`, possibly NaN or infinite.
      live: bool `[...]`; False gives 0.
      norm: C, float32 scalar.
      mode: "normalize" or "clip".

    Returns:
      float32 `[...]`, finite. Where it is 0, g_i itself may hold NaN: select before multiplying.
    """
    counts = live & (squares >= _LEAST_SQUARE) & (squares < jnp.inf)
    weights = norm * jax.lax.rsqrt(jnp.where(counts, squares, 1.0))
    weights = weights if mode == "normalize" else jnp.minimum(weights, 1.0)
    return jnp.where(counts & (weights < jnp.inf), weights, 0.0)


def noisy_sum(
    key: Array,
    tree: PyTree,
    *,
    norm: float | Array,
    noise_multiplier: float | Array,
) -> PyTree:
    """Adds Gaussian noise to a sum of bounded gradients, once, after the sum over devices.

    The noise has standard deviation `noise_multiplier`·C in every coordinate, C = `norm`. What that
    is worth is std/Δ, and Δ depends on what changes between neighbours (`bounded_gradient_sum`):
    2BC, B the global batch, for a record behind a single teacher; 2C for one query of the step,
    which protects no record; C or 2C for an example of private data, masked or replaced. The noise
    is float32, from a counter-based generator that is not cryptographic (`standard_normal`).

    Args:
      key: typed key, used for this release and no other; equal on all devices.
      tree: the sum of this device's examples.
      norm: C > 0, a scalar, as given for the sum.
      noise_multiplier: σ ≥ 0, a scalar; 0 releases the sum as it is.

    Returns:
      A tree like the given one, float32, equal on all devices.

    Raises:
      ValueError: a Python scalar outside its range.
    """
    norm = coefficient("norm", norm, (), None, low=0.0, above=True)
    std = coefficient("noise_multiplier", noise_multiplier, (), None, low=0.0) * norm
    tree = all_sum(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))
    leaves, structure = jax.tree.flatten(tree)
    noisy = [
        leaf + std * standard_normal(jax.random.fold_in(key, i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, noisy)


def slack(batch_size: float) -> float:
    """How far rounding may carry Δ of a sum of so many gradients beyond C or 2C, relatively.

    >>> slack(256), round(slack(8192), 4)
    (0.0001, 0.001)
    """
    return max(SLACK, _SUM_SLACK * batch_size)


def check_mode(mode: str):
    """Raises ValueError unless it is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; must be one of {', '.join(MODES)}")


def _microbatch(params: PyTree) -> int:
    memory = backend.memory()
    if memory is None:
        return _MICROBATCH
    entries = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
    return max(_MICROBATCH, memory // _SHARE // (4 * max(1, entries)))


def _rows(batch: PyTree, where: Array | None) -> int:
    """B, the leading axis that all leaves and the mask share."""
    leaves = [*jax.tree.leaves(batch), *([] if where is None else [where])]
    found = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(found) != 1 or found == {()}:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"batch, where: got shapes {shapes}; must share their leading axis, B")
    return found.pop()[0]


def _square_norms(grads: Sequence[Array | dense.Vectors]) -> Array:
    """‖g_i‖² over all leaves, `[b]`. XLA adds in trees, so that errors stay small."""
    return jnp.sum(jnp.stack([_squares(each) for each in grads]), axis=0)


def _squares(grads: Array | dense.Vectors) -> Array:
    if not isinstance(grads, dense.Vectors):
        return jnp.sum(jnp.square(grads), axis=tuple(range(1, grads.ndim)))
    squares, largest = jnp.ones(len(grads.inputs)), jnp.ones(len(grads.inputs))
    for vectors in grads:  # by their largest entries, whose squares float32 may lose
        most = jnp.max(jnp.abs(vectors), axis=1)
        scaled = vectors / jnp.where(most > 0, most, 1.0)[:, None]
        squares *= jnp.sum(jnp.square(scaled), axis=1)
        largest *= most
    return squares * largest * largest


def _weighted_sum(weights: Array, grads: Array | dense.Vectors) -> Array:
    """Σ_i w_i·g_i over the first axis; where w_i is 0, g_i may hold anything."""
    if isinstance(grads, dense.Vectors):
        live = weights[:, None] > 0
        inputs = jnp.where(live, grads.inputs, 0.0)
        deltas = jnp.where(live, weights[:, None] * grads.deltas, 0.0)
        return jnp.matmul(inputs.T, deltas, precision=_HIGHEST)
    shape = (-1,) + (1,) * (grads.ndim - 1)
    safe = jnp.where(weights.reshape(shape) > 0, grads, 0.0)
    return jnp.tensordot(weights, safe, 1, precision=_HIGHEST)


def _add_compensated(total: PyTree, lost: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
    """(total + part, what rounding lost of it); Kahan, with what was lost before added again."""
    part = jax.tree.map(jnp.add, part, lost)
    new = jax.tree.map(jnp.add, total, part)
    lost = jax.tree.map(lambda t, n, p: p - (n - t), total, new, part)
    return new, lost


def _accumulate(add_part: Callable, total: PyTree, rows: PyTree, size: int) -> PyTree:
    """Folds `add_part` over parts of at most `size` rows."""
    count = jax.tree.leaves(rows)[0].shape[0]
    # On CPU convolutions in a loop run many times slower, so there the parts are written out.
    looped = count - count % size if backend.platform() != "cpu" and count >= 2 * size else 0
    if looped:
        parts = jax.tree.map(lambda x: x[:looped].reshape(-1, size, *x.shape[1:]), rows)
        total, _ = jax.lax.scan(lambda total, part: (add_part(total, part), None), total, parts)
    for start in range(looped, count, size):
        # Always 0, but the compiler cannot know. Else it may begin with all parts at once, and
        # hold the gradients of the whole batch.
        zero = jnp.isnan(jax.tree.leaves(total)[0].ravel()[0]).astype(jnp.int32)
        place = {"start_index": start + zero, "slice_size": min(size, count - start)}
        take = functools.partial(jax.lax.dynamic_slice_in_dim, **place)
        total = add_part(total, jax.tree.map(take, rows))
    return total
