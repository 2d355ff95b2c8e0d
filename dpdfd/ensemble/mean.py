"""The noisy mean of an ensemble's linear heads, released once; then it may be asked freely.

Members that are one linear layer on public features can be averaged as they are: the mean of M
heads is nearly as accurate as their vote, and a single release of D·K numbers takes the place of
thousands of answers. Each head is clipped to norm C before. Our reconstruction.
"""

import dataclasses
import io
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.models import CONSTANTS
from distill_core.privacy import discrete_gaussian
from distill_core.training import linear
from dpdfd.ensemble import provenance
from dpdfd.privacy.bought import has_begun, once

PyTree = Any

# A clipped parameter is a whole number of units of C/2²⁰: sums over teachers are exact.
_UNITS = 1 << 20
MOST_NOISE = 4e7  # of `noise_multiplier`, so that the sampler holds it
_FILE = "mean_parameters.npz"


def member_of(path: str, ensemble: LoadedModel) -> LoadedModel:
    """A member's network with the constants that all share, without parameters.

    Raises InputError on `teacher`, see `provenance.check`, and on `mechanism` where the members are
    not linear.
    """
    provenance.check(path, ensemble)
    own: Mapping[str, Any] = ensemble.network.model_kwargs
    network = dataclasses.replace(
        ensemble.network, model=own["member"], model_kwargs=own["member_kwargs"]
    )
    if not linear.is_linear(network):
        allowed = f"averages linear layers on public features; the teachers of {path} are "
        raise InputError("mechanism", "parameters", f"{allowed}{network.model}: take 'answers'")
    constants = {k: v for k, v in ensemble.variables.items() if k == CONSTANTS}
    return LoadedModel(constants, network, ensemble.metadata)


def released_mean(
    ensemble: LoadedModel,
    member: LoadedModel,
    workdir: epath.Path,
    decides: Mapping[str, Any],
    *,
    norm: float,
    noise_multiplier: float,
    charge: Callable[[], None],
    random: Callable[[int], bytes] = os.urandom,
) -> LoadedModel:
    """The member's network with the noisy mean of all heads: read, or else bought now and kept.

    `charge` is called before noise is drawn.
    """
    stacked = jax.tree.map(np.asarray, ensemble.variables["params"]["members"])

    def buy() -> bytes:
        charge()
        found = noisy_mean(stacked, norm=norm, noise_multiplier=noise_multiplier, random=random)
        buffer = io.BytesIO()
        np.savez(buffer, **found[linear.LAYER])
        return buffer.getvalue()

    found = once(workdir, _FILE, decides, buy, begun=has_begun(workdir))
    with np.load(io.BytesIO(found), allow_pickle=False) as stored:
        params = {linear.LAYER: {name: stored[name] for name in stored.files}}
    return dataclasses.replace(member, variables={"params": params, **member.variables})


def noisy_mean(
    stacked: PyTree, *, norm: float, noise_multiplier: float, random: Callable[[int], bytes]
) -> PyTree:
    """Mean over M teachers of their parameters, each clipped to norm C, with noise; on the host.

    Formal guarantee: at least as private as a Gaussian mechanism of ratio std/Δ =
    `noise_multiplier`, at every (ε, δ), for a record that reaches one teacher only, Δ = 2C/M: a
    teacher contributes whole numbers of norm at most C, whatever it is (NaN or infinity: 0), and
    sums of them are exact. What is released lies on a grid and excludes no neighbour
    (`discrete_gaussian`). It assumes that C was chosen without the teachers, and that the random
    bytes are fair and stay unknown.

    Args:
      stacked: tree of arrays [M, …, K]; what is equal for all K classes is taken out first, since
        a softmax does not see it.
      norm: C above 0.
      noise_multiplier: above 0 and at most `MOST_NOISE`.
      random: n to n random bytes.

    Returns:
      A tree of float32 arrays […, K].
    """
    leaves, structure = jax.tree.flatten(stacked)
    teachers, wide = len(leaves[0]), [np.asarray(leaf, np.float64) for leaf in leaves]
    with np.errstate(invalid="ignore", over="ignore"):
        centred = [leaf - leaf.mean(-1, keepdims=True) for leaf in wide]
        flat = np.concatenate([leaf.reshape(teachers, -1) for leaf in centred], axis=1)
        norms = np.sqrt(np.square(flat).sum(1, keepdims=True))
    flat = np.where(np.isfinite(norms), flat, 0.0)
    # Less by far more than the last bits of norm and quotient; rounding towards 0 takes more off.
    scale = _UNITS * (1 - 1e-9) / np.maximum(norm, np.where(np.isfinite(norms), norms, norm))
    total = np.trunc(flat * scale).astype(np.int64).sum(0)
    # Upwards, by more than the product's last bits.
    std = noise_multiplier * 2 * _UNITS * (1 + 1e-12)
    total = total + discrete_gaussian.sample(std, len(total), random)
    mean = (total / (teachers * _UNITS) * norm).astype(np.float32)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    parts = np.split(mean, np.cumsum(sizes)[:-1])
    shaped = [part.reshape(leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
