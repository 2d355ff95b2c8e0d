"""Targets under a formal budget: one per context, made once.

A context is the whole prefix that a network sees. It alone decides the teacher's logits, but not
the score, which depends on what comes next. So under a formal budget a context has one score, the
highest that any of its places in the text has, hence one temperature, and one noised vector that
all its places share, bit for bit. Were there two, c/T₁ + η and c/T₂ + η, their difference would
give c.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.data import sampling
from distill_core.models.network import Network
from distill_core.models.text.segments import places_in_line
from distill_core.privacy.gaussian import standard_normal
from distill_core.training import chunked
from swingdistill.losses import soft_targets, token_temperatures
from swingdistill.variants import anchored_targets, released_entries

_ENTRIES = 2**23  # logits of one network that exist at a time: 32 MiB
Rows = Mapping[str, np.ndarray]


def contexts(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """A number for each distinct prefix, int64 [N, L]: exact, unlike the hash `context_ids`.

    Args:
      tokens, segments: integers [N, L]; a prefix begins where its line does in the row.
    """
    places = np.asarray(places_in_line(jnp.asarray(segments))).ravel()
    flat = np.asarray(tokens, np.int64).ravel()
    size = int(flat.max(initial=0)) + 1
    found, known = np.zeros(flat.shape, np.int64), 0
    for place in range(int(places.max(initial=-1)) + 1):
        here = np.flatnonzero(places == place)
        before = found[here - 1] if place else np.zeros(len(here), np.int64)
        pairs, mine = np.unique(before * size + flat[here], return_inverse=True)
        found[here] = known + mine
        known += len(pairs)
    return found.reshape(tokens.shape)


def highest_per_context(scores: np.ndarray, ids: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The highest score that each context has among the places `where`; 0 elsewhere. [N, L]."""
    _, mine = np.unique(ids[where], return_inverse=True)
    highest = np.zeros(mine.max(initial=-1) + 1, np.float32)
    np.maximum.at(highest, mine, scores[where])
    found = np.zeros(scores.shape, np.float32)
    found[where] = highest[mine]
    return found


def places_in_table(ids: np.ndarray, noised: np.ndarray) -> tuple[np.ndarray, int]:
    """Which row of `table` each place has, int32 [N, L], −1 where not noised; and their number."""
    known, mine = np.unique(ids[noised], return_inverse=True)
    found = np.full(ids.shape, -1, np.int32)
    found[noised] = mine
    return found, len(known)


def table(
    key: jax.Array,
    rows: Rows,
    teacher: Any,
    reference: Any,
    *,
    entries: int,
    variant: str,
    numbers: Mapping[str, jax.Array],
) -> dict[str, np.ndarray]:
    """The target of every noised context, made at the first of its places.

    Its noise is a sum of several draws, since a single one in float32 has no tail
    (`standard_normal`).

    Args:
      key: the secret key of the noise.
      rows: `tokens`, `segments`, `scores`, `noise_scale`, and `released` of `places_in_table`.
      teacher, reference: loaded models.
      entries: k; the reference picks which.
      variant: "swing" or "anchored".
      numbers: float32 scalars, t_min, t_max, gamma and clip among them.

    Returns:
      {"classes": int32 [C, k], "log_probs": float32 [C, k]}, for C contexts.
    """
    release = functools.partial(_release, teacher.network, reference.network, entries, variant)
    frozen = {"key": key, "teacher": teacher.variables, "reference": reference.variables, **numbers}
    num, length = rows["tokens"].shape
    size = min(num, max(1, _ENTRIES // (length * teacher.network.num_tokens)))
    count = int(rows["released"].max()) + 1
    made = {
        "classes": np.zeros((count, entries), np.int32),
        "log_probs": np.zeros((count, entries), np.float32),
    }
    known = np.zeros(count, bool)
    for index, _ in sampling.eval_batches(num, size):
        names = ("tokens", "segments", "scores", "noise_scale", "released")
        batch = {name: rows[name][index] for name in names}
        context, first = np.unique(batch["released"], return_index=True)
        new = (context >= 0) & ~known[context]
        context, first = context[new], first[new]
        if not len(context):
            continue
        for name, values in release(frozen, batch).items():
            made[name][context] = np.asarray(values).reshape(-1, entries)[first]
        known[context] = True
    return made


def instead(target: jax.Array, classes: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Targets `[T, V]`, replaced by `log_probs` of `classes`, `[T, k]` each, that were made before.

    Where the first class is negative the target stays.
    """
    made = jnp.full_like(target, -jnp.inf)
    made = made.at[jnp.arange(len(classes))[:, None], classes].set(log_probs)
    return jnp.where(classes[:, :1] >= 0, made, target)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _release(teacher: Network, reference: Network, entries: int, variant: str, frozen, batch):
    public = _logits(reference, frozen["reference"], batch)
    let_out = released_entries(_logits(teacher, frozen["teacher"], batch), public, entries)
    t_min = frozen["t_min"]
    heats = token_temperatures(
        batch["scores"], t_min=t_min, t_max=frozen["t_max"], gamma=frozen["gamma"]
    )
    noised = {
        "noise_scale": batch["noise_scale"],
        "clip": frozen["clip"],
        "noise_ids": batch["released"],
        "normal": standard_normal,
    }
    if variant == "anchored":
        target = anchored_targets(frozen["key"], let_out, public, heats, t_min=t_min, **noised)
    else:
        target = soft_targets(frozen["key"], let_out, heats, **noised)
    _, classes = jax.lax.top_k(public, entries)
    return {"classes": classes, "log_probs": jnp.take_along_axis(target, classes, axis=-1)}


def _logits(network: Network, variables, batch):
    return chunked.logits(*network.hidden(variables, batch["tokens"], batch["segments"]))
