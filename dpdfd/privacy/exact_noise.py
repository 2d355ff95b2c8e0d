r"""Noisy answers of an ensemble: whole numbers are counted on the device and noised on the host.

Each teacher shares out R parts per query among the classes by its probabilities. Discrete Gaussian
noise from the operating system's randomness is added to the sum over M teachers; divided by M·R it
is the noisy mean of probabilities. Our reconstruction, after Papernot et al., "Scalable Private
Learning with PATE", 2018.

Noise for 8,192 queries of 10 classes takes a tenth of a second on one CPU core:

    python -m timeit -n 1 -s "import numpy as np" \
        -s "from dpdfd.privacy.exact_noise import noisy_answers, parts" \
        -s "counts = np.full((8192, 10), 25 * parts(250), np.int32)" \
        "noisy_answers(counts, 250, noise_multiplier=60.0)"
"""

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.privacy import discrete_gaussian
from dpdfd.privacy.mechanism import count_teachers, on_simplex

Array = jax.Array

_MOST_PARTS = 1 << 20  # below 10⁻⁶ a probability is of no interest
MOST_NOISE = 6e7  # of `noise_multiplier`
_MOST_TOTAL = 1 << 30  # so that int32 holds every sum


def parts(num_teachers: int) -> int:
    """R, into how many parts a teacher divides a query: a power of 2.

    >>> parts(1000), parts(100_000)
    (1048576, 8192)
    """
    return min(_MOST_PARTS, 1 << (_MOST_TOTAL // num_teachers).bit_length() - 1)


def answer_counts(teacher_outputs: Array) -> Array:
    """Sum over M teachers of the parts that each gives to the classes, per query.

    Formal guarantee: if one teacher changes in any way at all, the counts of a query move by at
    most √2·R (L2), R = `parts(M)`, exactly: whatever a teacher returns becomes K whole numbers of
    at least 0 that add up to R. Rows are brought onto the simplex as in `mechanism.private_answers`
    and the cumulative probabilities rounded to multiples of 1/R.

    Args:
      teacher_outputs: `[M, B, K]`, probabilities or one-hot votes, any real dtype (not logits).

    Returns:
      int32 `[B, K]`, each row adding up to M·R; private, without noise.

    Raises:
      ValueError: another number of axes.

    >>> print(answer_counts(jnp.array([[[1.0, 0.0]], [[0.25, 0.75]]])) / parts(2))
    [[1.25 0.75]]
    """
    whole = parts(count_teachers(teacher_outputs))
    probs, _ = on_simplex(jax.lax.stop_gradient(teacher_outputs))
    shares = jnp.clip(jnp.round(jnp.cumsum(probs, axis=-1) * whole), 0, whole)
    edges = jax.lax.cummax(shares.astype(jnp.int32), axis=2)
    edges = edges.at[..., -1].set(whole)
    # So that no compiler computes an edge twice: rounded otherwise, the parts would not add up.
    edges = jax.lax.optimization_barrier(edges)
    return jnp.sum(jnp.diff(edges, axis=-1, prepend=0), axis=0)


def noisy_answers(
    counts: np.ndarray,
    num_teachers: int,
    *,
    noise_multiplier: float,
    random: Callable[[int], bytes] = os.urandom,
) -> np.ndarray:
    """The mean of M teachers' probabilities for each query, with noise; on the host.

    Formal guarantee: every query is at least as private as a Gaussian mechanism of ratio std/Δ =
    `noise_multiplier` for a record that reaches one teacher only, at every (ε, δ), composed with
    all others (`discrete_gaussian.variance`); what is published lies on a grid and excludes no
    neighbour. It assumes that the random bytes are fair and stay unknown.

    The answers are raw: they may be negative and need not sum to 1. Post-processing, this
    function's rounding to float32 included, is free.

    Args:
      counts: `[N, K]`, from `answer_counts`.
      num_teachers: M.
      noise_multiplier: std/Δ above 0, with Δ = √2/M (a ledger's Δ is a little more).
      random: n to n random bytes.

    Returns:
      float32 `[N, K]`.

    Raises:
      ValueError: `noise_multiplier` outside its range; it may be up to `MOST_NOISE`.
    """
    whole = parts(num_teachers)
    # Upwards, by more than the product's last bits.
    std = noise_multiplier * math.sqrt(2.0) * whole * (1 + 1e-12)
    noise = discrete_gaussian.sample(std, np.size(counts), random).reshape(np.shape(counts))
    return ((counts.astype(np.int64) + noise) / (num_teachers * whole)).astype(np.float32)
