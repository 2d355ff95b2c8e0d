"""The formal budget: how much noise an (ε, δ) for the released vectors takes.

Our reconstruction. It does not protect *records*: a private text may stand in the data any number
of times, and its words act on the teacher everywhere. Nothing here is record-level differential
privacy, and no report may call it that.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from distill_core.privacy import accountants

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Formal:
    """An (ε, δ) for the released vectors of `positions` distinct contexts.

    At a noised position only `entries` classes, picked by the reference, leave the teacher
    (`variants.released_entries`), centred and clipped to ±clip: between any two teachers the
    softened vector moves by at most Δ_t = 2·clip·√k/T_t. The noise is the same multiple of Δ_t
    everywhere.

    Formal guarantee: let two teachers differ in any way at all in the logits of the `entries`
    classes that the public reference picks, at every counted position. The targets of those
    positions, `noise_scale` given, are (ε, δ)-indistinguishable. It takes one release for each
    context: one score (the highest of its places), one temperature, one noised vector, made once
    (`swingdistill.released`); and real numbers for float32 (a noise is a sum of four draws), an
    ideal generator for threefry.

    | not covered | why |
    |---|---|
    | records | no bound on what one record does to the teacher elsewhere |
    | positions beyond `positions` | count distinct contexts: equal ones release one vector, once |
    | positions with s = 0, if scores are public | their targets are the teacher's, without noise |
    | the text | `rules` read it: neither their scores nor where noise acts may be published |
    | scores from the teacher | they weigh the labels without noise, and so reach the student |
    | the labels | cross-entropy is weighted by 1 − s, not noised |
    | whoever knows the key | noise can be subtracted: with a given seed there is no ε |

    Attributes:
      epsilon, delta: ε above 0, δ in (0, 1), of all counted positions together.
      positions: how many distinct contexts get noise in the whole run; for scores that depend on
        the teacher, how many there are.
      entries: k, at least 1.
      clip: bound above 0 of a centred logit, as given to `soft_targets`.
      t_min: T_min above 0.
      public_scores: whether the scores do not depend on the teacher, as those of `rules`. With
        scores that do (`divergence`, `differential`), *where* noise acts would itself give the
        teacher away, and T_t differs between neighbours: then noise goes to every position, for the
        sensitivity at T_min.
    """

    epsilon: float
    delta: float
    positions: int
    entries: int
    clip: float
    t_min: float
    public_scores: bool

    @functools.cached_property
    def noise_multiplier(self) -> float:
        """σ_t/Δ_t, by the exact formula for the composition of Gaussian noise."""
        return accountants.calibrate_gaussian(self.epsilon, self.delta, self.positions)

    def sensitivity(self, temperatures: Array) -> Array:
        """L2 sensitivity of a released vector, 2·clip·√k/T_t (T_min unless scores are public)."""
        temperatures = jnp.asarray(temperatures, jnp.float32)
        if not self.public_scores:
            temperatures = jnp.full_like(temperatures, self.t_min)
        return 2.0 * self.clip * math.sqrt(self.entries) / temperatures

    def noise_scale(self, privacy_scores: Array, temperatures: Array) -> Array:
        """Standard deviation at each token for `soft_targets`, float32 of the scores' shape.

        0 where s = 0 if the scores are public. `temperatures` are those of `token_temperatures`.
        """
        scale = self.noise_multiplier * self.sensitivity(temperatures)
        return (
            jnp.where(jnp.asarray(privacy_scores) > 0, scale, 0.0) if self.public_scores else scale
        )

    def report(self, *, noise_seed: int | None = None) -> dict[str, object]:
        """For a table: ε never without its unit, its adjacency, its δ and what it leaves out.

        With a `noise_seed` given for the run there is no ε: the report says why.
        """
        if noise_seed is not None:
            return {
                "mode": "formal",
                "epsilon": None,
                "why": "the noise's seed was given: whoever knows it subtracts the noise",
                "noise_multiplier": self.noise_multiplier,
            }
        scores = (
            "the private text, which the rules read: where there is noise tells of it"
            if self.public_scores
            else "the scores, which come from the teacher and weigh the labels without noise"
        )
        return {
            "mode": "formal",
            "epsilon": self.epsilon,
            "delta": self.delta,
            "privacy_unit": f"released logit vectors of {self.positions} positions; not records",
            "adjacency": f"any values of the {self.entries} released entries at those positions",
            "not_covered": f"records, labels and {scores}",
            "noise_multiplier": self.noise_multiplier,
        }
