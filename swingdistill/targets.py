"""How the targets of a text are noised: a score and a noise scale for each token, and the key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.privacy import noise
from distill_core.training import inputs
from distill_core.training.step import stream_key
from swingdistill import budget, released
from swingdistill.losses import token_temperatures

STREAM_NOISE = 2  # beside the streams of distill_core.training.step


def noise_key(hp, workdir, start: int, text: str, models) -> jax.Array:
    """The key of the noise, the same throughout the run: secret, or from `noise_seed`.

    `text` is the digest of the rows.
    """
    if hp.noise_seed is not None:
        return stream_key(jax.random.key(hp.noise_seed), STREAM_NOISE, 0)
    decides = {
        "config": {k: v for k, v in config.to_json(hp).items() if k not in config.MAY_CHANGE},
        "models": [inputs.of_model(model) for model in models.values()],
        "text": text,
    }
    return noise.open_key(workdir, "swing_noise.json", decides=decides, start=start)


def with_noise(hp, rows, scores):
    """The rows with `scores` and `noise_scale` [N, L], and what a table says of the noise.

    Noise without a formal budget is chosen by hand and judged by the exposure that is left. It has
    no ε, nor could it have one: places with one prefix share their noise but may differ in
    temperature, and then the difference of their targets gives the teacher's logits; where one of
    them scores 0 its target is bare.
    """
    if hp.variant == "mask":
        zeros = columns.derived(np.zeros_like, scores)
        weights = columns.derived(_unmasked, rows["weights"], scores)
        return {**rows, "weights": weights, "scores": zeros, "noise_scale": zeros}, None
    if hp.epsilon:
        return _with_releases(hp, rows, scores)
    scale = columns.derived(
        functools.partial(_scale, np.float32(hp.noise_scale), hp.noise_everywhere), scores
    )
    report = {"mode": "empirical", "noise_scale": hp.noise_scale}
    return {**rows, "scores": scores, "noise_scale": scale}, report


def _unmasked(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return weights * (scores <= 0.5)


def _scale(noise_scale: np.float32, everywhere: bool, scores: np.ndarray) -> np.ndarray:
    return np.where((scores > 0) | everywhere, noise_scale, np.float32(0.0))


def _with_releases(hp, rows, scores):
    """`with_noise` under a formal budget: one score, one noise and one release per context."""
    live = rows["weights"] > 0
    ids = released.contexts(rows["tokens"], rows["segments"])
    scores = released.highest_per_context(scores, ids, live)
    public = set(hp.scorers) <= {"rules", "presidio"} and not hp.noise_everywhere
    places, count = released.places_in_table(ids, live & (scores > 0) if public else live)
    if not count:
        allowed = "no token scores above 0, so nothing would be noised; name more scorers"
        raise InputError("epsilon", hp.epsilon, allowed)
    set_by = budget.Formal(
        epsilon=hp.epsilon,
        delta=hp.delta,
        positions=count,
        entries=hp.entries,
        clip=hp.clip,
        t_min=hp.t_min,
        public_scores=public,
    )
    heats = token_temperatures(jnp.asarray(scores), t_min=hp.t_min, t_max=hp.t_max, gamma=hp.gamma)
    scale = np.asarray(set_by.noise_scale(jnp.asarray(scores), heats), np.float32)
    made = {"scores": scores, "noise_scale": scale, "released": places}
    return {**rows, **made}, set_by.report(noise_seed=hp.noise_seed)
