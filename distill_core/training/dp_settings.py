"""Settings of a config's group `dp`, and what a differentially private run refuses."""

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.models import CONSTANTS
from distill_core.models.network import Network
from distill_core.privacy import ledger
from distill_core.runtime import paths

POISSON, FULL = "poisson", "full"
# Outside these, gradients of norm C or their noise would be 0 or infinite in float32.
SIZES = {"norm": (1e-12, 1e12), "noise_multiplier": (1e-8, 1e12)}


@config.settings
class Dp:
    """Privacy budget and mechanism of a differentially private run."""

    epsilon: float = config.number(0.0, above=True, help="the budget, spent at most")
    delta: float = config.number(0.0, 1.0, above=True, help="below 1/N for N records")
    norm: float = config.number(0.0, above=True, help="C, to which gradients are clipped")
    noise_multiplier: float | None = config.number(
        0.0, above=True, default=None, help="std/C; by default calibrated to epsilon"
    )
    sampling: str = config.choice(
        POISSON, FULL, default=POISSON, help="of a step's records; 'full' takes all of them"
    )
    share: float = config.number(
        1e-3, 1.0, default=1.0, help="of the budget's mu^2, for this run; with 'full'"
    )
    average: float = config.number(
        0.0, 1.0, below=True, default=0.0, help="share of the last steps whose weights are averaged"
    )
    augmentations: int = config.integer(1, default=1, help="copies of a record in a step")
    microbatch_size: int | None = config.integer(
        1, default=None, help="records whose gradients a device holds at once; by its memory"
    )
    seed: int | None = config.integer(
        0, 2**32 - 1, default=None, help="of the noise, to reproduce a run that claims no epsilon"
    )
    public_start: bool = config.boolean(default=False, help="init_from saw public data alone")
    masked: str | None = config.text(
        default=None, help="a .npy file of rows that count as empty, for an audit"
    )

    def __post_init__(self):
        for name, (least, most) in SIZES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                allowed = f"must be from {least:g} to {most:g}, which float32 holds"
                raise InputError(name, value, allowed)
        if self.share < 1 and self.sampling != FULL:
            allowed = f"must be 1 with sampling {self.sampling!r}, which has no exact mu: take "
            raise InputError("share", self.share, f"{allowed}sampling {FULL!r}")


@config.settings
class Private:
    """For binaries that can train with differential privacy."""

    dp: Dp | None = config.group(Dp, default=None, help="trains with differential privacy")


def live_records(masked: str | None, num_examples: int, field: str = "dp.masked") -> np.ndarray:
    """Which records count, bool [N]: a masked one may still be sampled, and has gradient 0.

    Raises InputError on `field` unless `masked` is None or names a .npy file of rows.
    """
    live = np.ones(num_examples, bool)
    if masked is None:
        return live
    allowed = f"must be a .npy file of integers in [0, {num_examples - 1}]"
    try:
        with paths.expand(field, masked).open("rb") as stream:
            rows = np.load(stream, allow_pickle=False)
        fits = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
    except Exception:  # NumPy raises many kinds for what is no such file
        raise InputError(field, masked, allowed) from None
    if not fits or (rows.size and not 0 <= rows.min() <= rows.max() < num_examples):
        raise InputError(field, masked, allowed)
    live[rows] = False
    return live


def check(hp: config.Steps, dp: Dp, network: Network, num_examples: int):
    """Raises InputError where a run on N records cannot be private with these settings."""
    with config.within("dp"):
        ledger.check_delta(dp.delta, num_examples)
    if dp.sampling == FULL and hp.batch_size != num_examples:
        allowed = f"must be {num_examples:,}, all records, with dp.sampling {FULL!r}"
        raise InputError("batch_size", hp.batch_size, allowed)
    if hp.batch_size > num_examples:
        allowed = f"must be at most {num_examples:,}, the records: it is a batch's expected size"
        raise InputError("batch_size", hp.batch_size, allowed)
    if held := getattr(hp, "num_validation", 0):
        allowed = "must be 0 with dp: held-out records would be evaluated without noise"
        raise InputError("num_validation", held, allowed)
    if state := sorted(network.shapes().keys() - {"params", CONSTANTS}):
        allowed = (
            f"keeps statistics of batches ({', '.join(state)}), which mix records; with dp take "
            "model_kwargs.norm 'group' or 'none'"
        )
        if "norm" in network.model_kwargs:
            raise InputError("model_kwargs.norm", network.model_kwargs["norm"], allowed)
        raise InputError("model", network.model, allowed)
