"""The Gaussian noise that is drawn on devices."""

import math

import jax

DRAWS = 4


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, each the sum of four independent draws over two.

    One float32 draw lies in [−5.42, 5.22], with gaps of 0.16 near its ends; of a sum the ends are
    twice as far, and it takes all four draws to come near them. What is left: values are float32,
    and the generator (Threefry, counter-based) is taken for ideal, with bits of the `key` secret.

    Args:
      key: typed key, used for these numbers alone.
      shape: of the result.

    Returns:
      float32, of the shape.
    """
    total = jax.random.normal(jax.random.fold_in(key, 0), shape)
    for draw in range(1, DRAWS):
        total = total + jax.random.normal(jax.random.fold_in(key, draw), shape)
    return total / math.sqrt(DRAWS)
