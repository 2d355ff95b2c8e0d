"""Poisson batches: every record is in every batch independently, with one probability."""

from collections.abc import Sequence

import numpy as np

_TOO_SMALL = 1e-9  # probability that a run draws more than `capacity` anywhere


def draw(root: Sequence[int], step: int, rate: float, num_examples: int) -> np.ndarray:
    """The records of one step's batch, a pure function of its arguments.

    Formal guarantee: were the generator's bits independent and fair, each record would be drawn
    with probability `rate` (to 2⁻⁵³), independently of all others and of all other steps. Whoever
    knows `root` knows who was in which batch, and amplification by sampling is lost: it has to be
    as secret as the noise. NumPy's generator is not cryptographic.

    Args:
      root: integers, of 32 bits each.
      step: from 0.
      rate: in (0, 1].
      num_examples: N.

    Returns:
      int64 [n], ascending, each in [0, N); n is Binomial(N, rate), perhaps 0.
    """
    sequence = np.random.SeedSequence([int(word) for word in root], spawn_key=(int(step),))
    return np.flatnonzero(np.random.default_rng(sequence).random(num_examples) < rate)


def capacity(rate: float, num_examples: int, num_steps: int, *, multiple: int) -> int:
    """Rows that hold a batch in every step of a run but with probability 10⁻⁹; then `pad` makes
    more.

    Args:
      rate, num_examples: of `draw`.
      num_steps: of the run.
      multiple: what the result is rounded up to, the number of devices.
    """
    from scipy import stats  # slow to import

    enough = stats.binom.isf(_TOO_SMALL / num_steps, num_examples, rate)
    return -(-max(1, int(enough)) // multiple) * multiple


def pad(drawn: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The records in a fixed number of rows: `size`, or a multiple where they do not fit.

    No record is ever dropped: that would be another mechanism than the one that is accounted for.

    Returns:
      (records int64 [R], mask bool [R]), record 0 and False where a row is padded.
    """
    rows = -(-max(1, len(drawn)) // size) * size
    padded = np.zeros(rows, np.int64)
    padded[: len(drawn)] = drawn
    return padded, np.arange(rows) < len(drawn)
