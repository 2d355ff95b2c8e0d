"""What a config's group `dp` may hold, and what a differentially private run refuses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.privacy import ledger
from distill_core.runtime import paths

GROUP = {
    "epsilon": config.number(0.0, above=True),
    "delta": config.number(0.0, 1.0, above=True),
    "norm": config.number(0.0, above=True),
    "noise_multiplier": config.number(0.0, above=True, default=None),
    "augmentations": config.integer(1, default=1),
    "seed": config.integer(0, 2**32 - 1, default=None),
    "public_start": config.boolean(default=False),
    "masked": config.text(default=None),
}
# Beyond these gradients of norm C or their noise would be 0 or infinite in float32.
SIZES = {"norm": (1e-12, 1e12), "noise_multiplier": (1e-8, 1e12)}
_ALLOWED = (
    "must be a group: epsilon, delta and norm (C), and perhaps noise_multiplier (std/C; else "
    "calibrated), augmentations (copies of a record a step), seed (of the noise, to reproduce), "
    "public_start (init_from saw public data alone), masked (a .npy file of rows that count as "
    "empty, for an audit); or None"
)


def _read(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not value:  # an empty group asks for privacy, but not for how much
        raise ValueError
    return config.mapping().read(value)


FIELDS = {"dp": config.Field(_read, _ALLOWED, None)}


def read_group(given: Mapping[str, Any], num_examples: int) -> dict[str, Any]:
    """Checked values of the group `dp`.

    Args:
      given: as in the config.
      num_examples: N, private training records.

    Raises:
      InputError: on `dp.NAME`: unknown, missing or outside its range (`SIZES`, too); `delta` not
        below 1/N.
    """
    try:
        found = config.validate(given, GROUP)
        ledger.check_delta(found["delta"], num_examples)
        for name, (least, most) in SIZES.items():
            if found[name] is not None and not least <= found[name] <= most:
                allowed = f"must be from {least:g} to {most:g}, which float32 holds"
                raise InputError(name, found[name], allowed)
    except InputError as error:
        raise InputError(f"dp.{error.field}", error.given, error.allowed) from None
    return found


def live_records(masked: str | None, num_examples: int) -> np.ndarray:
    """Which records count, bool [N]: a masked one is drawn as ever and gives gradient 0.

    Raises InputError on `dp.masked` unless it is None or names a .npy file of rows.
    """
    live = np.ones(num_examples, bool)
    if masked is None:
        return live
    allowed = f"must be a .npy file of integers in [0, {num_examples - 1}]"
    try:
        with paths.expand("dp.masked", masked).open("rb") as stream:
            rows = np.load(stream, allow_pickle=False)
        fits = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
    except Exception:  # NumPy has many for what is no such file
        raise InputError("dp.masked", masked, allowed) from None
    if not fits or (rows.size and not 0 <= rows.min() <= rows.max() < num_examples):
        raise InputError("dp.masked", masked, allowed)
    live[rows] = False
    return live


def check(hp: Mapping[str, Any], network: Network, num_examples: int):
    """Raises InputError where a run of N records cannot be private with its other settings."""
    if hp["batch_size"] > num_examples:
        allowed = (
            f"must be at most the {num_examples:,} records: it is the expected size of a batch"
        )
        raise InputError("batch_size", hp["batch_size"], allowed)
    if hp.get("num_validation"):
        allowed = "must be 0 with dp: held-out records would be looked at without noise"
        raise InputError("num_validation", hp["num_validation"], allowed)
    if state := sorted(network.shapes().keys() - {"params"}):
        allowed = (
            f"keeps statistics of batches ({', '.join(state)}), which mix records; with dp take "
            "model_kwargs.norm 'group' or 'none'"
        )
        if "norm" in network.model_kwargs:
            raise InputError("model_kwargs.norm", network.model_kwargs["norm"], allowed)
        raise InputError("model", network.model, allowed)
